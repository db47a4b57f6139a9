"""A clip as an input of its own is what transformers makes of the same frames: loss, gradients."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tiny_models_more  # noqa: F401  # enters its families
import torch
import torch.nn.functional as F
from daily import daily
from numbered_clips import STEADY, number_shown, write_clip
from PIL import Image
from tiny_models import let_clips_share_pixels, write_tiny

from foveal.config import DataSettings
from foveal.data.batch import build_batch, open_pixels
from foveal.data.checking.check import check_file
from foveal.data.dataset import build_dataset, read_dataset
from foveal.data.encode import count_tokens, encode
from foveal.data.example import Example, Turn
from foveal.data.images.clips import choose_frames, decode_at
from foveal.data.images.frames import parse_strip
from foveal.data.images.image_folder import ImageFolder
from foveal.data.images.media import image_size, open_image
from foveal.data.rows import RowPlanner
from foveal.data.turn_processor import frame_choice_of, read_as
from foveal.errors import ConfigError
from foveal.evaluate.questions import Opener, questions_of
from foveal.models.generation.generator import Generator, Request, generate
from foveal.models.loading import load
from foveal.train.loss import RowLoss

FAMILIES = daily("qwen2_5_vl", "qwen3_vl", "qwen3_5", beside=["qwen2_vl", "qwen3_vl_moe"])
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
PATCH = 16
OF_EACH_FRAME = ("qwen2_vl", "qwen2_5_vl")
"""Types whose pixels are counted for each frame; of others, for a whole clip."""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Questions about one clip, about two, about an image and a clip; words alone."""
    folder = tmp_path_factory.mktemp("clips")
    write_clip(folder / "long.avi", "mpeg4", STEADY[:60], b_frames=0)  # 2.4 s
    write_clip(folder / "short.avi", "mpeg4", STEADY[:25], b_frames=0)  # 1 s
    noise = np.random.default_rng(0).integers(0, 256, (90, 64, 3), np.uint8)
    Image.fromarray(noise).save(folder / "page.png")
    shown = [
        {"videos": ["long.avi"], "user": "which number", "assistant": "one"},
        {"videos": ["long.avi"], "user": "what is it", "assistant": "a red circle"},
        {"videos": ["long.avi", "short.avi"], "user": "both", "assistant": "yes no"},
        {"images": ["page.png"], "videos": ["short.avi"], "user": "and", "assistant": "three"},
        {"images": ["page.png"], "user": "this page", "assistant": "total"},
        {"user": "words", "assistant": "alone"},
    ]
    lines = [{"id": str(place), "conversations": [one]} for place, one in enumerate(shown)]
    file = folder / "data.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def patches(frames, width, height):
    """Cut frames into what Qwen's tower takes, written out place by place."""
    frames = [frame.resize((width, height), Image.Resampling.BICUBIC) for frame in frames]
    frames += frames[-1:] * (len(frames) % 2)
    pixels = np.stack([np.asarray(frame, np.float64) for frame in frames]) / 255
    mean, std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    pixels = (pixels - mean) / std
    rows, columns = height // PATCH, width // PATCH
    made = [
        pixels[time : time + 2, row : row + PATCH, column : column + PATCH].transpose(3, 0, 1, 2)
        for time in range(0, len(frames), 2)
        for block in range(0, rows, 2)
        for beside in range(0, columns, 2)
        for row in (PATCH * block, PATCH * block + PATCH)
        for column in (PATCH * beside, PATCH * beside + PATCH)
    ]
    grid = [len(frames) // 2, rows, columns]
    return torch.from_numpy(np.stack(made)).flatten(1), torch.tensor([grid])


class Read:
    """A tiny model and the clips, read for it as inputs of their own."""

    def __init__(self, folder, data, **settings):
        self.loaded = load(str(folder), None, "blocks")
        self.model, self.processor = self.loaded.model.double(), self.loaded.processor
        self.model.config.get_text_config()._experts_implementation = "eager"  # others: no doubles
        read_as(self.processor, DataSettings(clips="video", frames=5, **settings))
        self.examples, self.dataset = read_dataset(data, self.processor)
        self.folder = data.parent
        self.loss = RowLoss(self.model, self.loaded.family)

    def learn(self, plainly=False, share=True):
        count = len(self.dataset.examples)
        plan = RowPlanner(
            self.dataset.sizes, examples_per_step=count, tokens_per_pass=10**6, share_images=share
        )
        (row,) = [row for rank in plan.step(0).ranks for row in rank]
        batch = replace(build_batch(row, self.dataset, self.processor), plainly=plainly)
        exact = {n: p.double() if p.is_floating_point() else p for n, p in batch.pixels.items()}
        self.model.zero_grad(set_to_none=True)
        value = self.loss(replace(batch, pixels=exact))
        value.backward()
        return value.item(), self.gradients()

    def gradients(self):
        named = self.model.named_parameters()
        return {name: one.grad.clone() for name, one in named if one.grad is not None}

    def inputs_of(self, number):
        """What transformers takes for an example, clips in its own way, and its answer's ids.

        Frames, their times, how they are resized and cut, and the text for them are written anew.
        """
        own, turn, inputs = self.processor.processor, self.examples[number].turns[0], {}
        if turn.images:
            images = [Image.open(self.folder / path) for path in turn.images]
            made = own.image_processor(images=images, return_tensors="pt")
            inputs["pixel_values"] = made["pixel_values"].double()
            inputs["image_grid_thw"] = made["image_grid_thw"]
        clips = [self.clip(name) for name in turn.videos]
        if clips:
            inputs["pixel_values_videos"] = torch.cat([pixels for pixels, *_ in clips])
            inputs["video_grid_thw"] = torch.cat([grid for _, grid, *_ in clips])
            if self.model.config.model_type == "qwen2_5_vl":
                inputs["second_per_grid_ts"] = [apart for *_, apart, _ in clips]
        parts = [*[{"type": "image"}] * len(turn.images), *[{"type": "video"}] * len(clips)]
        asked = [{"role": "user", "content": [*parts, {"type": "text", "text": turn.user}]}]
        text = own.tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
        if turn.images:
            run = int(inputs["image_grid_thw"].prod()) // 4
            text = text.replace("<|image_pad|>", "<|image_pad|>" * run)
        before, *behind = text.split("<|video_pad|>")
        for (*_, written), piece in zip(clips, behind, strict=True):
            before += written + piece
        answer = own.tokenizer(turn.assistant + "<|im_end|>")["input_ids"]
        return self.told(own.tokenizer(before)["input_ids"]) | inputs, answer

    def told(self, ids):
        """Ids, and which of them stand for images and for clips."""
        own, ids = self.processor.processor, torch.tensor([ids])
        types = (ids == own.image_token_id).long() + 2 * (ids == own.video_token_id).long()
        return {"input_ids": ids, "attention_mask": ids * 0 + 1, "mm_token_type_ids": types}

    def learn_in_transformers(self):
        """Loss and gradients of transformers alone, one example at a time."""
        self.model.zero_grad(set_to_none=True)
        self.model.set_attn_implementation("eager")
        total = 0.0
        for number in range(len(self.examples)):
            inputs, answer = self.inputs_of(number)
            inputs |= self.told([*inputs["input_ids"][0].tolist(), *answer])
            hidden = self.model.model(**inputs, use_cache=False).last_hidden_state[0]
            logits = self.model.get_output_embeddings()(hidden[-len(answer) - 1 : -1])
            loss = F.cross_entropy(logits.float(), torch.tensor(answer), reduction="sum")
            loss.backward()
            total += loss.item()
        return total, self.gradients()

    def clip(self, name):
        """Five frames of a clip of 25 frames a second, 128 x 64: nearest that 32 divides."""
        length = {"long.avi": 60, "short.avi": 25}[name]
        times = [length / 25 * place / 5 for place in range(5)]
        with (self.folder / name).open("rb") as file:
            frames = decode_at(file, name, times)
        assert [number_shown(frame) for frame in frames] == [k * length // 5 for k in range(5)]
        # The budget of the tiny folder is 32 x 32 to 160 x 160: of a frame, or of all six together.
        width, height = (128, 64)
        if self.model.config.model_type not in OF_EACH_FRAME:
            width, height = (96, 32)  # a side of five frames is 1.265 times too long: 101 x 50.6
        pixels, grid = patches(frames, width, height)
        pads = "<|video_pad|>" * (width // 32 * height // 32)
        if self.model.config.model_type in OF_EACH_FRAME:
            return pixels, grid, 2 * length / 25 / 5, 3 * pads
        middles = [(times[0] + times[1]) / 2, (times[2] + times[3]) / 2, times[4]]
        written = "".join(
            f"<{one:.1f} seconds><|vision_start|>{pads}<|vision_end|>" for one in middles
        )
        return pixels, grid, 2 * length / 25 / 5, written


@pytest.fixture(scope="module", params=FAMILIES)
def one(request, data, in_double, tmp_path_factory):
    return Read(write(request.param, tmp_path_factory.mktemp(request.param)), data)


def write(name, folder):
    write_tiny(name, folder)
    if name not in OF_EACH_FRAME:
        let_clips_share_pixels(folder)
    return folder


@pytest.fixture(scope="module")
def truth(one):
    found = one.learn_in_transformers()
    one.model.set_attn_implementation({"text_config": "foveal_blocks"})
    return found


def distance(ours, theirs):
    assert ours.keys() == theirs.keys()
    largest = max(one.norm() for one in theirs.values())
    return max(
        float((ours[name] - one).norm() / (one.norm() + 1e-6 * largest))
        for name, one in theirs.items()
    )


@pytest.mark.parametrize("share", [True, False], ids=["shared", "side by side"])
def test_a_row_of_clips_is_what_transformers_makes_of_each_sample(one, truth, share):
    loss, gradients = one.learn(share=share)
    assert loss == pytest.approx(truth[0], rel=1e-6)
    assert distance(gradients, truth[1]) < 1e-5


def test_a_clip_that_is_read_in_the_models_own_way_is_the_same(one, truth):
    loss, gradients = one.learn(plainly=True, share=False)
    assert loss == pytest.approx(truth[0], rel=1e-6)
    assert distance(gradients, truth[1]) < 1e-5


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl"])
def test_answers_about_clips_are_those_of_transformers(name, data, in_double, tmp_path):
    read = Read(write(name, tmp_path), data)
    with Opener(read.dataset, read.processor) as opener:
        questions = [
            question
            for number, example in enumerate(read.examples)
            for question in questions_of(number, example, opener)
        ]
        made = generate(Generator(read.loaded), [Request(one.prompt, 5) for one in questions])
    read.model.set_attn_implementation("eager")
    for number, ours in enumerate(made):
        inputs, _ = read.inputs_of(number)
        if "second_per_grid_ts" in inputs:
            inputs["second_per_grid_ts"] = torch.tensor(inputs["second_per_grid_ts"])
        own = read.processor.processor
        written = read.model.generate(
            **inputs,
            do_sample=False,
            max_new_tokens=5,
            eos_token_id=list(read.processor.end_ids),
            suppress_tokens=[own.image_token_id],
        )
        assert ours == written[0, inputs["input_ids"].shape[1] :].tolist()


def test_the_pixels_of_a_clip_are_pairs_of_its_frames(one):
    for fact in one.dataset.images:
        if strip := parse_strip(fact.path):
            pixels, grid, *_ = one.clip(Path(strip.clip).name)
            number = one.dataset.images.index(fact)
            ours = open_pixels(number, one.dataset, one.processor)
            assert ours["image_grid_thw"].tolist() == grid.tolist() == [list(fact.shape.grid)]
            torch.testing.assert_close(ours["pixel_values"].double(), pixels, atol=1e-6, rtol=0)


def test_clips_of_one_size_and_other_times_cost_each_its_own(tmp_path):
    """Times are text to Qwen3-VL: 10.0 is a digit, and so a token, longer than 9.0."""
    write_clip(tmp_path / "quick.mkv", "libx264", STEADY)
    write_clip(tmp_path / "slow.mkv", "libx264", [1000 * place for place in range(40)])
    lines = [
        {"id": name, "conversations": [{"videos": [name], "user": "?", "assistant": "!"}]}
        for name in ("quick.mkv", "slow.mkv")
    ]
    file = tmp_path / "data.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    read = Read(write("qwen3_vl", tmp_path / "model"), file)
    quick, slow = (fact.shape for fact in read.dataset.images)
    assert (quick.grid, quick.seconds) == (slow.grid, 1.6)
    assert slow.seconds == 16
    # 0.4, 2.0 and 3.2 seconds; and 4.0, 20.0 and 32.0.
    assert slow.tokens == quick.tokens + 2
    found = check_file(
        file,
        count_tokens=partial(count_tokens, read.processor),
        frame_choice=read.processor.frame_choice,
    )
    assert list(found) == []
    assert found.summary.tokens == int(read.dataset.sizes.tokens.sum())


@pytest.mark.parametrize(
    ("settings", "count", "seconds"),
    [
        ({"frames": 8}, 8, 0.5),
        ({"frames": 1}, 2, 2.0),
        ({"frames": 8, "frames_per_second": 1.0}, 4, 1.0),
        ({"frames": 3, "frames_per_second": 1.0}, 3, 1.333333),
        ({"frames": 8, "frames_per_second": 0.1}, 2, 10.0),
    ],
)
def test_frames_of_a_strip_stand_a_fixed_time_apart(tmp_path, settings, count, seconds):
    clip = tmp_path / "clip.mkv"
    write_clip(clip, "libx264")  # 4 seconds of 25 frames
    (path,) = choose_frames(clip, frame_choice_of(DataSettings(clips="video", **settings)))
    strip = parse_strip(path)
    assert (strip.clip, strip.count, strip.seconds) == (str(clip), count, seconds)
    image = open_image(path)
    assert image.size == image_size(path) == (128, 64 * count)
    tops = [image.crop((0, 64 * place, 128, 64 * place + 64)) for place in range(count)]
    expected = [min(int(25 * seconds * place + 1e-3), 99) for place in range(count)]
    assert [number_shown(frame) for frame in tops] == expected


def test_a_model_that_takes_no_clips_says_so(tmp_path):
    video = DataSettings(clips="video")
    reader = load(str(write_tiny("llava", tmp_path / "llava")), None).processor
    with pytest.raises(ConfigError, match=r"^data\.clips=video: this model takes no clips"):
        read_as(reader, video)
    folder = write("qwen3_vl", tmp_path / "qwen3_vl")
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|video_pad|>", ""))
    with pytest.raises(ConfigError, match="or its chat template has no place for one"):
        read_as(load(str(folder), None).processor, video)


def test_boxes_in_images_are_moved_where_clips_are_inputs_of_their_own(tmp_path, data):
    processor = load(str(write("qwen3_vl", tmp_path)), None).processor
    read_as(processor, DataSettings(clips="video", boxes="pixels"))
    folder = ImageFolder(data)
    turn = Turn(user="where is it", assistant="[8, 9, 32, 45]", images=("page.png",))  # of 64 x 90
    example = Example(id="1", conversations=(turn,))
    dataset = build_dataset([encode(example, processor, folder)], processor)
    with Opener(dataset, processor) as opener:
        (asked,) = questions_of(0, example, opener)
    assert asked.boxes.to_model(turn.assistant) == "[125, 100, 500, 500]"  # thousandths
    assert asked.boxes.to_person("[125, 100, 500, 500]") == turn.assistant


def test_boxes_and_image_tags_beside_a_clip_are_refused(tmp_path, data):
    processor = load(str(write("qwen3_vl", tmp_path)), None).processor
    read_as(processor, DataSettings(clips="video", boxes="pixels"))
    for text, said in (("where is [1, 2, 3, 4]?", "speaks of a box"), ("<|image_1|>", "tags")):
        turn = Turn(user=text, assistant="!", videos=("long.avi",))
        with pytest.raises(ValueError, match=said):
            encode(Example(id="1", conversations=(turn,)), processor, ImageFolder(data))
