"""Types whose images torchvision reads, held as all others; run by test_torchvision.py."""

import importlib.util
import random
from pathlib import Path

import numpy as np
import pytest
import tiny_models_torchvision  # noqa: F401  # enters its families
import torch
import torchvision_alone  # noqa: F401  # first of all that looks for torchvision
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image
from published_images import tiny_reader
from tiny_models import let_clips_share_pixels, write_tiny
from transformers import AutoModelForCausalLM, AutoProcessor
from transformers.models.phi4_multimodal.modeling_phi4_multimodal import (
    Phi4MultimodalRotaryEmbedding,
)
from transformers.video_utils import VideoMetadata

from foveal.adapt.strategy import assign, rules_of
from foveal.config import LoraSettings
from foveal.data.forward_inputs import ForwardInputs, GroupSpan
from foveal.data.images.frames import FrameStrip
from foveal.errors import ModelError
from foveal.models.forward import hidden_states
from foveal.models.known import ALONE, CACHED, NEEDS_TORCHVISION, SHARED
from foveal.models.loading import load
from foveal.models.phi4_multimodal import SOUNDS

_spec = importlib.util.spec_from_file_location(
    "families_held", Path(__file__).with_name("test_families.py")
)
held = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(held)
data = held.data
pytestmark = held.pytestmark
ROUTES = (
    dict.fromkeys(SHARED, "rows") | dict.fromkeys(CACHED, "cache") | dict.fromkeys(ALONE, "plain")
)


@pytest.fixture(scope="module", params=sorted(NEEDS_TORCHVISION))
def one(request, data, tmp_path_factory):
    return held.Loaded(write_tiny(request.param, tmp_path_factory.mktemp(request.param)), data)


def its_own_rotations(model):
    """Give a model back what it had before it was loaded here."""
    if hasattr(model.model, "rotary_emb"):
        model.model.rotary_emb = Phi4MultimodalRotaryEmbedding(model.config)


def test_loss_and_gradients_are_those_of_transformers(one):
    kind = one.model.config.model_type
    assert one.loaded.family.route == ROUTES[kind]
    assert one.loaded.note is None
    loss, gradients = one.learn(one.rows())
    border = one.processor.long_context_tokens
    if kind == "phi4_multimodal":  # some examples of the one row are long, others not
        tokens = one.dataset.sizes.tokens
        assert tokens.min() < border < tokens.max()
        its_own_rotations(one.model)
    one.model.set_attn_implementation("eager")
    truth = one.learn_in_transformers()
    assert loss == pytest.approx(truth[0], rel=1e-6)
    assert held.distance(gradients, truth[1]) < 2e-5  # some layers count in float32 all the same


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl"])
def test_a_clip_is_what_the_models_own_video_processor_makes_of_its_frames(name, tmp_path):
    folder = write_tiny(name, tmp_path)
    if name == "qwen3_vl":
        let_clips_share_pixels(folder)
    own, reader = AutoProcessor.from_pretrained(folder), load(str(folder), None).processor
    draw = random.Random(0)
    for number in range(40):
        width, height = (
            (draw.randint(1, 400), draw.randint(1, 400))
            if number % 2
            else (32 * draw.randint(1, 5), 32 * draw.randint(1, 5))
        )
        strip = FrameStrip("clip", draw.randint(2, 9), draw.choice([0.04, 0.2, 0.333333, 1.7]))
        noise = np.random.default_rng(number).integers(
            0, 256, (height * strip.count, width, 3), np.uint8
        )
        about = VideoMetadata(
            total_num_frames=strip.count,
            fps=1 / strip.seconds,
            frames_indices=list(range(strip.count)),
        )
        frames = [Image.fromarray(one) for one in noise.reshape(strip.count, height, width, 3)]
        made = own(
            text=["a<|vision_start|><|video_pad|><|vision_end|>b"],
            videos=[frames],
            video_metadata=[about],
            do_sample_frames=False,
            return_tensors="pt",
        )
        shape = reader.clip_reader.shape(width, height * strip.count, strip)
        assert made["video_grid_thw"].tolist() == [list(shape.grid)]
        ids = made["input_ids"][0]
        ids[ids == own.video_token_id] = own.image_token_id
        start = ids.tolist().index(own.tokenizer.convert_tokens_to_ids("<|vision_start|>")) + 1
        assert ids[start:-2].tolist() == shape.ids.tolist()
        if name == "qwen2_5_vl":
            assert float(made["second_per_grid_ts"][0]) == pytest.approx(shape.seconds)
        if (height, width) == (16 * shape.grid[1], 16 * shape.grid[2]):  # no kernel resizes it
            ours = reader.clip_reader.pixels(Image.fromarray(noise), strip)["pixel_values"]
            torch.testing.assert_close(ours, made["pixel_values_videos"], rtol=0, atol=1e-6)


def test_an_adapter_that_reads_images_is_merged_first_as_the_docs_show(tmp_path):
    folder, merged = write_tiny("phi4_multimodal", tmp_path / "base"), tmp_path / "merged"
    base = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    config = LoraConfig(r=4, target_modules=["qkv_proj", "o_proj"], init_lora_weights=False)
    adapted = get_peft_model(base, config)
    adapted.save_pretrained(folder / "vision-lora")
    ids = torch.arange(20, 40)[None]
    with torch.no_grad():
        expected = adapted(input_ids=ids).logits
    with pytest.raises(ModelError, match=r"vision-lora .*merge it into a folder first"):
        load(str(folder), None)
    base = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    whole = PeftModel.from_pretrained(base, folder, subfolder="vision-lora").merge_and_unload()
    whole.save_pretrained(merged)
    AutoProcessor.from_pretrained(folder).save_pretrained(merged)
    one = load(str(merged), None, "sdpa")
    group = GroupSpan(0, (), 20)
    places = torch.stack([torch.arange(20), torch.zeros(20, dtype=torch.long)])[:, None]
    inputs = ForwardInputs(ids, places, {}, (), ())
    with torch.no_grad():
        hidden = hidden_states(one.model.eval(), one.family, inputs, groups=(group,))
        logits = one.family.head(one.model)(hidden)
    torch.testing.assert_close(logits, expected[0], rtol=1e-3, atol=1e-3)


def test_sounds_are_left_alone_and_every_other_strategy_learns(tmp_path):
    for strategy in ("full", "qlora"):
        one = load(str(write_tiny("phi4_multimodal", tmp_path / strategy)), None)
        made = assign(one.model, one.family, rules_of(strategy), 1e-4, 0.0, LoraSettings(rank=4))
        learning = {assignment.part_name.split(".")[0] for assignment in made if assignment.learn}
        assert learning == {"vision", "projector", "language"}
        assert not any(one.name.startswith(SOUNDS) for one in made if one.learn)


@pytest.mark.parametrize("name", ["cohere2_vision", "gemma3", "internvl", "llava_next", "qwen3_vl"])
def test_sizes_are_told_without_pixels_as_torchvision_makes_them(name, tmp_path):
    reader = tiny_reader(name, tmp_path)
    assert reader.image_backend == "torchvision"
    assert reader._sizes is not reader.processor
    draw = random.Random(0)
    for _ in range(60):
        size = round(2000 ** draw.random()), round(2000 ** draw.random())
        if max(size) < 200 * min(size):
            assert (size, reader.shape(*size)) == (size, reader._ask(reader.processor, size))


def test_a_strip_on_which_a_processor_breaks_is_refused_as_a_size(tmp_path):
    reader = tiny_reader("lfm2_vl", tmp_path)
    assert reader.shape(300, 200).features
    with pytest.raises(ValueError, match=r"no size that .* can read"):
        reader.shape(63, 848)  # its tiles and its thumbnail come out unlike, and are stacked
