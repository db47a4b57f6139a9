"""Phi-4-multimodal's images and words -> a family; its sounds are left alone."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import Phi4MultimodalForCausalLM
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import cached_file

from foveal.data.shapes import ImageShape
from foveal.errors import ModelError
from foveal.models.hub.hub_family import HubFamily, config_of
from foveal.models.hub.hub_reader import HubReader
from foveal.models.phi3_vision.rotary import PerExampleRotaryEmbedding

IMAGES = "model.embed_tokens_extend.image_embed."
SOUNDS = "model.embed_tokens_extend.audio_embed."
TOWER = f"{IMAGES}img_processor."
MASK, TOKENS = "image_attention_mask", "num_img_tokens"
VISION_ADAPTER = "vision-lora/adapter_config.json"


class Phi4MultimodalReader(HubReader):
    """Reads words and images through the model's own processor."""

    def _find_image_token(self) -> int:
        return int(self.config.vision_config.image_token_id)

    def _find_image_inputs(self) -> tuple[str, ...]:
        return ("image_pixel_values", "image_sizes", MASK, TOKENS)

    def _process(self, images: Sequence[Any], processor: Any = None) -> Any:
        made = super()._process(images, processor)
        if TOKENS not in made:  # left out of what a model is given
            texts = self._written(made)
            made[TOKENS] = torch.tensor([text.count(self.placeholder) for text in texts])
        return made

    def _crops(self, made: Any) -> int:
        return int(made["image_pixel_values"].shape[1])

    def stack(
        self, images: Sequence[Mapping[str, Tensor]], shapes: Sequence[ImageShape]
    ) -> dict[str, Tensor]:
        """Put several images together, those of fewer crops padded with crops that are all seen.

        A crop of which nothing is seen has no attention, and its gradient no number.
        """
        stacked = super().stack(images, shapes)
        for mask, image in zip(stacked[MASK], images, strict=True):
            mask[image[MASK].shape[1] :] = 1
        return stacked


class RotaryEmbedding(PerExampleRotaryEmbedding):
    """LongRoPE whose factors follow each token's own example, where the positions mark them."""

    def forward(self, hidden: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Work out the rotation of each token, in the number format of `hidden`.

        Args:
            hidden: (batch, length, width).
            position_ids: (2, batch, length): places, and whether the example is long; or places
                alone, (batch, length), of examples that begin at 0.
        """
        if position_ids.dim() == 3:
            places, is_long = position_ids[0], position_ids[1].bool()
        else:
            places, is_long = position_ids, position_ids.amax(-1, keepdim=True) >= self.border
        return super().forward(places, is_long, hidden.dtype)


class Phi4MultimodalFamily(HubFamily):
    """transformers' own model, whose features are put in place here and not by it."""

    reader = Phi4MultimodalReader
    text_config = ""

    @classmethod
    def of(cls, name: str) -> Self:
        """Make the family; transformers does not list its class among those of images."""
        return cls(name, config_of(name), Phi4MultimodalForCausalLM)

    def _find_parts(self, skeleton: Any) -> dict[str, tuple[str, ...]]:
        return {
            "vision": (TOWER,),
            "projector": (IMAGES,),
            "audio": (SOUNDS,),
            "language": ("model.", "lm_head|", "lm_head."),
        }

    def _find_unused(self, names: Iterable[str]) -> tuple[str, ...]:
        vision = self.config.vision_config
        used = vision.feature_layer % (vision.num_hidden_layers + 1)
        behind = range(used, vision.num_hidden_layers)
        layers = tuple(f"{TOWER}encoder.layers.{layer}." for layer in behind)
        return (*layers, f"{TOWER}post_layernorm.", f"{TOWER}head.", SOUNDS)

    def _decoder(self, skeleton: Any) -> nn.Module:
        decoder: nn.Module = skeleton.model.layers
        return decoder

    def load_model(self, name: str, attention: str, dtype: Any, quantization: Any = None) -> Any:
        """Load weights, in float32 unless told otherwise.

        Raises:
            ModelError: the folder keeps what reads images in an adapter of its own.
        """
        if cached_file(name, VISION_ADAPTER, _raise_exceptions_for_missing_entries=False):
            raise ModelError(
                f"model {name}: its adapter vision-lora is what reads images; merge it into a "
                "folder first, as docs/models.md shows, and give that"
            )
        model = super().load_model(name, attention, dtype, quantization)
        model.model.rotary_emb = RotaryEmbedding(model.config)
        return model

    def encode_images(self, model: Any, pixels: Mapping[str, Any]) -> BaseModelOutputWithPooling:
        """Run the tower and the projector; the features of all images stand in `pooler_output`.

        The model's own layer puts features where a text has places for them: here in a text of
        nothing else.
        """
        count = int(pixels[TOKENS].sum())
        embed = model.model.embed_tokens_extend.image_embed
        like = embed.img_projection_up.bias
        text = torch.full((1, count), self.image_token_id(model), device=like.device)
        features = embed(
            text,
            like.new_zeros(1, count, model.config.hidden_size),
            pixels["image_pixel_values"],
            pixels["image_sizes"],
            pixels[MASK],
        )
        return BaseModelOutputWithPooling(pooler_output=features[0])

    def decoder_inputs(self, model: Any, ids: Tensor, images: Any) -> dict[str, Any]:
        """Embed the text, and put the features of images in their places."""
        embedded: Tensor = model.model.embed_tokens(ids)
        if images is not None:
            places = (ids == self.image_token_id(model))[..., None]
            features = images.pooler_output.to(embedded.dtype)
            embedded = embedded.masked_scatter(places, features)
        return {"inputs_embeds": embedded}

    def image_token_id(self, model: Any) -> int:
        """Id that takes a feature of an image."""
        return int(model.config.vision_config.image_token_id)

    def long_context_tokens(self, config: Any) -> int | None:
        """Length above which the long rotary factors hold."""
        if config.rope_parameters["rope_type"] != "longrope":
            return None
        return int(config.original_max_position_embeddings)
