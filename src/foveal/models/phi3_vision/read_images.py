"""Turns and images -> entries, shapes and crops: what the data walk asks of this family."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from foveal.data.images.boxes import BoxFrame, BoxUnit
from foveal.data.images.frames import FrameChoice
from foveal.data.shapes import ImageShape
from foveal.data.turn_processor import AskedTurn, EncodedTurns, TurnsSetting, fingerprint_words
from foveal.models.phi3_vision.image import (
    Phi3VImageProcessor,
    crop_grid,
    cut_crops,
    num_image_tokens,
)


class CropReader:
    """Reads conversations turn by turn, and images as square crops."""

    cuts_images = True
    image_backend = "pil"
    long_context_tokens: int | None = 4096
    """Length above which the long rotary factors hold, as the model's configuration says."""

    turns: TurnsSetting = "recipe"
    """How the turns of a conversation follow each other; see the recipe's `data.turns`."""

    boxes: BoxUnit | None = None
    """What numbers of boxes in the data count; see the recipe's `data.boxes`."""

    frame_choice = FrameChoice()
    """Which frames of a clip are shown, each as an image."""

    clip_reader = None

    image_processor: Phi3VImageProcessor
    """Which cuts images."""

    @property
    def image_token_id(self) -> int:
        """Id that takes a feature of an image."""
        raise NotImplementedError

    @property
    def num_crops(self) -> int:
        """Most crops an image."""
        return int(self.image_processor.num_crops)

    @property
    def crop_size(self) -> int:
        """Side of a crop, pixels."""
        return int(self.image_processor.crop_size)

    def encode_prompt(self, user: str, num_images: int) -> list[int]:
        """Encode one turn's prompt; image k of the turn stands as the single number -(k + 1)."""
        raise NotImplementedError

    def encode_answer(self, assistant: str) -> list[int]:
        """Encode one turn's answer."""
        raise NotImplementedError

    def encode_system(self, text: str) -> list[int]:
        """Encode a system message, which stands in place of the first prompt's first token."""
        raise NotImplementedError

    def words_fingerprint(self) -> str:
        """Name all that the entries of a conversation hang on."""
        images = self.boxes and (self.num_crops, self.crop_size)  # boxes lie in what they make
        return fingerprint_words(type(self).__qualname__, self.turns, images)

    def encode_turns(self, turns: Sequence[AskedTurn], system: str = "") -> EncodedTurns:
        """Encode a conversation; every turn is a prompt of its own, and its answer is learnt."""
        parts: list[tuple[list[int], list[int]]] = []
        before = 0
        for turn in turns:
            prompt = self.encode_prompt(turn.user, turn.num_images)
            # A turn counts its images from 0, a conversation goes on.
            prompt = [entry - before if entry < 0 else entry for entry in prompt]
            answer = [] if turn.assistant is None else self.encode_answer(turn.assistant)
            before += turn.num_images
            parts.append((prompt, answer))
        if system:
            parts[0][0][:1] = self.encode_system(system)
        if self.turns == "template":
            for (_, answer), (prompt, _) in pairwise(parts):
                del answer[-1:], prompt[:1]
        entries = [entry for prompt, answer in parts for entry in (*prompt, *answer)]
        learnt = [part == 1 for turn in parts for part in (0, 1) for _ in turn[part]]
        return EncodedTurns(entries, learnt, len(parts[0][0]))

    def shape(self, width: int, height: int) -> ImageShape:
        """Say what an image costs and how it stands in a text, from its size alone.

        Raises:
            DataError: it is too elongated.
        """
        rows, columns = self.grid(width, height)
        tokens = num_image_tokens(rows, columns, self.image_processor.tokens_side)
        # A single crop is its own global view.
        crops = rows * columns + 1 if rows * columns > 1 else 1
        return ImageShape(((self.image_token_id, tokens),), tokens, crops, (rows, columns))

    def grid(self, width: int, height: int) -> tuple[int, int]:
        """Rows and columns of crops of an image, from its size alone."""
        grid = crop_grid(width, height, self.num_crops, self.crop_size)
        return grid.rows, grid.columns

    def box_frame(self, width: int, height: int) -> BoxFrame:
        """Count pixels of the page that is cut into crops, white borders too."""
        grid = crop_grid(width, height, self.num_crops, self.crop_size)
        corner = (grid.width - grid.resized[0]) // 2, (grid.height - grid.resized[1]) // 2
        return BoxFrame(grid.resized, corner, (grid.width, grid.height))

    def cut(self, image: Image.Image) -> Tensor:
        """Cut an RGB image into its own crops, (crops, 3, size, size), uint8."""
        return cut_crops(image, self.num_crops, self.crop_size)

    def pixels(self, image: Image.Image) -> Mapping[str, Tensor]:
        """Cut an RGB image into its own crops, without its global view."""
        return {"pixel_values": self.cut(image)}

    def stack(
        self, images: Sequence[Mapping[str, Tensor]], shapes: Sequence[ImageShape]
    ) -> dict[str, Tensor]:
        """Put the crops of several images one after another, with their sizes in pixels."""
        crops = torch.cat([image["pixel_values"] for image in images])
        return {
            "pixel_values": crops,
            "image_sizes": torch.tensor([shape.grid for shape in shapes]) * crops.shape[-1],
        }

    def positions(self, ids: NDArray[np.int64], shapes: Sequence[ImageShape]) -> NDArray[np.int64]:
        """Count the tokens of one example, (1, tokens)."""
        return np.arange(len(ids))[None]
