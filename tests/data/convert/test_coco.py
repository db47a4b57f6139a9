"""COCO's boxes of objects become answers that name every object of a kind, in pixels."""

import json
from functools import partial

import pytest
from PIL import Image
from words import WordProcessor

from foveal.data.checking.check import check_file
from foveal.data.convert import Options, convert
from foveal.data.encode import count_tokens
from foveal.data.example import read_examples
from foveal.data.images.boxes import BoxFrame
from foveal.errors import DataError


def box(image, kind, *edges, **more):
    return {"image_id": image, "category_id": kind, "bbox": list(edges), **more}


def put(folder, annotations, name="annotations/instances_train2017.json", sizes=((64, 48),) * 2):
    images = []
    for number, size in enumerate(sizes):
        path = folder / "train2017" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 48), "white").save(path)
        images.append({"id": number, "file_name": path.name, "width": size[0], "height": size[1]})
    tree = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
    }
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(tree))
    return folder


def test_all_objects_of_a_kind_are_one_answer_from_top_to_bottom(tmp_path):
    found = [
        box(0, 3, 10.4, 30.2, 5.3, 10),
        box(0, 7, 0, 0, 64, 48),
        box(0, 3, 20, 5.5, 10, 10),
        box(1, 3, 60, 40, 4.4, 8.3),  # rounded annotations stand over the edge
    ]
    made = convert("coco", put(tmp_path / "coco", found), tmp_path / "out")
    assert made.left_out == {}
    turns = [one.turns[0] for one in read_examples(tmp_path / "out" / "coco_train.jsonl")]
    assert [(one.images[0], one.user.split("?")[0], one.assistant) for one in turns] == [
        ("train/0.jpg", "Where is every cat", "[20, 6, 30, 16]\n[10, 30, 16, 40]"),
        ("train/0.jpg", "Where is every dog", "[0, 0, 64, 48]"),
        ("train/1.jpg", "Where is every cat", "[60, 40, 64, 48]"),
    ]


class BoxProcessor(WordProcessor):
    """Reads boxes in pixels of pictures that it takes as they are."""

    boxes = "pixels"

    def box_frame(self, width, height):
        return BoxFrame((width, height), (0, 0), (width, height))


def test_what_it_writes_passes_as_boxes_in_pixels(tmp_path):
    convert("coco", put(tmp_path / "coco", [box(0, 3, 1, 2, 9, 9)]), tmp_path / "out")
    count = partial(count_tokens, BoxProcessor())
    assert list(check_file(tmp_path / "out" / "coco_train.jsonl", count_tokens=count)) == []


def test_what_is_no_box_of_one_object_is_left_out_and_counted(tmp_path):
    found = [
        box(0, 3, 1, 2, 9, 9, iscrowd=1),
        box(0, 7, 5, 5, 0.2, 9),
        box(1, 3, 1, 2, 9, 9),
    ]
    folder = put(tmp_path / "coco", found, sizes=((64, 48), (64, 48), (64, 48), (48, 64)))
    tree = json.loads((folder / "annotations/instances_train2017.json").read_text())
    tree["annotations"].append(box(3, 3, 1, 2, 9, 9))
    (folder / "annotations/instances_train2017.json").write_text(json.dumps(tree))
    (folder / "annotations/captions_train2017.json").write_text('{"images": []}')
    made = convert("coco", folder, tmp_path / "out", options=Options(question="{name}?"))
    assert dict(made.left_out) == {
        "a crowd, which is not boxed one by one": 1,
        "a box of less than a pixel, or outside of its picture": 1,
        "no object in it": 1,
        "a picture, upright, of another size than its annotations say": 1,
    }
    (example,) = read_examples(tmp_path / "out" / "coco_train.jsonl")
    assert example.turns[0].user == "cat?"


@pytest.mark.parametrize(
    "text", ["{}", "[1]", '{"images": [], "annotations": [], "categories": []}']
)
def test_a_folder_without_boxes_is_refused(tmp_path, text):
    (tmp_path / "coco").mkdir()
    (tmp_path / "coco" / "some.json").write_text(text)
    with pytest.raises(DataError, match="no JSON file with COCO's boxes"):
        convert("coco", tmp_path / "coco", tmp_path / "out")


def test_annotations_of_another_form_are_named(tmp_path):
    folder = put(tmp_path / "coco", [{"image_id": 0, "category_id": 3, "bbox": None}])
    with pytest.raises(DataError, match=r"instances_train2017\.json: not as COCO has it"):
        convert("coco", folder, tmp_path / "out")
