"""Frames of a clip -> ids, cost and patches, as Qwen's own video processors make them of it.

Two frames stand behind each token. The tower is that of images, and so a clip takes the way of an
image from here on: its patches lie beside those of images, and its features stand at the image's
token, whose own embedding no model reads. Frames are resized by Pillow: no torchvision is needed.
"""

import math
from collections.abc import Mapping, Sequence
from copy import copy
from itertools import groupby
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from foveal.data.images.frames import FrameStrip
from foveal.data.shapes import ImageShape

CLIP_TYPES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe")
"""Types whose tower reads a pair of frames as it reads an image."""

LAYOUT = ("patch_size", "merge_size", "temporal_patch_size")

# Class of the video processor -> side of what becomes a token, whether all frames share the budget.
_SHARE_BUDGET = {"Qwen2VLVideoProcessor": (28, False), "Qwen3VLVideoProcessor": (32, True)}


def runs_of(ids: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Count how often each id stands before another follows: (id, count)."""
    return tuple((one, len(list(same))) for one, same in groupby(ids))


class PairReader:
    """Reads clips for one model."""

    def __init__(self, processor: Any, settings: Mapping[str, Any], token: int) -> None:
        """Look at what a model's files say of clips."""
        images = processor.image_processor
        side, self._shared = _SHARE_BUDGET[settings["video_processor_type"]]
        size = settings.get("size") or {}
        usual = {"shortest_edge": 128 * side**2, "longest_edge": 768 * side**2}
        limits = {**usual, **size}
        if not self._shared:  # older files call them so
            for old, new in (("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge")):
                limits[new] = settings.get(old) or limits[new]
        self._fewest, self._most = limits["shortest_edge"], limits["longest_edge"]
        self._processor, self._token = processor, token
        self._colours = {
            one: settings.get(one) or getattr(images, one) for one in ("image_mean", "image_std")
        }
        self._side, self._patch = images.patch_size * images.merge_size, images.patch_size
        self._pair = images.temporal_patch_size

    def shape(self, width: int, height: int, strip: FrameStrip) -> ImageShape:
        """Say what a clip costs and how it stands in a text, from the size of its strip alone.

        Raises:
            ValueError: it is too elongated.
        """
        columns, rows = self._resized(width, height // strip.count, strip.count)
        grid = (-(-strip.count // self._pair), rows // self._patch, columns // self._patch)
        tokenizer = self._processor.tokenizer
        ids = np.asarray(
            tokenizer(self._written(grid, strip), add_special_tokens=False)["input_ids"]
        )
        takes = ids == tokenizer.convert_tokens_to_ids(self._processor.video_token)
        return ImageShape(
            runs=runs_of(np.where(takes, self._token, ids).tolist()),
            features=int(takes.sum()),
            crops=math.prod(grid),
            grid=grid,
            seconds=strip.seconds * self._pair,
        )

    def _written(self, grid: tuple[int, int, int], strip: FrameStrip) -> str:
        """Write what the model's own processor writes for a clip, its times among it."""
        from transformers.video_utils import VideoMetadata

        own = copy(self._processor)
        own.video_processor = SimpleNamespace(
            merge_size=self._side // self._patch, temporal_patch_size=self._pair
        )
        about = VideoMetadata(
            total_num_frames=strip.count,
            fps=1 / strip.seconds,
            frames_indices=list(range(strip.count)),
        )
        made = {"video_grid_thw": torch.tensor([grid]), "video_metadata": [about]}
        return str(own.replace_video_token(made, 0))

    def _resized(self, width: int, height: int, frames: int) -> tuple[int, int]:
        """Work out (width, height) of a frame that is read, as `smart_resize` of each processor."""
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize
        from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize as shared

        if self._shared:
            rows, columns = shared(
                frames, height, width, self._pair, self._side, self._fewest, self._most
            )
        else:
            rows, columns = smart_resize(height, width, self._side, self._fewest, self._most)
        return columns, rows

    def pixels(self, image: Image.Image, strip: FrameStrip) -> dict[str, Tensor]:
        """Turn a strip of upright frames into patches, each of the same place in two frames."""
        width, height = image.width, image.height // strip.count
        size = self._resized(width, height, strip.count)
        tops = [height * number for number in range(strip.count)]
        frames = [image.crop((0, top, width, top + height)) for top in tops]
        frames = [one.resize(size, Image.Resampling.BICUBIC) for one in frames]
        frames += frames[-1:] * (-len(frames) % self._pair)
        made = self._processor.image_processor(
            images=frames, do_resize=False, return_tensors="pt", **self._colours
        )
        # An image's patches hold it twice: (frames / 2, 2, patches, channels, 2, patch * patch).
        times = len(frames) // self._pair
        patches = made["pixel_values"].view(
            times, self._pair, -1, 3, self._pair, self._patch * self._patch
        )
        paired = torch.stack([patches[:, one, :, :, one] for one in range(self._pair)], dim=3)
        grid = [times, *made["image_grid_thw"][0, 1:].tolist()]
        return {
            "pixel_values": paired.flatten(0, 1).flatten(1),
            "image_grid_thw": torch.tensor([grid]),
        }


def make_clip_reader(name: str, processor: Any, config: Any, token: int) -> PairReader | None:
    """Make what reads clips for a model; none: it takes none in this way.

    Args:
        name: of the model.
        processor: of transformers.
        config: of the model.
        token: id at which features of images stand.
    """
    from transformers.video_processing_utils import BaseVideoProcessor

    if config.model_type not in CLIP_TYPES:
        return None
    try:
        settings, _ = BaseVideoProcessor.get_video_processor_dict(name)
    except OSError:  # images alone
        return None
    images = processor.image_processor
    if settings.get("cap_pixels_per_frame") or any(
        settings.get(one, getattr(images, one)) != getattr(images, one) for one in LAYOUT
    ):  # cut in another way than images
        return None
    # As AutoVideoProcessor guesses where the files name none.
    guessed = str(settings.get("image_processor_type", "")).replace("Image", "Video")
    kind = str(settings.get("video_processor_type") or guessed)
    if kind not in _SHARE_BUDGET:
        shares = not config.model_type.startswith("qwen2")
        kind = "Qwen3VLVideoProcessor" if shares else "Qwen2VLVideoProcessor"
    return PairReader(processor, {**settings, "video_processor_type": kind}, token)
