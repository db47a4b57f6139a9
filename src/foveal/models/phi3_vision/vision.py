"""Crops -> image embeddings: the CLIP tower, 2 x 2 merging, separators and the projection.

Module names are those of the published checkpoint (`img_processor`, `glb_GN`, ...).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPVisionModel

from foveal.models.phi3_vision.config import Phi3VisionConfig
from foveal.models.phi3_vision.image import CLIP_MEAN, CLIP_STD, global_view, normalize

UNUSED_LAYERS = 1
"""Last tower layers whose output nobody reads: the feature is taken before them."""


class QuickGelu(nn.Module):
    """x * sigmoid(1.702 x), as CLIP has it; it keeps one tensor for the backward pass, not two."""

    def forward(self, hidden: Tensor) -> Tensor:
        """Apply it, element by element."""
        return F.silu(1.702 * hidden) / 1.702


class Tower(nn.Module):
    """The CLIP vision tower up to its second-to-last layer; the last stays in files alone."""

    def __init__(self, config: Phi3VisionConfig) -> None:
        super().__init__()
        self.vision_model = CLIPVisionModel(config.vision_config)
        if config.vision_config.hidden_act == "quick_gelu":
            for layer in self.vision_model.encoder.layers:
                layer.mlp.activation_fn = QuickGelu()

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Encode crops.

        Args:
            pixel_values: (crops, 3, size, size), float, normalised.

        Returns:
            (crops, patches, width), without the class token.
        """
        hidden = self.vision_model.embeddings(pixel_values)
        hidden = self.vision_model.pre_layrnorm(hidden)
        for layer in self.vision_model.encoder.layers[:-UNUSED_LAYERS]:
            hidden = layer(hidden, attention_mask=None)
        patches: Tensor = hidden[:, 1:]
        return patches


class ImageEmbedding(nn.Module):
    """Everything between images and the decoder."""

    def __init__(self, config: Phi3VisionConfig) -> None:
        super().__init__()
        merged = config.vision_config.hidden_size * 4
        self.tokens_side = config.crop_tokens_side
        self.img_processor = Tower(config)
        self.glb_GN = nn.Parameter(torch.zeros(1, 1, merged))
        self.sub_GN = nn.Parameter(torch.zeros(1, 1, 1, merged))
        self.img_projection = nn.Sequential(
            nn.Linear(merged, config.hidden_size),
            nn.GELU(),
            nn.Linear(config.hidden_size, config.hidden_size),
        )

    def forward(self, pixel_values: Tensor, grids: Sequence[tuple[int, int]]) -> list[Tensor]:
        """Encode images.

        Args:
            pixel_values: crops of all images one after another, row by row, uint8 or normalised
                float, (crops, 3, size, size). Each image's global view stands before its own
                crops, or all global views are left out and made here from the crops.
            grids: (rows, columns) of each image.

        Returns:
            For each image, (tokens, hidden): own crops, a separator, the global view.

        Raises:
            ValueError: the number of crops fits neither form.
        """
        own = [rows * columns for rows, columns in grids]
        pixels = normalize(pixel_values, CLIP_MEAN, CLIP_STD)
        if len(pixels) == sum(own):
            crops, views = self._encode_with_views(pixels, grids)
        elif len(pixels) == sum(own) + len(own):
            features = self._merge(self.img_processor(pixels))
            split = features.split([count + 1 for count in own])
            views, crops = [one[:1] for one in split], [one[1:] for one in split]
        else:
            raise ValueError(
                f"{len(pixels)} crops do not fit {len(own)} images of {own} crops, "
                "with or without their global views"
            )
        arranged = [
            self._arrange(crop, view, *grid)
            for crop, view, grid in zip(crops, views, grids, strict=True)
        ]
        projected = self.img_projection(torch.cat(arranged))
        return list(projected.split([len(tokens) for tokens in arranged]))

    def _encode_with_views(
        self, pixels: Tensor, grids: Sequence[tuple[int, int]]
    ) -> tuple[list[Tensor], list[Tensor]]:
        # An image of one crop is its own global view, bit for bit: encoded once, used twice.
        counts = [rows * columns for rows, columns in grids]
        images = pixels.split(counts)
        larger = [index for index, count in enumerate(counts) if count > 1]
        made = [global_view(images[index], *grids[index]) for index in larger]
        features = self._merge(self.img_processor(torch.cat([pixels, *made])))
        crops = list(features[: len(pixels)].split(counts))
        views = list(crops)
        for place, index in enumerate(larger, start=len(pixels)):
            views[index] = features[place : place + 1]
        return crops, views

    def _merge(self, features: Tensor) -> Tensor:
        """Join 2 x 2 patches: (crops, patches, width) -> (crops, side, side, 4 width)."""
        side = self.tokens_side
        blocks = features.view(len(features), side, 2, side, 2, -1).transpose(2, 3)
        return blocks.reshape(len(features), side, side, -1)

    def _arrange(self, crops: Tensor, view: Tensor, rows: int, columns: int) -> Tensor:
        """Lay an image out as lines of merged patches, each ended by a separator."""
        side = self.tokens_side
        own = crops.view(rows, columns, side, side, -1).transpose(1, 2)
        lines = self._end_lines(own.reshape(rows * side, columns * side, -1))
        return torch.cat([lines, self.glb_GN[0], self._end_lines(view[0])])

    def _end_lines(self, lines: Tensor) -> Tensor:
        ends = self.sub_GN[0].expand(len(lines), 1, -1)
        return torch.cat([lines, ends], dim=1).flatten(0, 1)
