"""Nothing -> a small Phi-3.5-vision folder with random weights and the published tokenizer.

Same architecture, same code path, a few million parameters: for the demo, for tests, and for trying
a recipe on a laptop before a GPU is paid for.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast

from foveal.models.phi3_vision.config import Phi3VisionConfig
from foveal.models.phi3_vision.model import Phi3VisionForConditionalGeneration
from foveal.models.phi3_vision.processor import Phi3VisionImageProcessor, Phi3VisionProcessor

TOKENIZER = Path(__file__).parent / "tokenizer"


@dataclass(frozen=True)
class TinySizes:
    """Sizes of a small model; pictures are cut into crops of `crop_size` pixels."""

    crop_size: int = 56
    patch_size: int = 7
    tower_width: int = 96
    tower_layers: int = 4
    """The last one stays unused, as in the published tower."""

    tower_heads: int = 4
    width: int = 128
    layers: int = 4
    heads: int = 4
    vocabulary: int = 32064
    original_context: int = 4096


def tiny_config(sizes: TinySizes) -> Phi3VisionConfig:
    """Configure a small model; its rotary factors are all one."""
    factors = [1.0] * (sizes.width // sizes.heads // 2)
    return Phi3VisionConfig(
        vocab_size=sizes.vocabulary,
        hidden_size=sizes.width,
        intermediate_size=sizes.width * 8 // 3 // 8 * 8,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        max_position_embeddings=131072,
        original_max_position_embeddings=sizes.original_context,
        rope_scaling={"type": "su", "short_factor": factors, "long_factor": factors},
        vision_config={
            "hidden_size": sizes.tower_width,
            "intermediate_size": sizes.tower_width * 4,
            "num_hidden_layers": sizes.tower_layers,
            "num_attention_heads": sizes.tower_heads,
            "image_size": sizes.crop_size,
            "patch_size": sizes.patch_size,
        },
    )


def tiny_processor(sizes: TinySizes, num_crops: int = 4) -> Phi3VisionProcessor:
    """Make the processor that fits a small model; the tokenizer is the published one."""
    side = sizes.crop_size // sizes.patch_size // 2
    return Phi3VisionProcessor(
        Phi3VisionImageProcessor(num_crops, sizes.crop_size, side**2),
        PreTrainedTokenizerFast.from_pretrained(TOKENIZER),
    )


def write_tiny(folder: Path, seed: int, sizes: TinySizes | None = None) -> None:
    """Write a model folder with weights drawn from `seed`."""
    sizes = sizes or TinySizes()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Phi3VisionForConditionalGeneration(tiny_config(sizes))
    model.generation_config.eos_token_id = list(tiny_processor(sizes).end_ids)
    beside = folder.with_name(f".{folder.name}.part")
    model.save_pretrained(beside)
    tiny_processor(sizes).save_pretrained(beside)
    beside.rename(folder)
