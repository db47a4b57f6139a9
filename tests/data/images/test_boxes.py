"""Boxes are learnt in each family's own numbers, and its answers are moved back exactly."""

import json
import re
from functools import partial

import numpy as np
import pytest
from PIL import Image
from published import make_processor
from tiny import make_image, make_model, turn, write_data
from tiny_models import write_tiny

from foveal.config import DataSettings
from foveal.data.checking.check import check_file
from foveal.data.dataset import read_dataset
from foveal.data.encode import count_tokens
from foveal.data.images.boxes import THOUSANDTHS, BoxFrame, BoxMap, box_edges, read_boxes
from foveal.data.turn_processor import read_as
from foveal.errors import DataError
from foveal.models.known import box_frame_of
from foveal.models.loading import load
from foveal.models.phi3_vision.image import Phi3VImageProcessor
from foveal.models.phi3_vision.read_images import CropReader

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


class SixteenCrops(CropReader):
    """The published sizes, without words."""

    image_processor = Phi3VImageProcessor(16, 336)


def test_a_page_for_phi_is_enlarged_and_stands_between_two_white_borders():
    # 5 x 3 crops of 336: 1000 x 500 becomes 1680 x 840, with 84 white pixels above and below.
    frame = SixteenCrops().box_frame(1000, 500)
    assert frame == BoxFrame((1680, 840), (0, 84), (1680, 1008))
    boxes = BoxMap(frame, box_edges("pixels", (1000, 500)))
    assert boxes.to_model("At [0, 0, 500, 250].") == "At [0, 84, 840, 504]."
    assert boxes.to_model("[500, 250, 1000, 500]") == "[840, 504, 1680, 924]"
    assert boxes.to_person("[840, 504, 1680, 924]") == "[500, 250, 1000, 500]"


def test_a_tall_page_for_phi_has_its_borders_at_the_sides():
    # 500 x 1000 becomes 840 x 1680 on a canvas of 3 x 5 crops, 1008 x 1680.
    frame = SixteenCrops().box_frame(500, 1000)
    assert frame == BoxFrame((840, 1680), (84, 0), (1008, 1680))
    boxes = BoxMap(frame, box_edges("thousandths", (500, 1000)))
    assert boxes.to_model("[500, 500, 1000, 1000]") == "[504, 840, 924, 1680]"


@pytest.mark.parametrize("size", [(1000, 500), (500, 1000), (61, 203), (300, 299)])
def test_phis_crops_show_a_marked_box_exactly_where_its_numbers_say(size):
    processor = make_processor(9)
    width, height = size
    box = width // 4, height // 3, width // 2, 3 * height // 4
    page = Image.new("RGB", size, "black")
    page.paste("white", box)
    frame = processor.box_frame(width, height)
    crops = processor.cut(page).numpy()
    rows, columns = processor.grid(width, height)
    side = crops.shape[-1]
    canvas = crops.reshape(rows, columns, 3, side, side).transpose(0, 3, 1, 4, 2)
    canvas = canvas.reshape(rows * side, columns * side, 3)[:, :, 0]
    assert canvas.shape[::-1] == frame.shown
    (left, top), (wide, high) = frame.corner, frame.size
    inside = canvas[top : top + high, left : left + wide] > 127  # borders are white, too
    ys, xs = np.nonzero(inside)
    seen = xs.min() + left, ys.min() + top, xs.max() + 1 + left, ys.max() + 1 + top
    boxes = BoxMap(frame, box_edges("pixels", size))
    (spoken,) = read_boxes(boxes.to_model(str(list(box))))
    assert np.abs(np.subtract(seen, spoken)).max() <= 1  # a blended pixel at an edge


def test_qwen2_5_speaks_in_pixels_of_the_image_that_its_processor_makes(tmp_path):
    write_tiny("qwen2_5_vl", tmp_path / "model")
    processor = load(str(tmp_path / "model"), None).processor
    made = processor._process([Image.new("RGB", (203, 151))])
    _, rows, columns = made["image_grid_thw"][0].tolist()
    patch = processor.processor.image_processor.patch_size
    assert processor.box_frame(203, 151) == BoxFrame((columns * patch, rows * patch))
    # The published one makes 1000 x 500 into 1008 x 504: multiples of 28.
    frame = box_frame_of("qwen2_5_vl", (1, 36, 72), 14)
    boxes = BoxMap(frame, box_edges("pixels", (1000, 500)))
    assert boxes.to_model("[500, 250, 1000, 500]") == "[504, 252, 1008, 504]"


def test_other_families_speak_in_thousandths_and_gemma_names_the_top_first():
    edges = box_edges("pixels", (2000, 500))
    for kind in ("qwen2_vl", "qwen3_vl", "internvl", "glm4v", "llava"):
        boxes = BoxMap(box_frame_of(kind, (), None), edges)
        assert boxes.to_model("[500, 100, 1500, 250]") == "[250, 200, 750, 500]"
    boxes = BoxMap(box_frame_of("gemma4", (), None), edges)
    assert boxes.to_model("[500, 100, 1500, 250]") == "[200, 250, 500, 750]"
    assert boxes.to_person("[200, 250, 500, 750]") == "[500, 100, 1500, 250]"


@pytest.mark.parametrize(
    ("written", "learnt"),
    [
        ('[{"bbox_2d": [10, 20, 30, 40], "label": "cat"}]', "[100, 200, 300, 400]"),
        ("<box>[[10,20,30,40],[50,60,70,80]]</box>", "[[100,200,300,400],[500,600,700,800]]"),
        ("<|box_start|>(10,20),(30,40)<|box_end|>", "(100,200),(300,400)"),
        ("[ 10.4 , 20, 30,40.04]", "[ 104 , 200, 300,400]"),
        ("[1, 2, 3] and [1, 2, 3, 4, 5] in 10, 20, 30, 40", "[1, 2, 3] and [1, 2, 3, 4, 5]"),
    ],
)
def test_numbers_of_boxes_change_and_what_stands_around_them_stays(written, learnt):
    boxes = BoxMap(THOUSANDTHS, box_edges("pixels", (100, 100)))
    made = boxes.to_model(written)
    assert learnt in made
    rest = [re.sub(r"\d+(\.\d+)?", "#", text) for text in (written, made)]
    assert rest[0] == rest[1]


@pytest.mark.parametrize(
    "box", ["[30, 20, 10, 40]", "[10, 20, 30, 20]", "[0, 0, 102, 50]", "[-3, 0, 9, 9]"]
)
def test_four_numbers_that_are_no_box_of_the_image_are_refused(box):
    boxes = BoxMap(THOUSANDTHS, box_edges("pixels", (100, 100)))
    with pytest.raises(ValueError, match=r"is none in an image of 100 x 100: write left, top"):
        boxes.to_model(f"It is at {box}.")
    boxes.to_person(box)  # a model may say what it likes


def put_data(folder, answer="At [15, 10, 30, 20].", question="Where?", images=("a.png",), **more):
    for number, name in enumerate(images):
        make_image(folder / "images" / name, number, (60 + 10 * number, 40))
    return write_data(folder / "data.jsonl", [[turn(question, answer, images, **more)]])


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    made = make_model(tmp_path_factory.mktemp("model") / "m").processor
    read_as(made, DataSettings(boxes="pixels", num_crops=4))
    return made


def learnt_text(data, processor, place=0, pairs=False):
    _, dataset = read_dataset(data, processor, pairs=pairs)
    encoded = dataset.examples[place]
    return processor.decode_answer(encoded.entries[encoded.learnt].tolist())


def test_questions_and_answers_are_learnt_in_the_models_numbers(tmp_path, processor):
    data = put_data(tmp_path, question="What is in [0, 0, 60, 40]?")
    edges = box_edges("pixels", (60, 40))
    boxes = BoxMap(processor.box_frame(60, 40), edges)
    assert learnt_text(data, processor) == boxes.to_model("At [15, 10, 30, 20].")
    assert learnt_text(data, processor) != "At [15, 10, 30, 20]."
    _, dataset = read_dataset(data, processor)
    encoded = dataset.examples[0]
    prompt = processor.decode_answer([e for e in encoded.entries.tolist() if e >= 0][3:])
    assert boxes.to_model("What is in [0, 0, 60, 40]?") in prompt


def test_rejected_answers_are_learnt_in_the_models_numbers(tmp_path, processor):
    data = put_data(tmp_path, rejected="At [0, 5, 30, 20].")
    boxes = BoxMap(processor.box_frame(60, 40), box_edges("pixels", (60, 40)))
    for place, said in enumerate(("At [15, 10, 30, 20].", "At [0, 5, 30, 20].")):
        assert learnt_text(data, processor, place, pairs=True) == boxes.to_model(said) != said


@pytest.mark.parametrize(
    ("rejected", "images", "said"),
    [
        ("At [15, 10, 70, 20].", ["a.png"], "box [15, 10, 70, 20] is none in an image of 60 x 40"),
        ("[15, 10, 30, 20]", ["a.png", "b.png"], "not all images of the example have one size"),
    ],
)
def test_what_cannot_be_a_box_of_a_rejected_answer_is_named_by_its_line(
    tmp_path, processor, rejected, images, said
):
    data = put_data(tmp_path, "nowhere", images=images, rejected=rejected)
    with pytest.raises(DataError) as error:
        read_dataset(data, processor, pairs=True)
    assert said in str(error.value)
    assert "data.jsonl:1 (example-0): " in str(error.value)
    read_dataset(data, processor)  # is not read where answers are learnt
    found = [one.message for one in check_file(data, count_tokens=partial(count_tokens, processor))]
    assert any(said in message for message in found)


def test_without_the_setting_four_numbers_are_numbers(tmp_path):
    plain = make_model(tmp_path / "model").processor
    assert learnt_text(put_data(tmp_path), plain) == "At [15, 10, 30, 20]."


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"answer": "At [15, 10, 70, 20]."}, "box [15, 10, 70, 20] is none in an image of 60 x 40"),
        ({"images": ("a.png", "b.png")}, "not all images of the example have one size"),
        ({"images": ()}, "not all images of the example have one size"),
        ({"choices": ["[1, 2, 3, 4]"]}, "choices hold boxes"),
    ],
)
def test_what_cannot_be_a_box_is_named_by_its_line_in_a_run_and_in_check(
    tmp_path, processor, more, said
):
    data = put_data(tmp_path, **more)
    with pytest.raises(DataError) as error:
        read_dataset(data, processor)
    assert said in str(error.value)
    assert "data.jsonl:1 (example-0): " in str(error.value)
    found = [one.message for one in check_file(data, count_tokens=partial(count_tokens, processor))]
    assert any(said in message for message in found)


def test_frames_of_one_size_may_share_a_box(tmp_path, processor):
    make_image(tmp_path / "images" / "a.png", 0, (60, 40))
    make_image(tmp_path / "images" / "b.png", 1, (60, 40))
    line = [[turn("Where?", "[15, 10, 30, 20]", ["a.png", "b.png"])]]
    data = write_data(tmp_path / "data.jsonl", line)
    assert learnt_text(data, processor) != "[15, 10, 30, 20]"


def test_a_setting_that_is_no_unit_is_refused():
    with pytest.raises(ValueError, match="boxes"):
        DataSettings(boxes="percent")
    assert json.loads(DataSettings(boxes="pixels").model_dump_json())["boxes"] == "pixels"
