"""What the house may ask of Phi-3-vision and Phi-3.5-vision."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from foveal.models.attention import choose_attention
from foveal.models.family import Family
from foveal.models.phi3_vision.model import Phi3VisionForConditionalGeneration
from foveal.models.phi3_vision.processor import Phi3VisionProcessor
from foveal.models.phi3_vision.vision import UNUSED_LAYERS
from foveal.models.phi3_vision.weights import SHARED_EMBEDDING

TOWER = "model.vision_embed_tokens.img_processor.vision_model."


def load_model(
    name: str | Path, attention: str, dtype: torch.dtype | None, quantization: Any = None
) -> Phi3VisionForConditionalGeneration:
    """Load the published weights, in float32 unless told otherwise."""
    return Phi3VisionForConditionalGeneration.from_pretrained(
        name,
        dtype=dtype or torch.float32,
        attn_implementation=choose_attention(attention),
        quantization_config=quantization,
    )


def load_processor(name: str | Path, num_crops: int | None) -> Phi3VisionProcessor:
    """Load the processor, with another number of crops if one is given."""
    crops = {} if num_crops is None else {"num_crops": num_crops}
    return Phi3VisionProcessor.from_pretrained(name, **crops)


def is_unused(model: Any, name: str) -> bool:
    """Tell whether a weight stands behind the tower layer whose features are taken."""
    if name.startswith(TOWER + "post_layernorm."):
        return True
    layers = TOWER + "encoder.layers."
    used = int(model.config.vision_config.num_hidden_layers) - UNUSED_LAYERS
    return name.startswith(layers) and int(name.removeprefix(layers).split(".")[0]) >= used


def row_hidden_states(model: Any, inputs: Mapping[str, Any]) -> Tensor:
    """Run a packed row up to the final norm."""
    hidden: Tensor = model.model(**inputs, use_cache=False).last_hidden_state[0]
    return hidden


def head(model: nn.Module) -> nn.Module:
    """Find the layer that turns hidden states into logits."""
    return model.get_submodule("lm_head")


def blank_features(model: Any) -> Tensor:
    """Encode one blank crop."""
    size = model.config.crop_size
    blank = torch.zeros(1, 3, size, size, dtype=torch.uint8, device=model.device)
    features: Tensor = model.get_image_features(blank, torch.tensor([[size, size]]))[0]
    return features


def blocks(model: Any) -> list[nn.Module]:
    """List the layers of the tower and of the decoder."""
    tower = model.model.vision_embed_tokens.img_processor.vision_model
    return [*tower.encoder.layers, *model.model.layers]


def long_context_tokens(model: Any) -> int | None:
    """Length above which the long rotary factors hold."""
    return int(model.config.original_max_position_embeddings)


FAMILY = Family(
    parts={
        "vision": ("model.vision_embed_tokens.img_processor.",),
        "projector": ("model.vision_embed_tokens.",),
        "language": ("model.", ""),
    },
    load_model=load_model,
    load_processor=load_processor,
    is_unused=is_unused,
    row_hidden_states=row_hidden_states,
    head=head,
    blank_features=blank_features,
    blocks=blocks,
    long_context_tokens=long_context_tokens,
    renamed=SHARED_EMBEDDING,
)
