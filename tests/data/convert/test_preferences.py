"""Every layout in which people have pairs of answers becomes the same line."""

import io
import json

import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from foveal.data.checking.check import check_file
from foveal.data.convert import convert
from foveal.data.example import read_examples


def text(role, content, key="role"):
    return {key: role, ("content" if key == "role" else "value"): content}


IMAGE = {"type": "image"}
ASKED = [{"role": "user", "content": [IMAGE, {"type": "text", "text": "What is it?"}]}]
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
    "mmpr": {
        "image": "a.png",
        "question": "<image>\nWhat is it?",
        "chosen": YES,
        "rejected": NO,
        "image_wh": None,
    },
    "ms-swift, messages": {
        "messages": [text("user", "<image>What is it?"), text("assistant", YES)],
        "rejected_response": NO,
        "images": ["a.png"],
    },
    "ms-swift, rejected messages": {
        "messages": [*ASKED, text("assistant", YES)],
        "rejected_messages": [*ASKED, text("assistant", NO)],
        "images": ["a.png"],
    },
    "ms-swift, query": {
        "query": "<image>What is it?",
        "response": YES,
        "rejected_response": NO,
        "images": ["a.png"],
    },
    "povid": {
        "image": "a.png",
        "conversations": [
            text("human", "<image>\nWhat is it?", "from"),
            text("gpt", YES, "from"),
        ],
        "rejected_conversations": [
            text("human", "<image>\nWhat is it?", "from"),
            text("gpt", NO, "from"),
        ],
    },
    "openai": {
        "input": {"messages": ASKED, "tools": [], "parallel_tool_calls": True},
        "preferred_output": [text("assistant", YES)],
        "non_preferred_output": [text("assistant", NO)],
        "images": ["a.png"],
    },
    "trl, prompt beside and within": {
        "images": ["a.png"],
        "prompt": "What is it?",
        "chosen": [*ASKED, text("assistant", YES)],
        "rejected": [*ASKED, text("assistant", NO)],
        "messages": [*ASKED, text("assistant", YES)],
        "score_chosen": 5.0,
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


def test_several_rejected_answers_stand_in_a_list(tmp_path):
    (example,), _ = converted(tmp_path, LAYOUTS["trl, texts"] | {"rejected": [NO, "A cow."]})
    assert example.turns[0].rejected == (NO, "A cow.")


def test_parts_of_an_answer_are_one_text(tmp_path):
    parts = [{"type": "text", "text": "A dog"}, {"type": "text", "text": "in the rain."}]
    row = LAYOUTS["trl, prompt beside"] | {"chosen": [text("assistant", parts)]}
    (example,), _ = converted(tmp_path, row)
    assert example.turns[0].assistant == "A dog\nin the rain."


def test_pictures_lie_in_parquet_as_bytes_one_or_several(tmp_path):
    made = io.BytesIO()
    Image.new("RGB", (30, 20), "red").save(made, "PNG")
    image = {"bytes": made.getvalue(), "path": None}
    part, question = {"type": "image", "text": None}, {"type": "text", "text": "What is it?"}
    rows = [
        {
            "images": [image] * count,
            "prompt": [{"role": "user", "content": [part] * count + [question]}],
            "chosen": [{"role": "assistant", "content": [{"type": "text", "text": YES}]}],
            "rejected": [{"role": "assistant", "content": [{"type": "text", "text": NO}]}],
        }
        for count in (1, 2)
    ]
    source = tmp_path / "source"
    source.mkdir()
    parquet.write_table(pyarrow.Table.from_pylist(rows), source / "train-00000.parquet")
    done = convert("preferences", source, tmp_path / "out")
    examples = [one for file in done.files for one in read_examples(file)]
    assert [len(one.images) for one in examples] == [1, 2]
    for one in examples:
        assert (one.turns[0].assistant, one.turns[0].rejected) == (YES, (NO,))


@pytest.mark.parametrize("layout", ["trl, texts", "povid", "openai", "ms-swift, messages"])
def test_check_names_the_command_that_reads_rows_of_pairs(tmp_path, layout):
    row = {key: value for key, value in LAYOUTS[layout].items() if key != "images"}
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps(row) + "\n")
    (problem,) = check_file(rows)
    assert "foveal convert preferences" in problem.message


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"rejected": YES + " "}, "the answers of its pair are equal"),
        ({"rejected": " "}, "no rejected answer in it"),
        ({"chosen": None}, "no chosen answer in it"),
        ({"images": ["b.png"]}, "no picture of that name"),
        ({"tools": "[1]"}, "`tools` changes what it means, and is not obeyed"),
        (
            {"rejected": [*ASKED, *(text(who, NO) for who in ("assistant", "user", "assistant"))]},
            "end different conversations",
        ),
        ({"rejected": [NO, YES]}, "the answers of its pair are equal"),
        ({"rejected": [NO, NO]}, "the answers of its pair are equal"),
        ({"rejected": [NO, None]}, "a message that says nothing"),
        ({"rejected": [text("user", NO)]}, "is not what is asked in them"),
        (
            {"chosen": [text("user", "Else?"), text("assistant", YES)]},
            "is not what is asked in them",
        ),
        ({"rejected_images": ["a.png"]}, "`rejected_images` changes what it means"),
    ],
)
def test_a_row_that_is_no_pair_is_left_out_and_named(tmp_path, change, reason):
    rows = [LAYOUTS["trl, texts"], LAYOUTS["trl, texts"] | change]
    examples, left_out = converted(tmp_path, *rows)
    assert len(examples) == 1
    ((said, count),) = left_out.items()
    assert reason in said
    assert count == 1
