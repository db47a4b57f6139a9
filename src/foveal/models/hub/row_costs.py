"""A model's layers -> what the rows of its examples cost, to share work out by."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from math import prod
from typing import Any

from PIL import Image
from torch import nn

from foveal.data.row_planning.groups import Costs

SAMPLE = 96, 80
"""Of an image whose pixels are counted, width and height."""


OUT_OF_ATTENTION = "self_attn.o_proj", "self_attn.out_proj"
"""What a decoder's layer calls what comes behind its attention."""


@dataclass(frozen=True)
class LayerProducts:
    """Products that the repeated layers of a model take; heads and projectors are left out."""

    token: float
    """Of a token of the decoder, attention aside."""

    pair: float
    """Of a token of the decoder that looks at a token."""

    patch: float
    """Of a patch of an image in the tower, attention aside."""

    patch_pair: float

    @classmethod
    def count(
        cls, config: Any, language: Collection[nn.Module], tower: Iterable[nn.Module]
    ) -> "LayerProducts":
        """Count them.

        Args:
            config: of the whole model.
            language: layers of its decoder; shapes are enough.
            tower: those of its towers that are run.
        """
        asked = _experts_asked(config.get_text_config())
        tower = list(tower)
        return cls(
            token=sum(_products(layer, asked) for layer in language),
            pair=sum(2 * _queries(layer) for layer in language),
            patch=sum(_products(layer, 1) for layer in tower),
            patch_pair=sum(2 * _width(layer) for layer in tower),
        )

    def costs(self, config: Any, processor: Any) -> Costs:
        """Price rows in tokens of the decoder.

        A crop's patches see each other; patches that the tower takes one by one are each a crop,
        and as many as their image has: what they see is not counted.

        Args:
            config: of the whole model.
            processor: of the model.
        """
        if not self.token:
            return Costs()
        patches = _patches_of_crop(getattr(config, "vision_config", None), processor)
        crop = patches * (self.patch + (self.patch_pair * patches if patches > 1 else 0))
        return Costs(pair=self.pair / self.token, crop=crop / self.token)


def _products(layer: nn.Module, experts_asked: int) -> float:
    """Count the weights that a token is multiplied with: of all experts, of those it is given."""
    linear = sum(
        one.in_features * one.out_features for one in layer.modules() if isinstance(one, nn.Linear)
    )
    fused = [one for one in layer.parameters() if one.dim() == 3]
    return linear + experts_asked * sum(one.numel() / one.shape[0] for one in fused)


def _experts_asked(text: Any) -> int:
    names = "num_experts_per_tok", "top_k_experts"
    return next((int(getattr(text, name)) for name in names if getattr(text, name, None)), 1)


def _queries(layer: nn.Module) -> int:
    """Count the numbers of a token's queries, all heads together; 0: it looks at no other."""
    named = dict(layer.named_modules())
    found = [one for name, one in named.items() if name.endswith(OUT_OF_ATTENTION)]
    return max((int(one.in_features) for one in found), default=0)


def _width(layer: nn.Module) -> int:
    inputs = [one.in_features for one in layer.modules() if isinstance(one, nn.Linear)]
    return min(inputs, default=0)


def _patches_of_crop(tower: Any, processor: Any) -> int:
    """Count the patches of what a row counts as one crop, by the pixels of both."""
    shape = processor.shape(*SAMPLE)
    side = getattr(tower, "patch_size", None)
    if side is None:  # a tower of convolutions
        return max(1, int(shape.features) // int(shape.crops))
    pixels: int = processor.pixels(Image.new("RGB", SAMPLE))["pixel_values"].numel()
    area = side**2 if isinstance(side, int) else prod(side[-2:])
    numbers = 3 * int(area) * int(getattr(tower, "temporal_patch_size", 1))
    return max(1, round(pixels / int(shape.crops) / numbers))
