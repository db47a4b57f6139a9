"""What converting conversations of other tools promises."""

import base64
from pathlib import Path
from typing import Any

import pytest
from layouts import (
    assert_sound,
    image_bytes,
    lines_of,
    put_image,
    put_json,
    put_lines,
)

from foveal.data.convert import convert


def test_llava_conversations_become_turns_with_their_pictures(tmp_path):
    source = tmp_path / "source"
    for name in ("coco/1.jpg", "gqa/1.jpg"):
        put_image(source / name, len(name))
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
    lines = lines_of(out / "llava_train.jsonl")
    assert [line.get("system") for line in lines] == [None, "Be brief."]
    first, second = (line["conversations"] for line in lines)
    assert first == [
        {"images": ["train/coco/1.jpg"], "user": "What is it?", "assistant": "A dog."},
        {"user": "Sure?", "assistant": "Yes."},
    ]
    assert second == [
        {
            "images": ["train/coco/1.jpg", "train/gqa/1.jpg"],
            "user": "Is <|image_1|> like <|image_2|>?",
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
    put_image(source / "a.png")
    address = "data:image/png;base64," + base64.b64encode(image_bytes(7)).decode()
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
    assert (out / "images" / first[0]["images"][1]).read_bytes() == image_bytes(7)
    assert [turn["user"] for turn in second] == ["What?", "And <|image_1|>?"]
    assert [turn["images"] for turn in second] == [["val/a.png"]] * 2
    assert converted.left_out == {"a picture on the web; fetch it and name its file": 1}
    assert_sound(converted)


@pytest.mark.parametrize(
    ("parts", "user"),
    [
        (["a.png", "What?"], "What?"),
        (["What?", "a.png"], "What?"),
        (["First.", "Second.", "a.png"], "First.\nSecond."),
        (["Is", "a.png", "a cat?"], "Is\n<|image_1|>\na cat?"),
        (["a.png", "like", "a.png"], "<|image_1|>\nlike\n<|image_2|>"),
        (["a.png", "Is <|image_2|> <|image_1|>?", "a.png"], "Is <|image_2|> <|image_1|>?"),
        (["Is <image> like", "a.png", "?"], "Is <|image_1|> like<|image_2|>?"),
    ],
)
def test_parts_in_any_order_become_the_turn_that_is_asked_for_in_serving(tmp_path, parts, user):
    put_image(tmp_path / "source" / "a.png")
    content = [
        {"type": "image", "image": part, "text": None}
        if part.endswith(".png")
        else {"type": "text", "text": part, "image": None}
        for part in parts
    ]
    said = [{"role": "user", "content": content}, {"role": "assistant", "content": "Yes."}]
    beside = ["a.png"] * sum("<image>" in part for part in parts)
    put_lines(tmp_path / "source" / "chat_train.jsonl", {"messages": said, "images": beside})
    convert("sharegpt", tmp_path / "source", tmp_path / "out")
    (line,) = lines_of(tmp_path / "out" / "sharegpt_train.jsonl")
    (turn,) = line["conversations"]
    assert turn["user"] == user
    assert len(turn["images"]) == sum(part.endswith(".png") for part in parts) + len(beside)


def said(user: Any, assistant: Any = "Red", **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
    return {"images": ["a.png"], "messages": messages} | more


def converted(folder: Path, *rows: dict[str, Any]) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Convert rows that show a.png and b.png, with one sound row before them."""
    put_image(folder / "source" / "a.png", 1)
    put_image(folder / "source" / "b.png", 2)
    put_json(folder / "source" / "chat.json", [said("sound?"), *rows])
    done = convert("sharegpt", folder / "source", folder / "out")
    assert_sound(done)
    return lines_of(folder / "out" / "sharegpt_train.jsonl")[1:], dict(done.left_out)


@pytest.mark.parametrize(
    ("row", "system"),
    [
        (said("?", system="Be brief."), "Be brief."),
        (said("?", system_prompt="Be brief."), "Be brief."),
        (said("?", system=None), None),
        (said("?", system=" "), None),
    ],
)
def test_what_a_row_says_of_the_system_is_kept_apart_from_the_user(tmp_path, row, system):
    ((line,), _) = converted(tmp_path, row)
    assert line.get("system") == system
    assert line["conversations"][0]["user"] == "?"


@pytest.mark.parametrize("role", ["system", "developer"])
def test_several_system_texts_are_joined_by_an_empty_line(tmp_path, role):
    row = said("?", system="First.")
    row["messages"][:0] = [
        {"role": role, "content": "Second."},
        {"role": role, "content": [{"type": "text", "text": "Third."}]},
        {"role": role, "content": []},
    ]
    ((line,), _) = converted(tmp_path, row)
    assert line["system"] == "First.\n\nSecond.\n\nThird."


def test_nulls_of_an_arrow_round_trip_are_absent(tmp_path):
    shown = {"type": "image", "text": None, "image": None, "path": "a.png", "index": None}
    asked = {"type": "text", "text": "Which?", "image": None, "path": None, "index": None}
    row = said([shown, asked], [asked | {"text": "Red"}], images=None, videos=None, tools=[])
    row["messages"][1] |= {"tool_calls": None, "weight": None}
    ((line,), reasons) = converted(tmp_path, row)
    (turn,) = line["conversations"]
    assert (turn["user"], turn["assistant"], turn["images"]) == ("Which?", "Red", ["train/a.png"])
    assert reasons == {}


def test_a_picture_that_message_and_row_name_is_shown_once(tmp_path):
    shown = [{"type": "image", "image": "a.png"}, {"type": "text", "text": "Which?"}]
    ((line,), _) = converted(tmp_path, said(shown))
    assert line["conversations"][0]["images"] == ["train/a.png"]


def test_image_parts_take_the_rows_pictures_by_their_number_or_in_order(tmp_path):
    """As TRL's sets have them."""
    parts = [{"type": "image", "index": 1, "text": None}, {"type": "image", "index": 0}]
    asked = {"type": "text", "index": None, "text": "Which?"}
    two = ["a.png", "b.png"]
    unnumbered = [{"type": "image"}, {"type": "image"}]
    lines, _ = converted(
        tmp_path, said([*parts, asked], images=two), said([*unnumbered, asked], images=two)
    )
    shown = [line["conversations"][0]["images"] for line in lines]
    assert shown == [["train/b.png", "train/a.png"], ["train/a.png", "train/b.png"]]


def test_a_place_in_a_text_part_keeps_its_place_among_parts_with_pictures(tmp_path):
    parts = [
        {"type": "text", "text": "<image> or "},
        {"type": "image", "image": "b.png"},
        {"type": "text", "text": "?"},
    ]
    ((line,), _) = converted(tmp_path, said(parts))
    assert line["conversations"][0]["images"] == ["train/a.png", "train/b.png"]


BOXES = '```json\n[{"bbox_2d": [1, 2, 30, 40], "label": "dog"}]\n```'


def spoken(*texts, **more):
    """Messages as ShareGPT, LLaVA and those after them have them."""
    who = ("human", "gpt") * len(texts)
    return {
        "conversations": [
            {"from": one, "value": text} for one, text in zip(who, texts, strict=False)
        ],
        **more,
    }


@pytest.mark.parametrize(
    ("row", "turns", "images"),
    [
        pytest.param(
            spoken("<image>\nColour?", "Red.", image="a.png"), [("Colour?", "Red.")], 1, id="llava"
        ),
        pytest.param(
            spoken("Colour?\n<image>", "Red.", image="a.png"),
            [("Colour?\n<|image_1|>", "Red.")],
            1,
            id="llava, the picture behind",
        ),
        pytest.param(
            spoken("<image>Who?", "Ann.", "And?", "Bob.", images=["a.png"], system="", tools=""),
            [("Who?", "Ann."), ("And?", "Bob.")],
            1,
            id="llama-factory, sharegpt",
        ),
        pytest.param(
            said("<image>Who is left of <image>?", "Ann.", images=["a.png", "b.png"]),
            [("<|image_1|>Who is left of <|image_2|>?", "Ann.")],
            2,
            id="llama-factory, tags in the text",
        ),
        pytest.param(
            spoken("<image>\n<image>\nSame?", "No.", images=["a.png", "b.png"]),
            [("Same?", "No.")],
            2,
            id="qwen, several",
        ),
        pytest.param(
            spoken("<image>\nSame?", "No.", image=["a.png"]), [("Same?", "No.")], 1, id="qwen, list"
        ),
        pytest.param(
            spoken("<image>\nWhere is the dog?", BOXES, image="a.png"),
            [("Where is the dog?", BOXES)],
            1,
            id="qwen, boxes",
        ),
        pytest.param(
            said("<image><image>Same?", "No.", images=["a.png", "b.png"]),
            [("Same?", "No.")],
            2,
            id="ms-swift",
        ),
        pytest.param(
            said("<image>Same?", "No.", images=[{"bytes": None, "path": "a.png"}], objects=None),
            [("Same?", "No.")],
            1,
            id="ms-swift, images as Arrow has them",
        ),
        pytest.param(
            said(
                [{"type": "image", "text": None, "index": 0}, {"type": "text", "text": "Same?"}],
                [{"type": "text", "text": "No.", "index": None}],
                images=["a.png"],
            ),
            [("Same?", "No.")],
            1,
            id="trl",
        ),
    ],
)
def test_rows_of_peers_are_the_turns_that_they_are(tmp_path, row, turns, images):
    lines, reasons = converted(tmp_path, row)
    assert reasons == {}
    ((line),) = lines
    made = line["conversations"]
    assert [(one["user"], one["assistant"]) for one in made] == turns
    assert [len(one.get("images", ())) for one in made] == [images] + [0] * (len(turns) - 1)


CALL = [{"name": "look", "arguments": {}}]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (said("?", None), "a message that says nothing"),
        (said("?", []), "a message that says nothing"),
        (said(None), "a message that says nothing"),
        (said("?", videos=["a.mp4"]), "`videos` changes what it means"),
        (said("?", tools=CALL), "`tools` changes what it means"),
        (said("<video>?"), "another tool's tag in a text (<video>)"),
        (said("Picture 1: <img>a.png</img>?"), "another tool's tag in a text (<img>)"),
        (said("Where is <ref-object>?", "<bbox>"), "another tool's tag in a text (<ref-object>)"),
        (said("?", "<image>"), "a message of the assistant with a picture"),
        (said([{"type": "video", "video": "a.mp4"}]), "neither text nor image (video)"),
        (said([{"type": "input_audio", "input_audio": {}}]), "neither text nor image"),
        (said(["?"]), "neither text nor image"),
        (said("?", images=[["a.png"]]), "neither bytes nor a path"),
        (said("?", images=["a.png", None]), "neither bytes nor a path"),
        (said("?", images=[{"bytes": None, "path": "none.png"}]), "no picture of that name"),
        (said({"en": None, "de": "?"}), "a message that is a mapping of de"),
    ],
)
def test_what_cannot_be_an_example_is_left_out_for_its_true_reason(tmp_path, row, reason):
    lines, reasons = converted(tmp_path, row)
    assert lines == []
    ((told, count),) = reasons.items()
    assert reason in told
    assert count == 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"tool_calls": CALL}, "an answer that calls a tool: `tool_calls`"),
        ({"tool_calls": CALL, "content": None}, "an answer that calls a tool: `tool_calls`"),
        ({"function_call": CALL[0]}, "an answer that calls a tool: `function_call`"),
        ({"weight": 0}, "`weight` changes what it means"),
        ({"loss": False}, "`loss` changes what it means"),
        ({"refusal": "No."}, "`refusal` changes what it means"),
        ({"role": "tool"}, "a tool speaks in it (tool)"),
        ({"role": "observation"}, "a tool speaks in it (observation)"),
        ({"role": "narrator"}, "nobody that we know speaks (narrator)"),
        ({"role": "system"}, "a system message after the first question"),
        ({"role": "user"}, "user and assistant do not take turns"),
    ],
)
def test_an_answer_that_means_something_else_is_left_out(tmp_path, change, reason):
    row = said("?")
    row["messages"][1] |= change
    lines, reasons = converted(tmp_path, row)
    assert lines == []
    assert [reason in told for told in reasons] == [True]


def test_an_answer_that_weighs_as_usual_is_kept(tmp_path):
    row = said("?")
    row["messages"][1] |= {"weight": 1, "loss": True, "name": "bot"}
    lines, _ = converted(tmp_path, row)
    assert len(lines) == 1


def test_a_file_that_holds_no_rows_is_counted(tmp_path):
    put_json(tmp_path / "source" / "export.json", {"annotations": []})
    _, reasons = converted(tmp_path)
    assert reasons == {"no list of messages in it": 1}


def test_the_split_is_also_found_in_the_folders_name(tmp_path):
    put_image(tmp_path / "source" / "a.png")
    put_json(tmp_path / "source" / "test" / "chat.json", [said("?")])
    done = convert("sharegpt", tmp_path / "source", tmp_path / "out")
    assert list(done.counts) == ["sharegpt_test"]
