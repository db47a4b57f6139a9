"""Prompts and pictures become the reference's numbers, and what does not fit is refused."""

import json
import shutil
import struct
import zlib

import numpy as np
import pytest
import torch
from golden_data import expand, read_json, synthetic_image
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageOps
from published import TOKENIZER, make_processor
from transformers import AutoTokenizer

from foveal.errors import DataError
from foveal.models.phi3_vision import Phi3VisionImageProcessor, Phi3VisionProcessor
from foveal.models.phi3_vision.image import crop_grid, cut_crops

PROMPTS = [entry for entry in read_json("prompts/prompts.json") if "prompt" in entry]
CONVERSATIONS = [entry for entry in read_json("prompts/prompts.json") if "conversation" in entry]
IMAGE = 32044
SMALL_TOKENS = 2 * (2 + 1) + 1 + 2 * (2 + 1)  # of a picture of one crop


def drawn(width, height, *_):
    return Image.new("RGB", (width, height), (width % 256, height % 256, 0))


@pytest.fixture(scope="module")
def processor():
    """The published one: crops of 336 pixels."""
    return make_processor(16, crop_size=336, patch_size=14)


@pytest.fixture(scope="module")
def small():
    return make_processor(num_crops=1)


def golden_ids(entry):
    return expand([entry["input_ids_rle"]])[0]


def shown_sizes(entry):
    """Sizes of the pictures in the order in which the prompt shows them."""
    runs = [run for run, _ in entry["input_ids_rle"] if run < 0]
    return [entry["image_sizes"][-1 - run] for run in runs]


def write_out(processor, entries, images, num_crops):
    """Replace the entry -(k + 1) of picture k by as many of itself as the picture has tokens."""
    ids = []
    for entry in entries:
        repeats = 1
        if entry < 0:
            size = images[-1 - entry][:2]
            repeats = processor.image_processor.num_tokens(*size, num_crops)
        ids += [entry] * repeats
    return ids


# -- prompts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", PROMPTS, ids=[entry["content"][:24] for entry in PROMPTS])
def test_a_prompt_gives_the_references_ids_sizes_and_crops(processor, entry):
    images = [drawn(*size) for size in entry["images"]]
    inputs = processor(entry["prompt"], images or None, num_crops=entry["num_crops"])
    ids = golden_ids(entry)[: entry["prompt_length"]]
    assert inputs["input_ids"][0].tolist() == torch.where(ids < 0, IMAGE, ids).tolist()
    assert inputs["attention_mask"].all()
    if not images:
        assert "pixel_values" not in inputs
        return
    sizes = shown_sizes(entry)
    assert inputs["image_sizes"].tolist() == sizes
    crops = sum(1 + (height // 336) * (width // 336) for height, width in sizes)
    assert inputs["pixel_values"].shape == (crops, 3, 336, 336)


def test_pictures_come_in_the_order_in_which_the_prompt_shows_them(small):
    red, blue = (Image.new("RGB", (28, 28), colour) for colour in ("red", "blue"))
    inputs = small("<|image_2|> and <|image_1|>", [red, blue])
    swapped = small("<|image_1|> and <|image_2|>", [blue, red])
    assert torch.equal(inputs["pixel_values"], swapped["pixel_values"])
    assert torch.equal(inputs["input_ids"], swapped["input_ids"])


@pytest.mark.parametrize("entry", PROMPTS, ids=[entry["content"][:24] for entry in PROMPTS])
def test_a_turn_gives_the_references_ids_and_labels(processor, entry):
    prompt = processor.encode_prompt(entry["content"], len(entry["images"]))
    assistant = entry["answer_text"].removesuffix("<|end|>\n<|endoftext|>")
    answer = processor.encode_answer(assistant)
    ids = write_out(processor, prompt, entry["images"], entry["num_crops"])
    labels = [-100] * len(ids) + answer
    assert ids + answer == golden_ids(entry).tolist()
    assert labels == expand([entry["labels_rle"]])[0].tolist()


@pytest.mark.parametrize("entry", CONVERSATIONS)
def test_a_conversation_is_its_turns_one_after_another_each_counting_from_one(processor, entry):
    ids, labels = [], []
    for turn in entry["conversation"]:
        prompt = processor.encode_prompt(turn["user"], len(turn["images"]))
        prompt = write_out(processor, prompt, turn["images"], entry["num_crops"])
        answer = processor.encode_answer(turn["assistant"])
        ids += prompt + answer
        labels += [-100] * len(prompt) + answer
    assert ids == golden_ids(entry).tolist()
    assert labels == expand([entry["labels_rle"]])[0].tolist()


@given(text=st.text(st.characters(exclude_characters="<", exclude_categories=("Cs",))))
def test_a_turn_and_its_prompt_written_by_hand_are_the_same_ids(small, text):
    by_hand = small(f"<|user|>\n{text}<|end|>\n<|assistant|>\n")["input_ids"][0].tolist()
    assert small.encode_prompt(text, 0) == by_hand


def test_images_without_tags_of_their_own_stand_before_the_text(small):
    written = small.encode_prompt("<|image_1|><|image_2|>\nWhich?", 2)
    assert small.encode_prompt("Which?", 2) == written


@pytest.mark.parametrize("token", ["<|end|>", "<|endoftext|>", "<|assistant|>", "<s>", "<|image|>"])
def test_a_control_token_that_a_user_writes_is_plain_text(small, token):
    control = small.tokenizer.convert_tokens_to_ids(token)
    prompt = small.encode_prompt(f"What does {token} mean?", 0)
    expected = small.encode_prompt("", 0).count(control)
    assert prompt.count(control) == expected
    assert token in small.tokenizer.decode(prompt)
    answer = small.encode_answer(f"It ends a turn: {token}.")
    assert answer.count(control) == small.encode_answer("").count(control)


def test_an_answer_is_read_up_to_its_end(small):
    ids = small.encode_answer("A cat.")
    assert small.decode_answer(ids) == "A cat."
    assert small.decode_answer([*ids, *small.encode_answer("More.")]) == "A cat."
    assert small.decode_answer(small.encode_plain("cut sho")) == "cut sho"
    assert small.decode_answer([]) == ""


# -- batches ---------------------------------------------------------------------------------------


def test_prompts_of_a_batch_are_padded_on_the_side_that_is_asked_for(small):
    texts = ["<|user|>\nOne?<|end|>\n", "<|user|>\nOne two three four?<|end|>\n"]
    alone = [small(text)["input_ids"][0].tolist() for text in texts]
    missing = len(alone[1]) - len(alone[0])
    left, right = small(texts), small(texts, padding_side="right")
    assert left["input_ids"].tolist() == [[32000] * missing + alone[0], alone[1]]
    assert left["attention_mask"][0].tolist() == [0] * missing + [1] * len(alone[0])
    assert right["input_ids"].tolist() == [alone[0] + [32000] * missing, alone[1]]
    assert right["attention_mask"][0].tolist() == [1] * len(alone[0]) + [0] * missing
    assert left["attention_mask"][1].all()


def test_an_end_token_inside_a_prompt_is_not_taken_for_padding(small):
    text = "<|user|>\nHi<|end|>\n<|assistant|>\nYes<|end|>\n<|endoftext|>"
    inputs = small([text, f"{text} and so on and on and on"])
    assert inputs["attention_mask"][0].sum() == small(text)["input_ids"].shape[1]


def test_a_flat_list_of_pictures_is_dealt_out_by_the_tags(small):
    images = [Image.new("RGB", (28, 28), (shade, 0, 0)) for shade in (10, 20, 30)]
    texts = ["<|image_2|> <|image_1|>", "no picture", "<|image_1|>"]
    nested = small(texts, [[images[0], images[1]], [], [images[2]]])
    flat = small(texts, images)
    for name in ("input_ids", "attention_mask", "pixel_values", "image_sizes"):
        assert torch.equal(nested[name], flat[name]), name
    counts = (flat["input_ids"] == IMAGE).sum(-1).tolist()
    assert counts == [2 * SMALL_TOKENS, 0, SMALL_TOKENS]
    reds = flat["pixel_values"][::2, 0, 0, 0]  # every second crop is a global view
    assert reds.argsort().tolist() == [1, 0, 2]


def test_a_picture_for_a_prompt_may_stand_without_a_list_of_its_own(small):
    one, two = drawn(28, 28), drawn(30, 28)
    mixed = small(["<|image_1|>", "text", "<|image_1|>"], [[one], None, two])
    flat = small(["<|image_1|>", "text", "<|image_1|>"], [one, two])
    assert torch.equal(mixed["pixel_values"], flat["pixel_values"])
    single = small("<|image_1|>", one)
    assert torch.equal(single["pixel_values"], small("<|image_1|>", [one])["pixel_values"])


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("<|image_1|><|image_2|>", 1),
        ("<|image_1|>", 2),
        ("no tag", 1),
        ("<|image_1|>", 0),
        ("<|image_1|><|image_3|>", 2),
        ("<|image_1|><|image_1|>", 2),
        ("<|image_1|><|image_1|>", 1),
        ("<|image_0|><|image_1|>", 2),
    ],
)
def test_tags_that_do_not_match_the_pictures_are_refused(small, text, count):
    images = [drawn(28, 28)] * count
    with pytest.raises(ValueError, match=rf"image tags .* do not match {count} images"):
        small(text, images)
    with pytest.raises(ValueError, match=rf"image tags .* do not match {count} images"):
        small([text, "text"], [images, []])
    if "<" in text:
        with pytest.raises(ValueError, match=rf"image tags .* do not match {count} images"):
            small.encode_prompt(text, count)


def test_lists_that_do_not_fit_the_prompts_are_refused(small):
    one = drawn(28, 28)
    with pytest.raises(ValueError, match="2 image tags in 2 prompts, 3 images"):
        small(["<|image_1|>", "<|image_1|>"], [one, one, one])
    with pytest.raises(ValueError, match="3 lists of images for 2 prompts"):
        small(["<|image_1|>", "<|image_1|>"], [[one], [one], [one]])
    with pytest.raises(ValueError, match="at least one prompt"):
        small([])


# -- messages --------------------------------------------------------------------------------------


def user(*parts):
    return {"role": "user", "content": list(parts)}


def text_part(text):
    return {"type": "text", "text": text}


def test_messages_with_parts_become_the_prompt_of_the_recipe(small):
    one = drawn(28, 28)
    messages = [user({"type": "image", "image": one}, text_part("What is it?"))]
    text = small.apply_chat_template(messages, add_generation_prompt=True)
    assert text == "<|user|>\n<|image_1|>\nWhat is it?<|end|>\n<|assistant|>\n"
    inputs = small.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    prompt = small.encode_prompt("What is it?", 1)
    expected = [IMAGE if one < 0 else one for one in write_out(small, prompt, [(28, 28)], 1)]
    assert inputs["input_ids"][0].tolist() == expected
    assert len(inputs["pixel_values"]) == 2
    ids = small.apply_chat_template(messages, tokenize=True, return_dict=False)
    assert ids[0].tolist() == expected[:-1]  # without the tag that an answer follows


def test_pictures_count_on_over_the_turns_of_a_conversation(small, tmp_path):
    path = tmp_path / "two.png"
    drawn(28, 28).save(path)
    messages = [
        {"role": "system", "content": "Be brief."},
        user({"type": "image", "image": drawn(28, 28)}, text_part("And?")),
        {"role": "assistant", "content": [text_part("A cat.")]},
        user(text_part("Same as"), {"type": "image", "path": str(path)}),
    ]
    assert small.apply_chat_template(messages) == (
        "<|system|>\nBe brief.<|end|>\n<|user|>\n<|image_1|>\nAnd?<|end|>\n"
        "<|assistant|>\nA cat.<|end|>\n<|user|>\n<|image_2|>\nSame as<|end|>\n"
    )
    inputs = small.apply_chat_template([messages, messages[:1]], tokenize=True)
    assert inputs["input_ids"].shape[0] == 2
    assert inputs["image_sizes"].tolist() == [[28, 28], [28, 28]]


def test_an_image_part_may_leave_its_picture_to_be_given_later(small):
    messages = [user({"type": "image"}, text_part("What is it?"))]
    text = small.apply_chat_template(messages)
    assert "<|image_1|>" in text
    assert len(small(text, [drawn(28, 28)])["pixel_values"]) == 2
    with pytest.raises(ValueError, match="do not match 0 images"):
        small.apply_chat_template(messages, tokenize=True)


def test_a_null_of_a_round_trip_through_arrow_is_an_absent_value(small):
    """Arrow gives every part the keys of all of them."""
    image = drawn(28, 28)
    full = [
        {"type": "image", "image": image, "path": None, "url": None, "text": None},
        {"type": "text", "text": "What?", "image": None, "path": None, "url": None},
    ]
    spare = [user({"type": "image", "image": image}, text_part("What?"))]
    nulls = [user(*full) | {"tool_calls": None, "name": None}]
    encoded = [small.apply_chat_template(one, tokenize=True) for one in (spare, nulls)]
    for name in encoded[0]:
        assert torch.equal(encoded[0][name], encoded[1][name]), name
    texts = [user({"type": "text", "text": "a"}, {"type": "text", "text": None})]
    assert small.apply_chat_template(texts) == "<|user|>\na<|end|>\n"


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([{"role": "assistant", "content": None, "tool_calls": [{}]}], "has 'tool_calls'"),
        ([{"role": "user", "content": None}], "a message of the user has no content"),
        ([{"role": "tool", "content": "4"}], "not of 'tool'"),
        ([{"content": "4"}], "not of None"),
        ([user({"text": "no type"})], "image or text, not None"),
        ([user("no part")], "image or text, not 'str'"),
        ([user(text_part("?")), {"role": "system", "content": "x"}], "system messages stand"),
        ([user(text_part("?"))] + [{"role": "assistant", "content": "!"}] * 2, "follow each other"),
        ([{"role": "system", "content": [{"type": "image"}]}], "users alone show them"),
    ],
)
def test_messages_that_no_turn_can_say_are_refused_in_a_sentence(small, messages, said):
    with pytest.raises(ValueError, match=said):
        small.apply_chat_template(messages)


def test_a_mask_shows_the_answers_and_what_ends_them(small):
    image = {"type": "image", "image": drawn(28, 28)}
    conversation = [
        {"role": "system", "content": "Be brief."},
        user(image, text_part("What is it?")),
        {"role": "assistant", "content": "A cat 🦊."},
        user(text_part("Sure?")),
        {"role": "assistant", "content": "Yes."},
    ]
    inputs = small.apply_chat_template(
        [conversation, conversation[:3]], tokenize=True, return_assistant_tokens_mask=True
    )
    ids, mask = inputs["input_ids"], inputs["assistant_masks"].bool()
    assert mask.shape == ids.shape
    endings = [small.encode_answer(one)[:-1] for one in ("A cat 🦊.", "Yes.")]
    assert ids[0][mask[0]].tolist() == [*endings[0], *endings[1]]
    assert ids[1][mask[1]].tolist() == endings[0]
    plain = small.apply_chat_template([conversation, conversation[:3]], tokenize=True)
    assert torch.equal(plain["input_ids"], ids)
    assert "assistant_masks" not in plain
    with pytest.raises(ValueError, match="needs tokenize"):
        small.apply_chat_template(conversation, return_assistant_tokens_mask=True)


# -- options ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"truncation": True, "max_length": 5},
        {"return_assistant_tokens_mask": True},
        {"videos": ["clip.mp4"]},
        {"images_kwargs": {"num_crops": 2}},
    ],
)
def test_an_option_that_would_be_passed_over_is_refused_by_name(small, options):
    with pytest.raises(TypeError, match=next(iter(options))):
        small("text", **options)
    with pytest.raises(TypeError, match=next(iter(options))):
        small.image_processor(drawn(28, 28), **options)
    messages = [user(text_part("Hi"))]
    for tokenize in (True, False):
        if "return_assistant_tokens_mask" not in options:
            with pytest.raises(TypeError, match=next(iter(options))):
                small.apply_chat_template(messages, tokenize=tokenize, **options)


def test_options_that_ask_for_nothing_are_taken(small):
    nothing = {"truncation": False, "max_length": None, "videos": None}
    usual = small("text")["input_ids"]
    assert torch.equal(small(text="text", padding=True, **nothing)["input_ids"], usual)
    assert isinstance(small("text", return_tensors="np")["input_ids"], np.ndarray)
    assert small("text", add_special_tokens=False)["input_ids"].tolist() == usual[:, 1:].tolist()


def test_padding_is_to_the_longest_or_none(small):
    with pytest.raises(ValueError, match="padding='max_length'"):
        small("text", padding="max_length")
    with pytest.raises(ValueError, match="prompts of several lengths"):
        small(["one", "one and two"], padding=False)
    assert small(["one", "two"], padding=False)["attention_mask"].all()
    with pytest.raises(ValueError, match="give pt or np"):
        small("text", return_tensors="tf")


def test_a_part_of_an_unknown_kind_is_refused(small):
    with pytest.raises(ValueError, match="image or text, not 'video'"):
        small.apply_chat_template([user({"type": "video", "path": "clip.mp4"})])


# -- files -----------------------------------------------------------------------------------------


def test_a_saved_processor_reads_back_the_same(tmp_path, small):
    small.save_pretrained(tmp_path)
    again = Phi3VisionProcessor.from_pretrained(tmp_path)
    images = again.image_processor
    assert (images.crop_size, images.num_img_tokens, again.num_crops) == (28, 4, 1)
    text, one = "<|user|>\n<|image_1|> x  y\n<|end|>", drawn(40, 28)
    first, second = small(text, one), again(text, one)
    for name in first:
        assert torch.equal(first[name], second[name]), name
    messages = [user(text_part("Hi"))]
    assert again.apply_chat_template(messages) == small.apply_chat_template(messages)
    assert Phi3VisionProcessor.from_pretrained(tmp_path, num_crops=9).num_crops == 9


def test_the_automatic_tokenizer_of_a_saved_folder_gives_the_same_ids(tmp_path, small):
    small.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    text = "<|user|>\n x  y\n<|end|>\n<|assistant|>\n"
    assert again(text)["input_ids"] == small(text)["input_ids"][0].tolist()


def test_the_automatic_tokenizer_of_the_published_folder_gives_the_same_ids(tmp_path, small):
    """It needs the config.json for that, where tokenizer_config.json names a Llama tokenizer."""
    shutil.copytree(TOKENIZER, tmp_path, dirs_exist_ok=True)
    (tmp_path / "config.json").write_text(json.dumps(read_json("phi3v-facts/config.phi35.json")))
    again = AutoTokenizer.from_pretrained(tmp_path)
    text = "<|user|>\n x  y\n<|end|>\n<|assistant|>\n"
    assert again(text)["input_ids"] == small(text)["input_ids"][0].tolist()


def test_an_option_of_loading_that_would_be_passed_over_is_refused_by_name(tmp_path, small):
    small.save_pretrained(tmp_path)
    with pytest.raises(TypeError, match="padding_side"):
        Phi3VisionProcessor.from_pretrained(tmp_path, padding_side="right")


# -- pictures --------------------------------------------------------------------------------------


def png_header(width, height):
    """Write a PNG that says how large it is and has next to no pixels."""

    def chunk(kind, content):
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(b"\0" * 100))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK", "YCbCr"])
@pytest.mark.parametrize("kind", ["picture", "file"])
def test_a_picture_of_any_mode_gives_the_crops_of_its_rgb_form(small, tmp_path, mode, kind):
    made = synthetic_image(50, 40, 1).convert(mode)
    expected = small("<|image_1|>", made.convert("RGB"))
    if kind == "file":
        path = tmp_path / "picture.tiff"
        made.save(path)
        made = path
    inputs = small("<|image_1|>", made)
    torch.testing.assert_close(inputs["pixel_values"], expected["pixel_values"], atol=0, rtol=0)


def test_a_grey_picture_of_16_bits_keeps_its_high_byte(small, tmp_path):
    grey = np.asarray(synthetic_image(50, 40, 1).convert("L"))
    path = tmp_path / "deep.png"
    Image.fromarray(grey.astype(np.uint16) * 257).save(path)
    expected = small("<|image_1|>", Image.fromarray(grey))["pixel_values"]
    assert torch.equal(small("<|image_1|>", path)["pixel_values"], expected)
    assert torch.equal(small("<|image_1|>", Image.open(path))["pixel_values"], expected)


def test_of_an_animated_picture_the_first_frame_is_taken(small, tmp_path):
    frames = [synthetic_image(50, 40, seed).convert("P") for seed in (1, 2)]
    path = tmp_path / "moving.gif"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    expected = small("<|image_1|>", frames[0].convert("RGB"))["pixel_values"]
    assert torch.equal(small("<|image_1|>", str(path))["pixel_values"], expected)


def test_a_broken_picture_is_refused_in_one_line_that_names_it(small, tmp_path):
    made = tmp_path / "good.jpg"
    synthetic_image(200, 200, 1).save(made)
    broken = {
        "truncated.jpg": made.read_bytes()[:2000],
        "empty.png": b"",
        "bomb.png": png_header(60_000, 60_000),
        "text.png": b"this is no picture",
    }
    for name, content in broken.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(DataError, match=rf"^[^\n]*{name}: [^\n]+$"):
            small("<|image_1|>", path)
        with pytest.raises(DataError, match=name):
            small.image_processor([path])
    with pytest.raises(DataError, match=r"absent\.png: No such file"):
        small("<|image_1|>", tmp_path / "absent.png")


def test_an_opened_picture_that_turns_out_broken_is_refused_in_one_line(small, tmp_path):
    path = tmp_path / "truncated.jpg"
    synthetic_image(200, 200, 1).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    with Image.open(path) as image, pytest.raises(DataError, match=r"^[^\n]*broken picture[^\n]*$"):
        small("<|image_1|>", image)


def test_a_picture_on_its_side_is_turned_also_where_it_is_a_pillow_image(small, tmp_path):
    path = tmp_path / "lying.jpg"
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    synthetic_image(50, 40, 1).save(path, exif=exif)
    upright = ImageOps.exif_transpose(Image.open(path))
    expected = small("<|image_1|>", upright)["pixel_values"]
    for one in (path, path.read_bytes(), Image.open(path)):
        assert torch.equal(small("<|image_1|>", one)["pixel_values"], expected)
        cut = small.image_processor(one)["pixel_values"]
        assert torch.equal(cut, expected)


def test_a_picture_that_is_too_elongated_is_refused(small, tmp_path):
    path = tmp_path / "ribbon.png"
    drawn(29, 1).save(path)
    for make in (lambda one: small("<|image_1|>", one), small.image_processor):
        with pytest.raises(DataError, match=r"ribbon\.png: .* too elongated"):
            make(path)
        with pytest.raises(DataError, match=r"picture 1: .* too elongated"):
            make(drawn(29, 1))
    with pytest.raises(DataError, match="29 x 1 pixels is too elongated"):
        small("<|image_1|>", drawn(29, 1))


def test_what_is_no_picture_is_refused(small):
    with pytest.raises(ValueError, match="a picture is a Pillow image or a path, not ndarray"):
        small("<|image_1|>", [np.zeros((4, 4, 3), np.uint8)])


def test_a_picture_costs_as_many_tokens_as_its_size_alone_says(processor):
    for width, height in [(640, 480), (100, 900), (336, 336)]:
        made = processor.image_processor(drawn(width, height), num_crops=4)
        assert made["num_img_tokens"] == [processor.image_processor.num_tokens(width, height, 4)]
        inputs = processor("<|image_1|>", drawn(width, height), num_crops=4)
        assert (inputs["input_ids"] == IMAGE).sum() == made["num_img_tokens"][0]


def test_the_walk_sees_the_grid_and_the_crops_that_the_processor_sees(small):
    image = drawn(90, 40)
    processor = make_processor(num_crops=6)
    grid = crop_grid(90, 40, 6, 28)
    assert processor.grid(90, 40) == (grid.rows, grid.columns)
    assert torch.equal(processor.cut(image), cut_crops(image, 6, 28))
    assert processor.shape(90, 40).tokens == processor.image_processor.num_tokens(90, 40)


def test_the_published_settings_are_read_from_their_file(tmp_path):
    text = read_json("phi3v-facts/preprocessor_config.phi35.json")
    made = Phi3VisionImageProcessor(**text)
    assert (made.num_crops, made.crop_size, made.num_img_tokens) == (4, 336, 144)
