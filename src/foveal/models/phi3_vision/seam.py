"""What the house may ask of Phi-3-vision and Phi-3.5-vision."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig
from transformers.modeling_outputs import BaseModelOutputWithPooling

from foveal.data.row_planning.groups import Costs
from foveal.errors import ModelError
from foveal.models.family import Family, ImageBudget
from foveal.models.phi3_vision.config import SHARED_EMBEDDING
from foveal.models.phi3_vision.model import Phi3VisionForConditionalGeneration
from foveal.models.phi3_vision.processor import Phi3VisionProcessor
from foveal.models.phi3_vision.vision import UNUSED_LAYERS
from foveal.models.shared_rows import choose_attention

COSTS = Costs(pair=5.3e-5, crop=47.0)

TOWER = "model.vision_embed_tokens.img_processor.vision_model."


class Phi3VisionFamily(Family):
    """The published models, through modelling code of our own."""

    image_budget = "num_crops"
    joins_turns_as_published = True
    renamed = SHARED_EMBEDDING

    @classmethod
    def of(cls, name: str) -> "Phi3VisionFamily":
        """Give the family; it is one for all models of the type."""
        return FAMILY

    def load_model(
        self, name: str, attention: str, dtype: torch.dtype | None, quantization: Any = None
    ) -> Phi3VisionForConditionalGeneration:
        """Load the published weights, in float32 unless told otherwise."""
        return Phi3VisionForConditionalGeneration.from_pretrained(
            name,
            dtype=dtype or torch.float32,
            attn_implementation=choose_attention(attention),
            quantization_config=quantization,
        )

    def load_processor(self, name: str | Path, image_budget: ImageBudget) -> Phi3VisionProcessor:
        """Load the processor, with another number of crops if one is given."""
        if isinstance(image_budget, Mapping):
            raise ModelError("data.image_settings: images of Phi have data.num_crops alone; set it")
        crops = {} if image_budget is None else {"num_crops": image_budget}
        processor = Phi3VisionProcessor.from_pretrained(name, **crops)
        if (Path(name) / "config.json").is_file() or not Path(name).is_dir():
            config = AutoConfig.from_pretrained(name)
            processor.long_context_tokens = self.long_context_tokens(config)
        return processor

    def is_unused(self, model: Any, name: str) -> bool:
        """Tell whether a weight stands behind the tower layer whose features are taken."""
        if name.startswith(TOWER + "post_layernorm."):
            return True
        layers = TOWER + "encoder.layers."
        used = int(model.config.vision_config.num_hidden_layers) - UNUSED_LAYERS
        return name.startswith(layers) and int(name.removeprefix(layers).split(".")[0]) >= used

    def encode_images(self, model: Any, pixels: Mapping[str, Tensor]) -> BaseModelOutputWithPooling:
        """Run the tower and the projection; (tokens, hidden) of each image."""
        return BaseModelOutputWithPooling(pooler_output=model.get_image_features(**pixels))

    def row_costs(self, processor: Any) -> Costs:
        """Say what the rows of examples cost the published models; plans of all sizes go by it."""
        return COSTS

    def long_context_tokens(self, config: Any) -> int:
        """Length above which the long rotary factors hold."""
        return int(config.original_max_position_embeddings)


FAMILY = Phi3VisionFamily(
    {
        "vision": ("model.vision_embed_tokens.img_processor.",),
        "projector": ("model.vision_embed_tokens.",),
        "language": ("model.", ""),
    }
)
