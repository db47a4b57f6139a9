"""What converting conversations of other tools promises."""

import base64

import pytest
from layouts import (
    assert_sound,
    lines_of,
    picture_bytes,
    put_json,
    put_lines,
    put_picture,
)

from foveal.data.convert import convert


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
    put_picture(tmp_path / "source" / "a.png")
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
