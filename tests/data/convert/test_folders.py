"""What converting folders of classes promises, of pictures and of clips."""

from pathlib import Path

import numpy
import pytest
from layouts import assert_sound, left_out, lines_of, put_clip, put_image, put_json, turns_of
from PIL import Image

from foveal.data.convert import Options, convert, write
from foveal.data.convert.draft import Draft
from foveal.data.convert.folders import choose_classes, choose_groups, convert_ucf101
from foveal.data.convert.sources.source import Source
from foveal.data.images.clips import decode_frames
from foveal.errors import DataError

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
        put_image(source / split / name / "0001.png", shade)
    put_image(source / "stray.png")
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


def test_a_list_of_captions_beside_class_folders_drops_no_picture_and_no_class(tmp_path):
    # datasets 5.2.0 (folder_based_builder.py, _generate_examples) reads what the list names alone,
    # and no classes; `findings/datasets-imagefolder-forgets-the-unnamed.sh` shows it.
    for name in ("cat", "dog"):
        for number in range(3):
            put_image(tmp_path / "source" / name / f"{number}.png", number)
    named = '{"file_name": "cat/0.png", "caption": "a cat"}\n'
    (tmp_path / "source" / "metadata.jsonl").write_text(named)
    options = Options(validation_fraction=0)
    converted = convert("imagefolder", tmp_path / "source", tmp_path / "out", options=options)
    assert converted.counts == {"imagefolder_train": {"cat": 3, "dog": 3}}
    assert converted.left_out == {"of another kind (.jsonl)": 1}


def test_without_splits_a_share_of_each_class_is_held_out_by_the_seed(tmp_path):
    source = tmp_path / "source"
    for name in ("train", "car"):  # one class is called like a split
        for number in range(20):
            put_image(source / name / f"{number}.png", number)
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
        put_image(source / place, shade % 2)
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


def test_the_first_folder_is_the_class_whatever_lies_below_it(tmp_path):
    source = tmp_path / "source"
    for shade, name in enumerate(["cat/2020/1.png", "cat/2021/1.png", "dog/2020/1.png"]):
        put_image(source / name, shade)
    out = tmp_path / "out"
    converted = convert("imagefolder", source, out, options=Options(validation_fraction=0))
    assert converted.counts == {"imagefolder_train": {"cat": 2, "dog": 1}}
    assert not converted.left_out
    turns = turns_of(out / "imagefolder_train.jsonl")
    assert [turn["images"] for turn in turns] == [
        ["train/cat/2020/1.png"],
        ["train/cat/2021/1.png"],
        ["train/dog/2020/1.png"],
    ]


def test_clips_of_one_name_below_a_class_are_all_kept(tmp_path):
    for year in ("2020", "2021"):
        put_clip(tmp_path / "source" / "train" / "wave" / year / "1.avi")
    put_clip(tmp_path / "source" / "train" / "jump" / "1.avi")
    converted = convert("video-folder", tmp_path / "source", tmp_path / "out")
    assert converted.counts == {"video-folder_train": {"jump": 1, "wave": 2}}
    assert_sound(converted)


def test_a_folder_around_all_classes_is_passed_over_as_zips_have_it(tmp_path):
    for shade, name in enumerate(["cat", "dog"]):
        put_image(tmp_path / "source" / "photos" / name / "1.png", shade)
    converted = convert(
        "imagefolder", tmp_path / "source", tmp_path / "out", options=Options(validation_fraction=0)
    )
    assert converted.counts == {"imagefolder_train": {"cat": 1, "dog": 1}}


def test_every_file_that_is_no_picture_is_counted_by_its_kind(tmp_path):
    source = tmp_path / "source"
    put_image(source / "cat" / "1.png")
    put_image(source / "cat" / "2.jfif.png").rename(source / "cat" / "2.JFIF")
    for name in ("3.heic", "4.pdf", "5.HEIC", "LICENSE"):
        (source / "cat" / name).write_bytes(b"x")
    converted = convert("imagefolder", source, tmp_path / "out")
    assert sum(labels.total() for labels in converted.counts.values()) == 2
    assert converted.left_out == {
        "of another kind (.heic)": 2,
        "of another kind (.pdf)": 1,
        "of another kind (no ending)": 1,
    }
