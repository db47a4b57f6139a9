"""Words and images -> ids, costs and pixels, through the processor that a model brings."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import AutoModel

from foveal.data.images.boxes import BoxFrame, BoxUnit
from foveal.data.images.frames import FrameChoice
from foveal.data.shapes import ImageShape
from foveal.data.turn_processor import AskedTurn, EncodedTurns, TurnsSetting, fingerprint_words
from foveal.errors import ModelError
from foveal.models.family import CLIP_SECONDS
from foveal.models.generation.characters import read_answer
from foveal.models.hub.clip_inputs import PairReader, make_clip_reader, runs_of
from foveal.models.hub.hub_processor import without_pixels
from foveal.models.known import box_frame_of
from foveal.models.words import ChatWords, ImageText

PROBE_SIZES = (96, 80), (30, 120)
REMEMBERED_SHAPES = 100_000
"""Sizes whose shapes stay known; distinct images of a data set share many."""


class HubReader:
    """Reads words and images through a model's own processor: a `TurnProcessor` of the walk."""

    long_context_tokens: int | None = None
    cuts_images = False
    """Whether an image is laid out as a grid of crops, which `cut` makes."""

    turns: TurnsSetting = "template"
    """How turns follow each other: as the model's own template has them."""

    boxes: BoxUnit | None = None
    """What numbers of boxes in the data count; see the recipe's `data.boxes`."""

    frame_choice = FrameChoice()
    """Which frames of a clip are shown, and how."""

    clip_reader: PairReader | None = None
    """What shows a clip as it is; none: as images alone."""

    def __init__(self, name: str, processor: Any, config: Any, model_class: Any) -> None:
        """Look at a processor.

        Raises:
            ModelError: its images or its template cannot be read exactly.
        """
        self.name = name
        self.processor = processor
        self.config = config
        self.model_class = model_class
        self.image_token_id = self._find_image_token()
        self._image_inputs = self._find_image_inputs()
        self._shapes: dict[tuple[int, int], ImageShape] = {}
        # What a prompt holds for an image; most call it by the token that takes features.
        self.placeholder = getattr(processor, "image_placeholder_token", processor.image_token)
        self.image_text = self._look_at_images()
        template = processor.chat_template or processor.tokenizer.chat_template
        if not template:
            raise ModelError(f"model {name}: it brings no chat template; give a tuned variant")
        self._ends = self._generation_ends()
        clips = make_clip_reader(name, processor, config, self.image_token_id)
        self.words = ChatWords(
            name,
            processor.tokenizer,
            template,
            self.image_text,
            self._ends[0] if self._ends else None,
            processor.video_token if clips else None,
        )
        self.clip_reader = clips if self.words.takes_clips else None

    def _find_image_token(self) -> int:
        return int(self.config.image_token_id)

    def _find_image_inputs(self) -> tuple[str, ...]:
        inner = bare_class(self.config, self.model_class)
        return tuple(inspect.signature(inner.get_image_features).parameters)

    def _generation_ends(self) -> list[int]:
        from transformers import GenerationConfig

        try:
            stated = GenerationConfig.from_pretrained(self.name).eos_token_id
        except OSError:
            stated = self.config.get_text_config().eos_token_id
        if stated is None:
            stated = self.tokenizer.eos_token_id
        return list(stated) if isinstance(stated, list) else [] if stated is None else [stated]

    @property
    def image_backend(self) -> str:
        """Which library resizes images: their pixels differ a little."""
        return str(self.processor.image_processor.backend)

    @property
    def tokenizer(self) -> Any:
        """Of transformers."""
        return self.processor.tokenizer

    # -- words -----------------------------------------------------------------------------------

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Ids of which the first one ends an answer."""
        return tuple(sorted({*self.words.end_ids, *self._ends}))

    def words_fingerprint(self) -> str:
        """Name all that the entries of a conversation hang on."""
        images = self.boxes and self.processor.image_processor.to_json_string()  # boxes lie in them
        about = (type(self).__qualname__, self.turns, self.reads_one_image, images)
        return fingerprint_words(*about, self.words.fingerprint())

    def encode_turns(self, turns: Sequence[AskedTurn], system: str = "") -> EncodedTurns:
        """Encode a conversation through the model's chat template.

        Raises:
            ValueError: it has several images, of which this model reads each in another way.
        """
        if self.reads_one_image and sum(turn.num_images for turn in turns) > 1:
            raise ValueError(
                "this model reads an image in another way beside others; give each image a line "
                "of its own"
            )
        return self.words.encode_turns(turns, system)

    def encode_answer(self, assistant: str) -> list[int]:
        """Encode an answer with what ends it."""
        return self.words.encode_answer(assistant)

    def decode_answer(self, ids: Sequence[int]) -> str:
        """Read the text of an answer up to its end."""
        return read_answer(self.tokenizer, ids, self.end_ids)

    # -- images ----------------------------------------------------------------------------------

    def _process(self, images: Sequence[Image.Image], processor: Any = None) -> Any:
        """Run the model's own processor, or one like it, on a text of images alone."""
        text = self.placeholder * len(images)
        return (processor or self.processor)(
            text=[text],
            images=[list(images)],
            return_tensors="pt",
            return_text_replacement_offsets=True,
        )

    def _written(self, made: Any) -> list[str]:
        if "text_replacement_offsets" not in made:
            raise ModelError(
                f"model {self.name}: its processor does not say what stands for an image"
            )
        return [one["replacement"] for one in made["text_replacement_offsets"][0]]

    def _look_at_images(self) -> ImageText:
        image = Image.new("RGB", PROBE_SIZES[0])
        texts = self._written(self._process([image, image]))
        if texts[0] != texts[1]:
            raise ModelError(f"model {self.name}: an image's number stands in its text")
        self.reads_one_image = self._written(self._process([image])) != texts[:1]
        lead, _, tail = self._cut(texts[0])
        return ImageText(self.placeholder, lead, tail)

    def _cut(self, text: str) -> tuple[str, str, str]:
        """Cut what stands for an image into plain text, its own run, and plain text."""
        tokens = self.tokenizer.get_added_vocab()
        found = [(text.find(one), text.rfind(one) + len(one)) for one in tokens if one in text]
        found = [ends for ends in found if text[ends[0] : ends[1]].strip()]
        start, end = min(first for first, _ in found), max(last for _, last in found)
        return text[:start], text[start:end], text[end:]

    def shape(self, width: int, height: int) -> ImageShape:
        """Say what an image costs and how it stands in a text, from its size alone.

        Raises:
            ValueError: the processor takes no image of this size.
        """
        size = width, height
        if size not in self._shapes:
            if len(self._shapes) >= REMEMBERED_SHAPES:
                self._shapes.clear()
            self._shapes[size] = self._measure(size)
        return self._shapes[size]

    @cached_property
    def _sizes(self) -> Any:
        """What is asked first: the processor without pixels, where it says the same as with."""
        sizes = without_pixels(self.processor)
        with suppress(Exception):  # what asks for pixels in a way of its own raises what it likes
            if all(self._ask(sizes, one) == self._ask(self.processor, one) for one in PROBE_SIZES):
                return sizes
        return self.processor

    def _measure(self, size: tuple[int, int]) -> ImageShape:
        if self._sizes is not self.processor:
            with suppress(Exception):  # that is for the whole processor to say, in its own words
                return self._ask(self._sizes, size)
        try:
            return self._ask(self.processor, size)
        except (ArithmeticError, LookupError, RuntimeError, TypeError) as error:
            # Not every processor looks at a size before it fails on it.
            raise ValueError(f"no size that {self.name} can read: {error}") from error

    def _ask(self, processor: Any, size: tuple[int, int]) -> ImageShape:
        made = self._process([Image.new("RGB", size)], processor)
        lead, run, tail = self._cut(self._written(made)[0])
        if (lead, tail) != (self.image_text.lead, self.image_text.tail):
            raise ModelError(f"model {self.name}: the text around an image hangs on its size")
        ids = self.tokenizer(run, add_special_tokens=False)["input_ids"]
        return ImageShape(
            runs=runs_of(ids),
            features=ids.count(self.image_token_id),
            crops=self._crops(made),
            grid=tuple(made["image_grid_thw"][0].tolist()) if "image_grid_thw" in made else (),
        )

    def _crops(self, made: Any) -> int:
        """Count what the tower sees: crops, or patches where it takes them one by one."""
        pixels = made["pixel_values"]
        return int(pixels.shape[0] * pixels.shape[1] if pixels.dim() == 5 else pixels.shape[0])

    def box_frame(self, width: int, height: int) -> BoxFrame:
        """Say in which numbers the model was taught to speak of places in an image."""
        patch = getattr(self.processor.image_processor, "patch_size", None)
        return box_frame_of(self.config.model_type, self.shape(width, height).grid, patch)

    def pixels(self, image: Image.Image) -> Mapping[str, Tensor]:
        """Turn an upright RGB image into what the tower takes."""
        made = self._process([image])
        return {name: made[name] for name in self._image_inputs if name in made}

    def stack(
        self, images: Sequence[Mapping[str, Tensor]], shapes: Sequence[ImageShape]
    ) -> dict[str, Tensor]:
        """Put several images together, those of fewer crops padded with zeros."""
        stacked = {name: _join([image[name] for image in images]) for name in images[0]}
        if any(shape.seconds for shape in shapes):
            times = [shape.seconds or 0.0 for shape in shapes]
            stacked[CLIP_SECONDS] = torch.tensor(times, dtype=torch.float64)
        return stacked

    def positions(self, ids: NDArray[np.int64], shapes: Sequence[ImageShape]) -> NDArray[np.int64]:
        """Place the tokens of one example, (axes, tokens)."""
        if self._rope_index is None:
            return np.arange(len(ids))[None]
        tokens = torch.from_numpy(ids)[None]
        types = (tokens == self.image_token_id).int()
        times = [shape.seconds for shape in shapes]
        clips: dict[str, Any] = {}
        if any(times):  # a clip's features take an image's place, and are told by their number
            kinds = torch.tensor([1 if time is None else 2 for time in times], dtype=torch.int)
            counts = torch.tensor([shape.features for shape in shapes])
            types[types == 1] = kinds.repeat_interleave(counts)
            clips["video_grid_thw"] = _grids(shape for shape in shapes if shape.seconds)
            clips["second_per_grid_ts"] = [time for time in times if time]
        grids = _grids(shape for shape in shapes if not shape.seconds)
        placed: Tensor = self._rope_index(tokens, types, image_grid_thw=grids, **clips)[0]
        return placed[:, 0].numpy()

    @cached_property
    def _rope_index(self) -> Callable[..., Any] | None:
        """The model's own way to place tokens on several axes, where it has one; no weights."""
        inner = bare_class(self.config, self.model_class)
        if not hasattr(inner, "get_rope_index"):
            return None
        stand_in = SimpleNamespace(
            config=self.config,
            get_vision_position_ids=lambda *args, **kwargs: inner.get_vision_position_ids(
                None, *args, **kwargs
            ),
        )
        return lambda *args, **kwargs: inner.get_rope_index(stand_in, *args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what another process makes anew."""
        return {key: one for key, one in vars(self).items() if key not in ("_rope_index", "_sizes")}


def _grids(shapes: Iterable[ImageShape]) -> Tensor | None:
    grids = [shape.grid for shape in shapes]
    return torch.tensor(grids) if grids else None


def _join(tensors: Sequence[Tensor]) -> Tensor:
    if len({one.shape[1:] for one in tensors}) == 1:
        return torch.cat(list(tensors)) if len(tensors) > 1 else tensors[0]
    largest = [max(sizes) for sizes in zip(*(one.shape[1:] for one in tensors), strict=True)]
    whole = tensors[0].new_zeros(sum(map(len, tensors)), *largest)
    for part, one in zip(whole.split([len(one) for one in tensors]), tensors, strict=True):
        part[tuple(slice(size) for size in one.shape)] = one
    return whole


def bare_class(config: Any, model_class: Any) -> Any:
    """Find the class of the model below the head; the head's where transformers has no other."""
    return AutoModel._model_mapping.get(type(config), None) or model_class
