"""What converting statements about pictures promises."""

from pathlib import Path

from layouts import assert_sound, put_image, put_lines, turns_of

from foveal.data.convert import convert


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


def test_nlvr2_takes_pictures_by_their_conventional_names(tmp_path):
    source = tmp_path / "source"
    rows = [
        {"sentence": "Two dogs.", "label": "True", "identifier": "dev-850-2-0"},
        {"sentence": "Three dogs.", "label": "False", "identifier": "dev-850-2-1"},
        {"sentence": "No photograph.", "label": "False", "identifier": "dev-1-0-0"},
    ]
    put_lines(source / "nlvr2" / "data" / "dev.json", *rows)
    for side in (0, 1):
        put_image(source / "images" / "dev" / f"dev-850-2-img{side}.png", side)
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
        put_image(data / "img" / f"0{number}.png", number)
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
