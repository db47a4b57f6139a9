"""Every layout in which people have pairs of answers becomes the same line."""

import json

import pytest
from PIL import Image

from foveal.data.convert import convert
from foveal.data.example import read_examples


def text(role, content, key="role"):
    return {key: role, ("content" if key == "role" else "value"): content}


PICTURE = {"type": "image"}
ASKED = [{"role": "user", "content": [PICTURE, {"type": "text", "text": "What is it?"}]}]
YES, NO = "A dog.", "A cat."
LAYOUTS = {
    "trl, prompt beside": {
        "images": ["a.png"],
        "prompt": ASKED,
        "chosen": [text("assistant", YES)],
        "rejected": [text("assistant", [{"type": "text", "text": NO}])],
    },
    "trl, prompt within": {
        "images": ["a.png"],
        "chosen": [*ASKED, text("assistant", YES)],
        "rejected": [*ASKED, text("assistant", NO)],
    },
    "trl, texts": {"images": ["a.png"], "prompt": "What is it?", "chosen": YES, "rejected": NO},
    "rlhf-v": {
        "ds_name": "RLHF-V",
        "image": "a.png",
        "text": json.dumps({"question": "What is it?", "chosen": YES, "rejected": NO}),
        "origin_dataset": "LCS-558K",
        "idx": 0,
    },
    "rlaif-v": {
        "ds_name": "RLAIF-V",
        "image": "a.png",
        "question": "What is it?",
        "chosen": YES,
        "rejected": NO,
        "origin_split": '{"model": "x"}',
        "idx": "1",
        "image_path": "",
    },
    "llama-factory, sharegpt": {
        "conversations": [text("human", "<image>What is it?", "from")],
        "chosen": text("gpt", YES, "from"),
        "rejected": text("gpt", NO, "from"),
        "images": ["a.png"],
    },
    "llama-factory, alpaca": {
        "instruction": "What is it?",
        "input": "",
        "chosen": YES,
        "rejected": NO,
        "images": ["a.png"],
    },
}


def converted(tmp_path, *rows):
    source = tmp_path / "source"
    source.mkdir()
    Image.new("RGB", (30, 20), "red").save(source / "a.png")
    (source / "train.json").write_text(json.dumps(list(rows)))
    done = convert("preferences", source, tmp_path / "out")
    return [one for file in done.files for one in read_examples(file)], done.left_out


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_becomes_a_turn_with_its_rejected_answer(tmp_path, layout):
    (example,), left_out = converted(tmp_path, LAYOUTS[layout])
    (turn,) = example.turns
    assert (turn.user, turn.assistant, turn.rejected) == ("What is it?", YES, (NO,))
    assert len(turn.images) == 1
    assert not left_out


def test_turns_before_the_pair_are_kept_and_compare_nothing(tmp_path):
    row = {
        "images": ["a.png"],
        "system": "Be brief.",
        "chosen": [*ASKED, text("assistant", "It."), text("user", "Sure?"), text("assistant", YES)],
        "rejected": [
            *ASKED,
            text("assistant", "It."),
            text("user", "Sure?"),
            text("assistant", NO),
        ],
    }
    (example,), _ = converted(tmp_path, row)
    assert [turn.rejected for turn in example.turns] == [(), (NO,)]
    assert example.system == "Be brief."


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"rejected": YES + " "}, "the answers of its pair are equal"),
        ({"rejected": " "}, "no rejected answer in it"),
        ({"chosen": None}, "no chosen answer in it"),
        ({"images": ["b.png"]}, "no picture of that name"),
        ({"tools": "[1]"}, "`tools` changes what it means, and is not obeyed"),
        ({"rejected": [*ASKED, text("assistant", NO)]}, "end different conversations"),
    ],
)
def test_a_row_that_is_no_pair_is_left_out_and_named(tmp_path, change, reason):
    rows = [LAYOUTS["trl, texts"], LAYOUTS["trl, texts"] | change]
    examples, left_out = converted(tmp_path, *rows)
    assert len(examples) == 1
    ((said, count),) = left_out.items()
    assert reason in said
    assert count == 1
