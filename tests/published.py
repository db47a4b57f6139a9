"""The published tokenizer and vocabulary, around models small enough for tests."""

from functools import cache
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

import foveal
from foveal.models.phi3_vision import (
    Phi3VisionConfig,
    Phi3VisionImageProcessor,
    Phi3VisionProcessor,
)

TOKENIZER = Path(foveal.__file__).parent / "models" / "phi3_vision" / "tokenizer"


def make_processor(num_crops: int, crop_size: int = 28, patch_size: int = 7) -> Phi3VisionProcessor:
    tokens = (crop_size // patch_size // 2) ** 2
    images = Phi3VisionImageProcessor(num_crops, crop_size, tokens)
    return Phi3VisionProcessor(images, _tokenizer())


@cache
def _tokenizer() -> PreTrainedTokenizerFast:
    """Read it once for all: 32,000 words take a quarter of a second, and nobody changes them."""
    return PreTrainedTokenizerFast.from_pretrained(TOKENIZER)


def make_config(**changes: Any) -> Phi3VisionConfig:
    """Two decoder layers and three tower layers over crops of 28 pixels, 4 tokens each."""
    factors = [1.0] * 6
    settings = {
        "vocab_size": 32064,
        "hidden_size": 24,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 131072,
        "original_max_position_embeddings": 4096,
        "rope_scaling": {"type": "su", "short_factor": factors, "long_factor": factors},
        "eos_token_id": 2,
        "pad_token_id": 32000,
        "vision_config": {
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 7,
        },
    }
    return Phi3VisionConfig(**settings | changes)
