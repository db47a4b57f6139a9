"""A clip as an input of its own is what transformers makes of the same frames: loss, gradients."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numbered_clips import STEADY, number_shown, write_clip
from PIL import Image
from tiny_models import write_tiny

from foveal.config import DataSettings
from foveal.data.batch import build_batch, open_pixels
from foveal.data.clips import decode_at
from foveal.data.dataset import read_dataset
from foveal.data.encode import read_as
from foveal.data.frames import parse_strip
from foveal.data.media import open_image
from foveal.data.rows import Plan
from foveal.models.family import load
from foveal.train.loss import RowLoss

FAMILIES = ("qwen2_5_vl", "qwen3_vl", "qwen3_5")
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
PATCH = 16


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
        read_as(self.processor, DataSettings(clips="video", frames=5, **settings))
        self.examples, self.dataset = read_dataset(data, self.processor)
        self.folder = data.parent
        self.loss = RowLoss(self.model, self.loaded.family)

    def learn(self, plainly=False, share=True):
        count = len(self.dataset.examples)
        plan = Plan(
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

    def learn_in_transformers(self):
        """Loss and gradients of transformers alone, one example at a time, clips as it takes them.

        Frames, their times, how they are resized and cut, and the text for them are written anew.
        """
        self.model.zero_grad(set_to_none=True)
        self.model.set_attn_implementation("eager")
        total, own = 0.0, self.processor.processor
        for number, example in enumerate(self.examples):
            turn = example.turns[0]
            inputs, kinds, shown = {}, [], []
            if turn.images:
                images = [Image.open(self.folder / path) for path in turn.images]
                made = own.image_processor(images=images, return_tensors="pt")
                inputs |= {"pixel_values": made["pixel_values"].double()}
                inputs |= {"image_grid_thw": made["image_grid_thw"]}
            clips = [self.clip(name) for name in turn.videos]
            if clips:
                inputs["pixel_values_videos"] = torch.cat([pixels for pixels, _, _, _ in clips])
                inputs["video_grid_thw"] = torch.cat([grid for _, grid, _, _ in clips])
                if self.model.config.model_type == "qwen2_5_vl":
                    inputs["second_per_grid_ts"] = torch.tensor([apart for *_, apart, _ in clips])
            parts = [*[{"type": "image"}] * len(turn.images), *[{"type": "video"}] * len(clips)]
            parts.append({"type": "text", "text": turn.user})
            asked = [{"role": "user", "content": parts}]
            text = own.tokenizer.apply_chat_template(
                asked, add_generation_prompt=True, tokenize=False
            )
            if turn.images:
                run = int(inputs["image_grid_thw"].prod()) // 4
                text = text.replace("<|image_pad|>", "<|image_pad|>" * run)
            before, *behind = text.split("<|video_pad|>")
            for (*_, written), piece in zip(clips, behind, strict=True):
                before += written + piece
            prompt = own.tokenizer(before)["input_ids"]
            answer = own.tokenizer(turn.assistant + "<|im_end|>")["input_ids"]
            ids = torch.tensor([prompt + answer])
            types = (ids == own.image_token_id).long() + 2 * (ids == own.video_token_id).long()
            hidden = self.model.model(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                mm_token_type_ids=types,
                use_cache=False,
                **inputs,
            ).last_hidden_state[0]
            logits = self.model.get_output_embeddings()(hidden[len(prompt) - 1 : -1]).float()
            loss = F.cross_entropy(logits, torch.tensor(answer), reduction="sum")
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
        if self.model.config.model_type != "qwen2_5_vl":
            width, height = (96, 32)  # a side of five frames is 1.265 times too long: 101 x 50.6
        pixels, grid = patches(frames, width, height)
        pads = "<|video_pad|>" * (width // 32 * height // 32)
        if self.model.config.model_type == "qwen2_5_vl":
            return pixels, grid, 2 * length / 25 / 5, 3 * pads
        middles = [(times[0] + times[1]) / 2, (times[2] + times[3]) / 2, times[4]]
        written = "".join(
            f"<{one:.1f} seconds><|vision_start|>{pads}<|vision_end|>" for one in middles
        )
        return pixels, grid, 2 * length / 25 / 5, written


@pytest.fixture(scope="module", params=FAMILIES)
def one(request, data, tmp_path_factory):
    folder = write_tiny(request.param, tmp_path_factory.mktemp(request.param))
    if request.param != "qwen2_5_vl":
        settings = json.loads((folder / "preprocessor_config.json").read_text())
        settings["video_processor_type"] = "Qwen3VLVideoProcessor"
        (folder / "video_preprocessor_config.json").write_text(json.dumps(settings))
    return Read(folder, data)


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
