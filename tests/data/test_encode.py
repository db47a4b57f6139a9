"""An example becomes the ids that the published template writes, where it is asked to."""

import numpy as np
import pytest
from published import make_processor
from tiny import make_image, turn

from foveal.data.dataset import build_dataset
from foveal.data.encode import encode
from foveal.data.example import Example
from foveal.data.images.image_folder import ImageFolder
from foveal.data.images.media import open_image

SYSTEM, USER, ASSISTANT, END, END_OF_TEXT, BEGIN = 32006, 32010, 32001, 32007, 32000, 1


@pytest.fixture
def processor():
    return make_processor(4)


def example(*turns, system: str = "", identity: str = "a") -> Example:
    return Example.model_validate(
        {"id": identity, "system": system, "conversations": tuple(turns)}, strict=False
    )


def template_ids(processor, messages, images) -> list[int]:
    """The published chat template, as the published processor encodes it; then the text ends."""
    text = processor.tokenizer.apply_chat_template(messages, tokenize=False)
    return [*processor(text, images)["input_ids"][0].tolist(), END_OF_TEXT]


def written_out(encoded, processor, sizes) -> list[int]:
    return encoded.expand([processor.shape(*size) for size in sizes]).ids.tolist()


@pytest.mark.parametrize("system", ["Answer in French.", "Two\nlines <|end|>.", " spaced "])
def test_a_system_text_is_the_block_that_the_published_template_writes(tmp_path, processor, system):
    image = open_image(make_image(tmp_path / "images" / "a.png", 0))
    encoded = encode(
        example(turn("Colour?", "Rouge", ["a.png"]), system=system),
        processor,
        ImageFolder(tmp_path / "data.jsonl"),
    )
    plain = system.replace("<|end|>", "(end)")
    messages = [
        {"role": "system", "content": plain},
        {"role": "user", "content": "<|image_1|>\nColour?"},
        {"role": "assistant", "content": "Rouge"},
    ]
    ids = written_out(encoded, processor, [image.size])
    if plain == system:
        assert ids == template_ids(processor, messages, [image])
    assert ids[:2] == [BEGIN, SYSTEM]
    assert ids.count(END) == 3  # a control token that the text spells out is none
    assert ids.count(BEGIN) == 2  # before the block, and behind the image
    answer = processor.encode_answer("Rouge")
    assert encoded.entries[encoded.learnt].tolist() == answer
    assert encoded.prompt_entries == len(encoded.entries) - len(answer)


def test_what_stands_before_a_shared_image_must_be_the_same(tmp_path, processor):
    make_image(tmp_path / "images" / "a.png", 0)
    folder = ImageFolder(tmp_path / "data.jsonl")
    asked = turn("Colour?", "Red", ["a.png"])
    told = [
        example(asked, system=system, identity=str(number))
        for number, system in enumerate(["", "Be brief.", "Be brief.", "Be long."])
    ]
    encoded = [encode(one, processor, folder) for one in told]
    dataset = build_dataset(encoded, processor)
    assert dataset.sizes.prefix_groups.tolist() == [0, 1, 1, 2]
    for one, found in zip(encoded, dataset.examples, strict=True):
        assert np.array_equal(found.entries, one.entries)


def two_turns(tmp_path):
    for number, name in enumerate(["a.png", "b.png"]):
        make_image(tmp_path / "images" / name, number, (60 + 20 * number, 40))
    turns = [turn("Colour?", "A", ["a.png"]), turn("And this?", "B", ["b.png"]), turn("Sure?", "C")]
    return example(*turns, system="Be brief."), ImageFolder(tmp_path / "data.jsonl")


def test_by_the_template_turns_follow_each_other_as_the_published_template_has_it(
    tmp_path, processor
):
    conversation, folder = two_turns(tmp_path)
    processor.turns = "template"
    encoded = encode(conversation, processor, folder)
    images = [open_image(path) for path in encoded.images]
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "<|image_1|>\nColour?"},
        {"role": "assistant", "content": "A"},
        {"role": "user", "content": "<|image_2|>\nAnd this?"},
        {"role": "assistant", "content": "B"},
        {"role": "user", "content": "Sure?"},
        {"role": "assistant", "content": "C"},
    ]
    ids = written_out(encoded, processor, [image.size for image in images])
    assert ids == template_ids(processor, messages, images)
    newline = processor.encode_plain("\n")
    learnt = [[*processor.encode_plain(text), END, *newline] for text in "ABC"]
    learnt[-1].append(END_OF_TEXT)
    assert encoded.entries[encoded.learnt].tolist() == [one for turn in learnt for one in turn]


def test_by_the_recipe_each_turn_is_a_text_of_its_own(tmp_path, processor):
    conversation, folder = two_turns(tmp_path)
    ids = encode(conversation, processor, folder).entries.tolist()
    newline = processor.encode_plain("\n")
    between = [END, *newline, END_OF_TEXT, BEGIN, USER]
    assert sum(ids[at : at + len(between)] == between for at in range(len(ids))) == 2
    assert ids.count(END_OF_TEXT) == 3


def test_the_processor_begins_with_the_recipes_way(processor):
    assert processor.turns == "recipe"
