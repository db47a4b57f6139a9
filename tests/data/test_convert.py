"""What converting other layouts promises."""

import base64
import json
import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy
import pytest
from PIL import Image

from foveal.data.check import check_file
from foveal.data.convert import KINDS, Converted, Options, convert, write
from foveal.data.convert.draft import Draft, Picture
from foveal.data.convert.folders import choose_classes, choose_groups, convert_ucf101
from foveal.data.convert.source import Source
from foveal.data.convert.write import write_drafts
from foveal.data.example import Turn
from foveal.data.media import decode_frames
from foveal.errors import DataError, UserError

FIRST_TEN = [
    "ApplyEyeMakeup",
    "ApplyLipstick",
    "Archery",
    "BabyCrawling",
    "BalanceBeam",
    "BandMarching",
    "BaseballPitch",
    "Basketball",
    "BasketballDunk",
    "BenchPress",
]


def put_picture(path: Path, shade: int = 0, size: tuple[int, int] = (12, 8)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (shade % 256, shade // 256, 90)).save(path)
    return path


def picture_bytes(shade: int, kind: str = "PNG") -> bytes:
    content = BytesIO()
    Image.new("RGB", (12, 8), (shade, 0, 0)).save(content, kind)
    return content.getvalue()


def put_clip(path: Path, num_frames: int = 10) -> Path:
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as clip:
        stream = clip.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for number in range(num_frames):
            pixels = numpy.full((32, 32, 3), 20 * number, numpy.uint8)
            clip.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        clip.mux(stream.encode())
    return path


def put_json(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def put_lines(path: Path, *values: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    return path


def zip_folder(folder: Path, target: Path) -> Path:
    with zipfile.ZipFile(target, "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder))
    return target


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def turns_of(path: Path) -> list[dict[str, Any]]:
    return [line["conversations"][0] for line in lines_of(path)]


def left_out(out: Path) -> dict[str, str]:
    rows = (out / "left_out.txt").read_text(encoding="utf-8").splitlines()
    return {Path(name).name: reason for name, reason in (row.split("\t") for row in rows)}


def assert_sound(converted: Converted) -> None:
    """Hold every file against the checks that a run makes."""
    for file in converted.files:
        assert list(check_file(file)) == []


# Statements


@pytest.fixture
def nlvr(tmp_path: Path) -> Path:
    source = tmp_path / "source"
    folder = source / "nlvr" / "dev"
    rows = [
        {"sentence": "A tower. ", "label": "true", "identifier": "12-0", "directory": "3"},
        {"sentence": "No tower.", "label": "false", "identifier": "12-1"},
        {"sentence": "Lost.", "label": "true", "identifier": "99-0", "directory": "3"},
    ]
    put_lines(folder / "dev.json", *rows)
    for shade, name in enumerate(["3/dev-12-0-0", "3/dev-12-0-5", "4/dev-12-1-2"]):
        put_picture(folder / "images" / f"{name}.png", shade)
    pairs = [
        {
            "sentence": "The left image is red.",
            "left_image": "nlvr/dev/images/4/dev-12-1-2.png",
            "right_image": "nlvr/dev/images/3/dev-12-0-0.png",
            "label": "False",
            "identifier": "train-0-0-0",
        },
        {
            "sentence": "Lost.",
            "left_image": "nlvr/dev/images/4/dev-7-7-7.png",
            "right_image": "nlvr/dev/images/3/dev-12-0-0.png",
            "label": "True",
            "identifier": "train-1-0-0",
        },
    ]
    put_lines(source / "nlvr_pairs" / "train.json", *pairs)
    return source


def test_nlvr_becomes_one_example_a_permutation_and_one_a_pair(nlvr, tmp_path):
    out = tmp_path / "out"
    converted = convert("nlvr", nlvr, out)
    asked = "True or False?\n"
    singles = turns_of(out / "nlvr_dev.jsonl")
    assert [(turn["images"], turn["assistant"]) for turn in singles] == [
        (["dev/3/dev-12-0-0.png"], "True"),
        (["dev/3/dev-12-0-5.png"], "True"),
        (["dev/4/dev-12-1-2.png"], "False"),
    ]
    assert singles[0]["user"] == asked + "A tower."
    (pair,) = turns_of(out / "nlvr_pairs_train.jsonl")
    assert pair == {
        "images": ["dev/4/dev-12-1-2.png", "dev/3/dev-12-0-0.png"],  # left, right
        "user": asked + "The left image is red.",
        "assistant": "False",
        "choices": ["True", "False"],
    }
    assert converted.counts == {
        "nlvr_dev": {"True": 2, "False": 1},
        "nlvr_pairs_train": {"False": 1},
    }
    assert converted.left_out == {"no picture of that name": 2}
    assert_sound(converted)


def test_a_folder_its_zip_and_a_folder_of_zips_convert_alike(nlvr, tmp_path):
    zips = tmp_path / "zips"
    zips.mkdir()
    zip_folder(nlvr, tmp_path / "all.zip")
    for part in ("nlvr", "nlvr_pairs"):
        with zipfile.ZipFile(zips / f"{part}.zip", "w") as archive:
            for file in (nlvr / part).rglob("*"):
                archive.write(file, file.relative_to(nlvr))
    written = []
    for number, source in enumerate([nlvr, tmp_path / "all.zip", zips]):
        out = tmp_path / f"out{number}"
        convert("nlvr", source, out)
        files = [file for file in out.rglob("*") if file.suffix in (".jsonl", ".png")]
        written.append({file.relative_to(out): file.read_bytes() for file in files})
    assert len(written[0]) == 5
    assert written[0] == written[1] == written[2]


def test_the_inner_folder_may_be_given_too(nlvr, tmp_path):
    converted = convert("nlvr", nlvr / "nlvr", tmp_path / "out")
    assert converted.counts == {"nlvr_dev": {"True": 2, "False": 1}}


def test_nlvr2_takes_pictures_by_their_conventional_names(tmp_path):
    source = tmp_path / "source"
    rows = [
        {"sentence": "Two dogs.", "label": "True", "identifier": "dev-850-2-0"},
        {"sentence": "Three dogs.", "label": "False", "identifier": "dev-850-2-1"},
        {"sentence": "No photograph.", "label": "False", "identifier": "dev-1-0-0"},
    ]
    put_lines(source / "nlvr2" / "data" / "dev.json", *rows)
    for side in (0, 1):
        put_picture(source / "images" / "dev" / f"dev-850-2-img{side}.png", side)
    out = tmp_path / "out"
    converted = convert("nlvr2", source, out)
    turns = turns_of(out / "nlvr2_dev.jsonl")
    assert [turn["assistant"] for turn in turns] == ["True", "False"]
    names = [Path(name).name for name in turns[0]["images"]]
    assert names == ["dev-850-2-img0.png", "dev-850-2-img1.png"]
    assert converted.left_out == {"no picture of that name": 1}
    assert_sound(converted)


def test_memes_are_asked_about_and_a_hidden_test_set_is_left_out(tmp_path):
    data = tmp_path / "source" / "data"
    for number in (1, 2, 3):
        put_picture(data / "img" / f"0{number}.png", number)
    rows = [
        {"id": 1, "img": "img/01.png", "label": 1, "text": "so nice"},
        {"id": 2, "img": "img/02.png", "label": 0, "text": "so nice"},
        {"id": 4, "img": "img/04.png", "label": 0, "text": "not there"},
    ]
    put_lines(data / "train.jsonl", *rows)
    put_lines(data / "test.jsonl", {"id": 3, "img": "img/03.png", "text": "?"})
    out = tmp_path / "out"
    converted = convert("hateful-memes", tmp_path / "source", out)
    assert turns_of(out / "hateful-memes_train.jsonl") == [
        {
            "images": [f"train/0{number}.png"],
            "user": "Is this meme hateful? Answer Yes or No.",
            "assistant": answer,
            "choices": ["Yes", "No"],
        }
        for number, answer in ((1, "Yes"), (2, "No"))
    ]
    assert converted.left_out == {
        "no picture of that name": 1,
        "no label (a hidden test set)": 1,
    }
    assert_sound(converted)


# Folders of classes


@pytest.fixture
def ucf101(tmp_path: Path) -> Path:
    """Archery: groups 1 (test), 8, 9, 10 (train); Biking: one clip; one clip in no list."""
    source = tmp_path / "source"
    lists = source / "ucfTrainTestlist"
    lists.mkdir(parents=True)
    (lists / "classInd.txt").write_text("1 Archery\n2 Biking\n3 Rowing\n")
    train = [f"Archery/v_Archery_g{group}_c01.avi 1" for group in ("08", "09", "10")]
    train += ["Archery/v_Archery_g08_c02.avi 1", "Rowing/v_Rowing_g09_c01.avi 3"]
    (lists / "trainlist01.txt").write_text("\r\n".join(train) + "\r\n")
    (lists / "testlist01.txt").write_text(
        "Archery/v_Archery_g01_c01.avi\nBiking/v_Biking_g01_c01.avi\n"
    )
    clips = source / "UCF-101"
    for name in ("g08_c01", "g08_c02", "g09_c01", "g10_c01", "g01_c01", "g25_c07"):
        put_clip(clips / "Archery" / f"v_Archery_{name}.avi")
    put_clip(clips / "Biking" / "v_Biking_g01_c01.avi", num_frames=3)
    return source


def test_ucf101_follows_its_lists_and_takes_validation_by_whole_groups(ucf101, tmp_path):
    out = tmp_path / "out"
    converted = convert("ucf101", ucf101, out)
    sides = {
        split: {
            Path(turn["images"][0]).name[10:13] for turn in turns_of(out / f"ucf101_{split}.jsonl")
        }
        for split in ("train", "val")
    }
    assert sides["train"] | sides["val"] == {"g08", "g09", "g10"}
    assert not sides["train"] & sides["val"]
    assert len(sides["val"]) == 1
    assert converted.counts["ucf101_test"] == {"Archery": 1, "Biking": 1}
    assert converted.left_out == {
        "named by a list, but not there": 1,  # Rowing
        "in no list of this split": 1,  # g25
    }
    assert left_out(out)["v_Archery_g25_c07.avi"] == "in no list of this split"
    assert_sound(converted)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_each_official_split_has_its_own_sides_and_no_group_is_on_two(ucf101, number):
    lists = ucf101 / "ucfTrainTestlist"
    groups = ("g01", "g08", "g09", "g10", "g25")
    tested = groups[number - 1]
    names = [f"Archery/v_Archery_{group}_c0{clip}.avi" for group in groups for clip in (1, 2)]
    (lists / f"trainlist0{number}.txt").write_text(
        "".join(f"{name} 1\n" for name in names if tested not in name)
    )
    (lists / f"testlist0{number}.txt").write_text(
        "".join(f"{name}\n" for name in names if tested in name)
    )
    for name in names:
        (ucf101 / "UCF-101" / name).touch()  # a draft opens no clip
    sides: dict[str, set[str]] = {}
    drafts = convert_ucf101(Source(ucf101), Options(official_split=number))
    for draft in (one for one in drafts if isinstance(one, Draft)):
        sides.setdefault(draft.split, set()).add(draft.turns[0].images[0].split("_")[2])
    assert sides["test"] == {tested}
    assert len(sides["val"]) == 1
    assert sides["train"] == set(groups) - sides["val"] - {tested}


def test_a_clip_that_is_there_twice_is_taken_once_and_counted(ucf101, tmp_path):
    put_clip(ucf101 / "copy" / "v_Archery_g01_c01.avi", num_frames=4)
    converted = convert("ucf101", ucf101, tmp_path / "out")
    assert converted.counts["ucf101_test"]["Archery"] == 1
    assert converted.left_out["another file has its name"] == 1


def test_ucf101_lines_are_those_of_the_published_recipe(tmp_path):
    source = tmp_path / "subset"
    for class_name in FIRST_TEN:
        (source / "val" / class_name).mkdir(parents=True)
        put_clip(source / "train" / class_name / f"v_{class_name}_g01_c01.avi")
    put_clip(source / "val" / "BabyCrawling" / "v_BabyCrawling_g21_c04.avi")
    out = tmp_path / "out"
    convert("ucf101", source, out, options=Options(classes="first10"))
    (line,) = lines_of(out / "ucf101_val.jsonl")
    (turn,) = line["conversations"]
    assert line["id"] == "val-0000000010"  # ids count on through train, val and test
    assert line["source"] == "ucf101"
    stem = "val/BabyCrawling/v_BabyCrawling_g21_c04"
    assert turn["images"] == [f"{stem}.{k}.jpg" for k in range(8)]
    assert turn["user"] == (
        "Classify the video into one of the following classes: ApplyEyeMakeup, ApplyLipstick, "
        "Archery, BabyCrawling, BalanceBeam, BandMarching, BaseballPitch, Basketball, "
        "BasketballDunk, BenchPress."
    )
    assert turn["assistant"] == "BabyCrawling"
    assert turn["choices"] == FIRST_TEN
    shades = [numpy.asarray(Image.open(out / "images" / name)).mean() for name in turn["images"]]
    # Ten frames of brightness 0, 20, ..., 180; floor(k * 10 / 8) leaves out the 5th and the 10th.
    assert shades == pytest.approx([0, 20, 40, 60, 100, 120, 140, 160], abs=4)


def test_classes_and_frames_can_be_chosen(ucf101, tmp_path):
    out = tmp_path / "out"
    converted = convert("ucf101", ucf101, out, options=Options(classes="Biking", num_frames=4))
    assert converted.counts == {"ucf101_test": {"Biking": 1}}
    assert converted.left_out["class not chosen"] == 5
    (turn,) = turns_of(out / "ucf101_test.jsonl")
    assert len(turn["images"]) == 4  # of a clip of three frames
    assert turn["user"].endswith("classes: Biking.")


def test_an_unknown_class_is_named_with_the_nearest(ucf101, tmp_path):
    with pytest.raises(DataError, match="no class 'Archry'; did you mean Archery"):
        convert("ucf101", ucf101, tmp_path / "out", options=Options(classes="Archry"))


def test_a_broken_clip_is_left_out_with_its_reason(tmp_path):
    source = tmp_path / "source"
    put_clip(source / "wave" / "good [1]+!.avi")
    (source / "wave" / "bad.avi").write_bytes(b"RIFF, but no more")
    out = tmp_path / "out"
    converted = convert("video-folder", source, out, options=Options(validation_fraction=0))
    assert converted.counts == {"video-folder_train": {"wave": 1}}
    assert left_out(out)["bad.avi"].startswith("broken clip")
    (turn,) = turns_of(out / "video-folder_train.jsonl")
    assert turn["images"][0] == "train/wave/good [1]+!.0.jpg"
    assert_sound(converted)


def test_class_folders_with_splits_keep_them(tmp_path):
    source = tmp_path / "source" / "wrapped"
    for shade, (split, name) in enumerate(
        [("train", "cat"), ("train", "dog"), ("validation", "cat"), ("Test", "dog")]
    ):
        put_picture(source / split / name / "0001.png", shade)
    put_picture(source / "stray.png")
    out = tmp_path / "out"
    converted = convert("imagefolder", tmp_path / "source", out)
    assert converted.counts == {
        "imagefolder_train": {"cat": 1, "dog": 1},
        "imagefolder_val": {"cat": 1},
        "imagefolder_test": {"dog": 1},
    }
    assert converted.left_out == {"in no class folder": 1}
    ids = [line["id"] for file in converted.files for line in lines_of(file)]
    assert ids == ["train-0000000000", "train-0000000001", "val-0000000002", "test-0000000003"]
    (turn,) = turns_of(out / "imagefolder_test.jsonl")
    assert turn["user"] == "Classify the image into one of the following classes: cat, dog."
    assert (out / "images/test/dog/0001.png").read_bytes() == (
        source / "Test/dog/0001.png"
    ).read_bytes()
    assert_sound(converted)


def test_without_splits_a_share_of_each_class_is_held_out_by_the_seed(tmp_path):
    source = tmp_path / "source"
    for name in ("train", "car"):  # one class is called like a split
        for number in range(20):
            put_picture(source / name / f"{number}.png", number)
    files = {}
    for seed in (0, 0, 1):
        out = tmp_path / f"out{len(files)}"
        options = Options(seed=seed, validation_fraction=0.25)
        converted = convert("imagefolder", source, out, options=options)
        assert converted.counts == {
            "imagefolder_train": {"train": 15, "car": 15},
            "imagefolder_val": {"train": 5, "car": 5},
        }
        files[out] = (out / "imagefolder_val.jsonl").read_text()
    first, again, other = files.values()
    assert first == again
    assert first != other


def test_pictures_of_one_name_in_one_class_do_not_overwrite_each_other(tmp_path):
    source = tmp_path / "source"
    put_clip(source / "wave" / "a.avi")
    put_clip(source / "wave" / "a.mp4")
    put_clip(source / "more" / "wave" / "a.avi")
    out = tmp_path / "out"
    converted = convert("video-folder", source, out, options=Options(validation_fraction=0))
    turns = turns_of(out / "video-folder_train.jsonl")
    kept = {turn["images"][0] for turn in turns}
    assert len(kept) == len(turns)
    assert len(turns) + converted.left_out.total() == 3


def test_a_page_that_would_overwrite_another_of_its_name_is_left_out(tmp_path):
    source = tmp_path / "source"
    data = []
    for shade, place in enumerate(["one/1.png", "two/1.png", "one/1.png"]):
        put_picture(source / place, shade % 2)
        row = {"questionId": shade, "question": "?", "image": place, "answers": [place]}
        data.append(row)
    put_json(source / "train.json", {"dataset_split": "train", "data": data})
    out = tmp_path / "out"
    converted = convert("docvqa", source, out)
    assert [turn["assistant"] for turn in turns_of(out / "docvqa_train.jsonl")] == ["one/1.png"] * 2
    assert converted.left_out == {"another file has its name": 1}


def test_groups_are_drawn_by_seed_at_least_one_and_never_all():
    assert choose_groups(["a", "b", "c"], 0.01, 0) != set()
    assert len(choose_groups(["a", "b", "c"], 1.0, 0)) == 2
    assert choose_groups(["a"], 0.5, 0) == set()
    assert choose_groups(["a", "b"], 0, 0) == set()
    assert choose_groups("abcdefgh", 0.5, 3) == choose_groups("hgfedcba", 0.5, 3)


def test_the_first_classes_are_those_of_the_list():
    assert choose_classes(["b", "a", "c"], "first2") == ("b", "a")
    assert choose_classes(["b", "a", "c"], "c, b") == ("c", "b")
    assert choose_classes(["b", "a", "c"], "all") == ("b", "a", "c")


# Documents


def test_docvqa_keeps_all_answers_and_learns_one_drawn_by_the_seed(tmp_path):
    source = tmp_path / "source"
    put_picture(source / "spdocvqa_images" / "x_1.png")
    answers = [f"answer {number}" for number in range(50)]
    data = [
        {
            "questionId": 7,
            "question": "What?",
            "image": "documents/x_1.png",
            "answers": answers,
            "data_split": "train",
        },
        {"questionId": 8, "question": "Where?", "image": "documents/none.png", "answers": ["a"]},
    ]
    hidden = [{"questionId": 9, "question": "Who?", "image": "documents/x_1.png"}]
    put_json(source / "train_v1.0.json", {"dataset_split": "train", "data": data})
    put_json(source / "test_v1.0.json", {"dataset_split": "test", "data": hidden})
    put_json(source / "ocr.json", {"status": "ok"})
    learnt = []
    for number, seed in enumerate((0, 0, 1)):
        out = tmp_path / f"out{number}"
        converted = convert("docvqa", source, out, options=Options(seed=seed))
        (turn,) = turns_of(out / "docvqa_train.jsonl")
        assert turn["user"] == "What?\nAnswer briefly."
        assert turn["answers"] == answers
        assert turn["images"] == ["train/x_1.png"]
        learnt.append(turn["assistant"])
        assert converted.left_out == {
            "no page of that name": 1,
            "no answers (a hidden test set)": 1,
        }
    assert learnt[0] == learnt[1] != learnt[2]
    assert set(learnt) <= set(answers)


def box(number: int, label: str, text: str, *linked: int) -> dict[str, Any]:
    """Write one box of a FUNSD form; question 1 linked to answer 2 is [1, 2] in both."""
    linking = [[number, other] if label == "question" else [other, number] for other in linked]
    return {"id": number, "label": label, "text": text, "linking": linking}


def test_funsd_asks_for_fields_with_one_short_answer(tmp_path):
    form = [
        box(0, "question", "Date:", 1),
        box(1, "answer", "May 5", 0),
        box(2, "question", "Names", 3, 4),  # two answers
        box(3, "answer", "A", 2),
        box(4, "answer", "B", 2),
        box(5, "question", "Phone", 6),  # the key stands twice
        box(6, "answer", "1", 5),
        box(7, "question", "Phone :", 8),
        box(8, "answer", "2", 7),
        box(9, "question", "Story", 10),  # too long
        box(10, "answer", "w" * 81, 9),
        box(11, "question", "Empty", 12),
        box(12, "answer", " ", 11),
        box(13, "header", "FORM"),
    ]
    data = tmp_path / "source" / "dataset"
    for split, name in (("training", "1"), ("training", "2"), ("testing", "3"), ("testing", "4")):
        put_json(data / f"{split}_data" / "annotations" / f"{name}.json", {"form": form})
        if name != "4":
            put_picture(data / f"{split}_data" / "images" / f"{name}.png", int(name))
    out = tmp_path / "out"
    converted = convert("funsd", tmp_path / "source", out)
    assert converted.counts == {f"funsd_{split}": {"": 1} for split in ("train", "val", "test")}
    (turn,) = turns_of(out / "funsd_test.jsonl")
    assert turn == {
        "images": ["test/3.png"],
        "user": 'What is the value of the field "Date"?\nAnswer briefly.',
        "assistant": "May 5",
        "answers": ["May 5"],
    }
    assert converted.left_out == {"no page of that name": 1}
    assert_sound(converted)


def test_sroie_asks_four_questions_a_receipt(tmp_path):
    data = tmp_path / "source" / "data"
    values = {"company": "INDAH", "date": "19/10/2018", "address": "27, JALAN", "total": "60.30"}
    put_json(data / "key" / "001.json", values)
    put_json(data / "key" / "002.json", {"company": "ONE", "total": " "})
    for name in ("001", "002"):
        put_picture(data / "img" / f"{name}.jpg")
    out = tmp_path / "out"
    options = Options(validation_fraction=0)
    converted = convert("sroie", tmp_path / "source", out, options=options)
    answers = [turn["assistant"] for turn in turns_of(out / "sroie_train.jsonl")]
    assert answers == ["INDAH", "19/10/2018", "27, JALAN", "60.30", "ONE"]
    assert converted.left_out == {"no such field on the receipt": 3}
    assert_sound(converted)


# Columns


def put_parquet(
    path: Path, columns: dict[str, Sequence[Any]], pictures: Sequence[str] = ()
) -> None:
    """Write Parquet as the hub has it: pictures as bytes and path, named as such."""
    import datasets

    path.parent.mkdir(parents=True, exist_ok=True)
    table = datasets.Dataset.from_dict(dict(columns))
    for name in pictures:
        nested = isinstance(columns[name][0], list)
        feature = datasets.List(datasets.Image()) if nested else datasets.Image()
        table = table.cast_column(name, feature)
    table.to_parquet(str(path))


def encoded(shade: int, kind: str = "PNG") -> dict[str, Any]:
    return {"bytes": picture_bytes(shade, kind), "path": None}


def test_docvqa_columns_of_the_hub_are_read_and_a_page_is_stored_once(tmp_path):
    source = tmp_path / "source"
    columns = {
        "id": ["a", "b", "c"],
        "image": [encoded(1), encoded(1), encoded(2, "JPEG")],
        "query": [{"en": f"What {n}?", "de": f"Was {n}?"} for n in range(3)],
        "answers": [["x", "y"], ["z"], []],
    }
    put_parquet(source / "data" / "train-00000-of-00001.parquet", columns, ["image"])
    put_parquet(source / "data" / "test-00000-of-00001.parquet", columns, ["image"])
    out = tmp_path / "out"
    converted = convert("docvqa", source, out)
    turns = turns_of(out / "docvqa_train.jsonl")
    assert [turn["user"] for turn in turns] == [f"What {n}?\nAnswer briefly." for n in (0, 1)]
    assert turns[0]["assistant"] in turns[0]["answers"] == ["x", "y"]
    assert turns[0]["images"] == turns[1]["images"]
    assert len(list((out / "images" / "train").iterdir())) == 1
    assert (out / "images" / turns[0]["images"][0]).read_bytes() == picture_bytes(1)
    assert converted.counts == {"docvqa_train": {"": 2}, "docvqa_test": {"": 2}}
    assert converted.left_out == {"no question with an answer in the row": 2}
    assert_sound(converted)


@pytest.mark.parametrize(
    ("kind", "answers", "choices"),
    [
        ("nlvr2", ["Yes.", "No."], ["Yes.", "No."]),
        ("hateful-memes", ["No", "Yes"], ["Yes", "No"]),
        ("docvqa", ["Yes.", "12."], None),
    ],
)
def test_columns_of_the_cauldron_are_read_and_its_first_rows_are_val(
    tmp_path, kind, answers, choices
):
    source, number = tmp_path / "source", 20
    columns = {
        "images": [[encoded(row), encoded(row + 100)] for row in range(number)],
        "texts": [
            [
                {"user": f"{row}?", "assistant": answers[row % 2], "source": "x"},
                {"user": f"and {row}?", "assistant": answers[1 - row % 2], "source": "x"},
            ]
            for row in range(number)
        ],
    }
    put_parquet(source / "train-00000-of-00001-abc.parquet", columns, ["images"])
    out = tmp_path / "out"
    converted = convert(kind, source, out)
    val = turns_of(out / f"{kind}_val.jsonl")
    assert [turn["user"] for turn in val] == ["0?", "and 0?", "1?", "and 1?"]  # a tenth
    assert len(turns_of(out / f"{kind}_train.jsonl")) == 36
    assert val[0]["images"] == val[1]["images"]
    assert len(val[0]["images"]) == 2
    assert [turn["assistant"] for turn in val[:2]] == answers
    assert all(turn.get("choices") == choices for turn in val)
    assert_sound(converted)


def test_a_row_with_a_broken_picture_is_left_out(tmp_path):
    source = tmp_path / "source"
    columns = {
        "image": [encoded(1), {"bytes": picture_bytes(2)[:40], "path": None}],
        "query": ["Well?", "Broken?"],
        "answers": [["x"], ["y"]],
    }
    put_parquet(source / "test.parquet", columns)  # plain bytes and path, no feature named
    converted = convert("docvqa", source, tmp_path / "out")
    assert converted.counts == {"docvqa_test": {"": 1}}
    assert converted.left_out.total() == 1


def test_rows_that_break_off_are_a_mendable_error(tmp_path):
    columns = {"image": [encoded(1)], "query": ["Well?"], "answers": [["x"]]}
    path = tmp_path / "source" / "train.parquet"
    put_parquet(path, columns)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match="source") as error:
        convert("docvqa", tmp_path / "source", tmp_path / "out")
    assert "\n" not in str(error.value)


def test_a_missing_datasets_package_is_said_in_one_line(tmp_path, monkeypatch):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "train.parquet").touch()
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install foveal\[data\]"):
        convert("nlvr2", tmp_path / "source", tmp_path / "out")


# Conversations


def test_llava_conversations_become_turns_with_their_pictures(tmp_path):
    source = tmp_path / "source"
    for name in ("coco/1.jpg", "gqa/1.jpg"):
        put_picture(source / name, len(name))
    rows = [
        {
            "id": "one",
            "image": "coco/1.jpg",
            "conversations": [
                {"from": "human", "value": "<image>\nWhat is it?"},
                {"from": "gpt", "value": "A dog."},
                {"from": "human", "value": "Sure?"},
                {"from": "gpt", "value": "Yes."},
            ],
        },
        {
            "image": ["coco/1.jpg", "gqa/1.jpg"],
            "conversations": [
                {"from": "system", "value": "Be brief."},
                {"from": "human", "value": "Is <image> like <image>?"},
                {"from": "gpt", "value": "No."},
            ],
        },
        {"image": "coco/1.jpg", "conversations": [{"from": "human", "value": "<image>"}]},
        {
            "image": "coco/2.jpg",
            "conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "!"}],
        },
        {
            "image": "coco/1.jpg",
            "conversations": [
                {"from": "human", "value": "<image><image>?"},
                {"from": "gpt", "value": "!"},
            ],
        },
        "text",
    ]
    put_json(source / "llava_train.json", rows)
    out = tmp_path / "out"
    converted = convert("llava", source, out)
    first, second = (line["conversations"] for line in lines_of(out / "llava_train.jsonl"))
    assert first == [
        {"images": ["train/coco/1.jpg"], "user": "What is it?", "assistant": "A dog."},
        {"user": "Sure?", "assistant": "Yes."},
    ]
    assert second == [
        {
            "images": ["train/coco/1.jpg", "train/gqa/1.jpg"],
            "user": "Be brief.\nIs <|image_1|> like <|image_2|>?",
            "assistant": "No.",
        }
    ]
    assert converted.left_out == {
        "user and assistant do not take turns": 1,
        "no picture of that name": 1,
        "more <image> than pictures": 1,
        "no list of messages in it": 1,
    }
    assert_sound(converted)


def test_messages_with_image_parts_become_turns(tmp_path):
    source = tmp_path / "source"
    put_picture(source / "a.png")
    address = "data:image/png;base64," + base64.b64encode(picture_bytes(7)).decode()
    put_lines(
        source / "chat_val.jsonl",
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "image", "image": "a.png"},
                        {"type": "image_url", "image_url": {"url": address}},
                        {"type": "text", "text": "Which is red?"},
                    ],
                },
                {"role": "assistant", "content": [{"type": "text", "text": "The second."}]},
            ]
        },
        {
            "messages": [
                {"role": "user", "content": "<image>What?"},
                {"role": "assistant", "content": "A."},
                {"role": "user", "content": "And <image>?"},
                {"role": "assistant", "content": "B."},
            ],
            "images": ["a.png", "a.png"],
        },
        {
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "image_url", "image_url": {"url": "https://x.org/a.png"}}],
                },
                {"role": "assistant", "content": "!"},
            ]
        },
    )
    out = tmp_path / "out"
    converted = convert("sharegpt", source, out)
    first, second = (line["conversations"] for line in lines_of(out / "sharegpt_val.jsonl"))
    assert first[0]["user"] == "Which is red?"
    assert first[0]["images"][0] == "val/a.png"
    assert (out / "images" / first[0]["images"][1]).read_bytes() == picture_bytes(7)
    assert [turn["user"] for turn in second] == ["What?", "And <|image_1|>?"]
    assert [turn["images"] for turn in second] == [["val/a.png"]] * 2
    assert converted.left_out == {"a picture on the web; fetch it and name its file": 1}
    assert_sound(converted)


# Starting, stopping, safety


def snapshot(out: Path) -> dict[str, tuple[int, int]]:
    files = sorted((out / "images").rglob("*.png"))
    return {str(file): (file.stat().st_mtime_ns, file.stat().st_ino) for file in files}


def test_a_killed_conversion_goes_on_and_keeps_finished_pictures(tmp_path):
    source, out = tmp_path / "source", tmp_path / "out"
    for number in range(30):
        put_picture(source / "cat" / f"{number:02}.png", number)
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from foveal.data.convert import convert\n"
        "def stop(done, total):\n"
        "    if done == 10: os.kill(os.getpid(), signal.SIGKILL)\n"
        "convert('imagefolder', Path(sys.argv[1]), Path(sys.argv[2]), progress=stop)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(source), str(out)], check=False)
    assert killed.returncode == -signal.SIGKILL
    before = snapshot(out)
    assert len(before) == 10
    assert not list(out.glob("*.jsonl"))  # a run cannot take it for finished
    (out / "images" / "train" / "cat" / "11.png.77.part").write_bytes(b"cut off")
    seen = []
    converted = convert("imagefolder", source, out, progress=lambda *step: seen.append(step))
    after = snapshot(out)
    assert len(after) == 30
    assert {name: after[name] for name in before} == before
    assert seen == [(done, 30) for done in range(1, 31)]
    assert not list(out.rglob("*.part"))
    convert("imagefolder", source, tmp_path / "straight")
    for file in converted.files:
        assert file.read_bytes() == (tmp_path / "straight" / file.name).read_bytes()


def test_frames_that_are_there_are_not_decoded_again(ucf101, tmp_path, monkeypatch):
    out = tmp_path / "out"
    first = convert("ucf101", ucf101, out)
    lines = [file.read_bytes() for file in first.files]
    lost = next((out / "images").rglob("*g08_c02.3.jpg"))
    lost.unlink()
    decoded = []
    monkeypatch.setattr(
        write, "decode_frames", lambda *given: decoded.append(given[1]) or decode_frames(*given)
    )
    again = convert("ucf101", ucf101, out)
    assert [Path(name).name for name in decoded] == ["v_Archery_g08_c02.avi"]
    assert lost.exists()
    assert (again.counts, again.left_out) == (first.counts, first.left_out)
    assert [file.read_bytes() for file in again.files] == lines


def test_another_conversion_cannot_go_on_in_the_same_folder(tmp_path):
    source, out = tmp_path / "source", tmp_path / "out"
    put_picture(source / "cat" / "1.png")
    convert("imagefolder", source, out)
    convert("imagefolder", source, out)
    with pytest.raises(DataError, match="other options"):
        convert("imagefolder", source, out, options=Options(seed=5))
    put_picture(source / "cat" / "2.png")
    with pytest.raises(DataError, match="other files"):
        convert("imagefolder", source, out)


def test_a_folder_with_other_things_in_it_is_not_written_to(tmp_path):
    put_picture(tmp_path / "source" / "cat" / "1.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").touch()
    with pytest.raises(DataError, match="not empty"):
        convert("imagefolder", tmp_path / "source", tmp_path / "out")
    with pytest.raises(DataError, match="inside the source"):
        convert("imagefolder", tmp_path / "source", tmp_path / "source" / "out")


def test_processes_write_the_same_files(tmp_path):
    source = tmp_path / "source"
    for number in range(40):
        put_picture(source / "cat" / f"{number:02}.png", number)
    (source / "cat" / "20.png").write_bytes(b"\x89PNG broken")
    results = [convert("imagefolder", source, tmp_path / str(n), workers=n) for n in (1, 2)]
    assert results[0].counts == results[1].counts
    assert results[0].left_out == results[1].left_out
    assert results[0].left_out.total() == 1
    for one, other in zip(results[0].files, results[1].files, strict=True):
        assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize(
    "name", ["../../evil.png", "/evil.png", "a/../../../evil.png", "..\\evil.png"]
)
def test_a_zip_cannot_write_outside_the_folder(tmp_path, name):
    archive_path = tmp_path / "a" / "b" / "source.zip"
    archive_path.parent.mkdir(parents=True)
    with zipfile.ZipFile(archive_path, "w") as archive:
        archive.writestr(f"cat/{name}", picture_bytes(1))
        archive.writestr(f"{name}", picture_bytes(2))
        archive.writestr("cat/good.png", picture_bytes(3))
    out = tmp_path / "a" / "b" / "out"
    convert("imagefolder", archive_path, out)
    outside = [file for file in tmp_path.rglob("*.png") if not file.is_relative_to(out)]
    assert outside == []
    assert not Path("/evil.png").exists()
    assert (out / "images" / "train" / "cat" / "good.png").exists()


@pytest.mark.parametrize("target", ["../evil.png", "/evil.png", "val/../../evil.png", "a\nb.png"])
def test_a_converter_cannot_write_outside_the_folder_either(tmp_path, target):
    turn = Turn(user="?", assistant="!")
    drafts = [
        Draft("val", (turn,), (Picture(picture_bytes(shade), name),))
        for shade, name in enumerate(["val/good.png", target])
    ]
    converted = write_drafts(drafts, tmp_path / "a" / "out", "any")
    assert converted.left_out.total() == 1
    assert [file.name for file in tmp_path.rglob("*.png")] == ["good.png"]


def test_a_link_out_of_the_folder_is_left_out(tmp_path):
    secret = put_picture(tmp_path / "secret.png")
    put_picture(tmp_path / "source" / "cat" / "1.png")
    (tmp_path / "source" / "cat" / "2.png").symlink_to(secret)
    put_picture(tmp_path / "elsewhere" / "dog" / "3.png")
    (tmp_path / "source" / "dog").symlink_to(tmp_path / "elsewhere" / "dog")
    converted = convert("imagefolder", tmp_path / "source", tmp_path / "out")
    assert converted.left_out == {"a link out of the source, or to a folder": 2}
    assert set(left_out(tmp_path / "out")) == {"2.png", "dog"}
    assert len(list((tmp_path / "out").rglob("*.png"))) == 1


def test_an_entry_is_found_by_the_longest_common_end_of_its_path(tmp_path):
    for place in ("x/train/img/1.png", "x/test/img/1.png", "x/test/img/2.png"):
        put_picture(tmp_path / place)
    source = Source(tmp_path)

    def found(name: str) -> str | None:
        entry = source.find(name)
        return entry.name if entry else None

    assert found("train/img/1.png") == "x/train/img/1.png"
    assert found("other/test/img/1.png") == "x/test/img/1.png"
    assert found("img/1.png") is None  # two fit equally well
    assert found("elsewhere/2.png") == "x/test/img/2.png"
    assert found("3.png") is None


def test_what_cannot_be_a_source_is_said_in_one_line(tmp_path):
    (tmp_path / "file.txt").write_text("text")
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "data.zip").write_bytes(b"PK, but no more")
    for name, message in [
        ("none", "give a folder or a zip"),
        ("file.txt", "give a folder or a zip"),
        ("empty", "nothing in it"),
        ("broken", "broken zip"),
    ]:
        with pytest.raises(DataError, match=message):
            convert("imagefolder", tmp_path / name, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_a_source_of_another_kind_is_said_in_one_line(tmp_path, kind):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "readme.txt").write_text("nothing here")
    with pytest.raises(DataError, match="source") as error:
        convert(kind, tmp_path / "source", tmp_path / "out")
    assert "\n" not in str(error.value)


def test_an_unknown_kind_lists_the_known_ones(tmp_path):
    with pytest.raises(DataError, match=r"coco: unknown kind.*ucf101"):
        convert("coco", tmp_path, tmp_path / ".." / "out")


def test_a_conversion_without_an_example_says_why_most_were_left_out(tmp_path):
    for number in range(3):
        (tmp_path / "source" / "cat").mkdir(parents=True, exist_ok=True)
        (tmp_path / "source" / "cat" / f"{number}.png").touch()
    with pytest.raises(DataError, match="no example came out of it; left out: 3 x"):
        convert("imagefolder", tmp_path / "source", tmp_path / "out")
    assert os.listdir(tmp_path / "out") == ["conversion.json"]
