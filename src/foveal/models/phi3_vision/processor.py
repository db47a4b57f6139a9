"""Turns and pictures -> token ids and crops, exactly as the published processor makes them.

The classes carry the published names, since transformers finds a processor by the name that a
model folder states; `Phi3VisionProcessor` and `Phi3VisionImageProcessor` are the same classes.
"""

import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor
from transformers import BatchFeature, PreTrainedTokenizerFast, ProcessorMixin
from transformers.image_processing_utils import BaseImageProcessor

from foveal.data.media import open_image, to_rgb
from foveal.errors import DataError
from foveal.models.phi3_vision.image import (
    CLIP_MEAN,
    CLIP_STD,
    crop_grid,
    cut_crops,
    global_view,
    normalize,
    num_image_tokens,
)
from foveal.models.phi3_vision.reading import CropReader

TAG = re.compile(r"<\|image_(\d+)\|>")
MOST_REMEMBERED_TEXTS = 20_000
"""Texts that are encoded once: labels, openings, and the questions asked of every picture."""

PUBLISHED_CROP_SIZE = 336
PUBLISHED_TOKENS_SIDE = 12

Picture = Image.Image | str | Path


class Phi3VImageProcessor(BaseImageProcessor):  # type: ignore[misc]
    """Cuts pictures into crops, each picture's global view first; no padding crops."""

    model_input_names = ["pixel_values", "image_sizes"]  # noqa: RUF012

    def __init__(
        self,
        num_crops: int = 16,
        crop_size: int = PUBLISHED_CROP_SIZE,
        num_img_tokens: int = PUBLISHED_TOKENS_SIDE**2,
        image_mean: Sequence[float] = CLIP_MEAN,
        image_std: Sequence[float] = CLIP_STD,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.num_crops = num_crops
        self.crop_size = crop_size
        self.num_img_tokens = num_img_tokens
        self.image_mean = list(image_mean)
        self.image_std = list(image_std)

    def __call__(self, images: Any, *args: Any, **kwargs: Any) -> BatchFeature:
        """See `preprocess`."""
        return self.preprocess(images, *args, **kwargs)

    def preprocess(
        self, images: Picture | Sequence[Picture], num_crops: int | None = None, **_: Any
    ) -> BatchFeature:
        """Turn pictures into the model's inputs.

        Args:
            images: Pillow pictures or paths.
            num_crops: most crops a picture; none: as configured.

        Returns:
            pixel_values: (crops, 3, size, size), float32, normalised.
            image_sizes: (images, 2), height and width after the HD transform, pixels.
            num_img_tokens: tokens of each picture.

        Raises:
            DataError: a picture cannot be read, or is too elongated.
        """
        pictures = [images] if isinstance(images, Picture) else images
        views, sizes, tokens = [], [], []
        for picture in pictures:
            image = as_rgb(picture)
            grid = crop_grid(image.width, image.height, num_crops or self.num_crops, self.crop_size)
            own = normalize(
                cut_crops(image, num_crops or self.num_crops, self.crop_size),
                tuple(self.image_mean),
                tuple(self.image_std),
            )
            views += [global_view(own, grid.rows, grid.columns), own]
            sizes.append((grid.height, grid.width))
            tokens.append(self.num_tokens(image.width, image.height, num_crops))
        return BatchFeature(
            {
                "pixel_values": torch.cat(views),
                "image_sizes": torch.tensor(sizes),
                "num_img_tokens": tokens,
            }
        )

    def num_tokens(self, width: int, height: int, num_crops: int | None = None) -> int:
        """Count the tokens of a picture from its size alone."""
        grid = crop_grid(width, height, num_crops or self.num_crops, self.crop_size)
        return num_image_tokens(grid.rows, grid.columns, int(self.num_img_tokens**0.5))


class Phi3VProcessor(CropReader, ProcessorMixin):  # type: ignore[misc]
    """Prompts and pictures to the model's inputs, and turns to what is learnt from them."""

    def __init__(
        self,
        image_processor: Phi3VImageProcessor,
        tokenizer: PreTrainedTokenizerFast,
        chat_template: str | None = None,
        **_: Any,
    ) -> None:
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    @classmethod
    def from_pretrained(cls, name: str | Path, **kwargs: Any) -> Self:
        """Load from a model folder or hub name.

        The tokenizer is read as tokenizer.json says: `AutoTokenizer` of transformers 5 rebuilds it
        and gives other ids.
        """
        for ours in ("trust_remote_code", "_from_auto"):
            kwargs.pop(ours, None)
        known = ("cache_dir", "revision", "token", "local_files_only", "subfolder")
        where = {key: kwargs[key] for key in known if key in kwargs}
        images = Phi3VImageProcessor.from_pretrained(name, **where)
        images.num_crops = kwargs.get("num_crops") or images.num_crops
        return cls(images, PreTrainedTokenizerFast.from_pretrained(name, **where))

    @cached_property
    def image_token_id(self) -> int:
        """Id that stands where an image is."""
        return int(self.tokenizer.convert_tokens_to_ids("<|image|>"))

    @property
    def num_crops(self) -> int:
        """Most crops a picture."""
        return int(self.image_processor.num_crops)

    @property
    def crop_size(self) -> int:
        """Side of a crop, pixels."""
        return int(self.image_processor.crop_size)

    @property
    def tokens_side(self) -> int:
        """Merged patches along one side of a crop."""
        return int(self.image_processor.num_img_tokens**0.5)

    # -- prompts, as transformers' users write them ----------------------------------------------

    def __call__(
        self,
        text: str | Sequence[str],
        images: Picture | Sequence[Picture] | Sequence[Sequence[Picture]] | None = None,
        padding_side: str = "left",
        num_crops: int | None = None,
        **_: Any,
    ) -> BatchFeature:
        """Encode one or many prompts with their pictures.

        Args:
            text: prompts; `<|image_1|>` ... `<|image_n|>` stand where the pictures go.
            images: of one prompt; of many, a list for each, or one list dealt out in order.
            padding_side: "left" suits generation.
            num_crops: most crops a picture; none: as configured.

        Returns:
            input_ids and attention_mask, (batch, length); with pictures also pixel_values and
            image_sizes, in the order in which the prompts show them.

        Raises:
            ValueError: tags and pictures do not match.
            DataError: a picture cannot be read.
        """
        prompts = [text] if isinstance(text, str) else list(text)
        if not prompts:
            raise ValueError("give at least one prompt")
        dealt = deal_images(prompts, images)
        rows, shown = [], []
        for prompt, pictures in zip(prompts, dealt, strict=True):
            opened = [as_rgb(pictures[number]) for number in tag_order(prompt, len(pictures))]
            rows.append(self._prompt_ids(prompt, opened, num_crops))
            shown += opened
        inputs = self._pad(rows, padding_side)
        if shown:
            processed = self.image_processor(shown, num_crops=num_crops)
            inputs["pixel_values"] = processed["pixel_values"]
            inputs["image_sizes"] = processed["image_sizes"]
        return BatchFeature(inputs)

    def _prompt_ids(
        self, prompt: str, pictures: list[Image.Image], num_crops: int | None
    ) -> list[int]:
        counts = [self.image_processor.num_tokens(*one.size, num_crops) for one in pictures]
        ids: list[int] = []
        chunks = TAG.split(prompt)[::2]
        for chunk, count in zip(chunks, [*counts, 0], strict=True):
            ids += self.tokenizer(chunk)["input_ids"] + [self.image_token_id] * count
        return ids

    def _pad(self, rows: list[list[int]], side: str) -> dict[str, Tensor]:
        longest = max(len(row) for row in rows)
        ids = torch.full((len(rows), longest), int(self.tokenizer.pad_token_id))
        mask = torch.zeros(len(rows), longest, dtype=torch.long)
        for index, row in enumerate(rows):
            place = slice(longest - len(row), None) if side == "left" else slice(len(row))
            ids[index, place] = torch.tensor(row)
            mask[index, place] = 1
        return {"input_ids": ids, "attention_mask": mask}

    def apply_chat_template(
        self,
        conversation: list[dict[str, Any]] | list[list[dict[str, Any]]],
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        tokenize: bool = False,
        return_dict: bool = True,
        **kwargs: Any,
    ) -> Any:
        """Write messages with image and text parts as a prompt; `tokenize` encodes it too.

        Args:
            conversation: messages of one conversation, or of many.
            chat_template: instead of the tokenizer's own.
            add_generation_prompt: end with the tag that the answer follows.
            tokenize: return the model's inputs instead of text.
            return_dict: with `tokenize`, all inputs instead of the ids alone.
            kwargs: handed on to `__call__`.
        """
        several = bool(conversation) and isinstance(conversation[0], list)
        texts, images = [], []
        conversations: list[Any] = conversation if several else [conversation]
        for messages in conversations:
            plain, pictures = write_tags(messages)
            texts.append(
                self.tokenizer.apply_chat_template(
                    plain,
                    chat_template=chat_template or self.chat_template,
                    add_generation_prompt=add_generation_prompt,
                    tokenize=False,
                )
            )
            images.append(pictures)
        if not tokenize:
            return texts if several else texts[0]
        inputs = self(texts, images, **kwargs)
        return inputs if return_dict else inputs["input_ids"]

    # -- turns, as training and evaluation take them ---------------------------------------------

    @cached_property
    def _known_texts(self) -> dict[str, tuple[int, ...]]:
        return {}

    @cached_property
    def _plain_tokenizer(self) -> Tokenizer:
        # A control token written by a user is encoded as text, never as control.
        plain = Tokenizer.from_str(self.tokenizer.backend_tokenizer.to_str())
        plain.encode_special_tokens = True
        plain.no_padding()
        plain.no_truncation()
        return plain

    def encode_plain(self, text: str) -> list[int]:
        """Encode text as text, whatever control tokens it spells out."""
        known = self._known_texts.get(text)
        if known is None:
            known = tuple(self._plain_tokenizer.encode(text, add_special_tokens=False).ids)
            if len(self._known_texts) < MOST_REMEMBERED_TEXTS:
                self._known_texts[text] = known
        return list(known)

    def _control(self, token: str) -> int:
        return self._control_ids[token]

    @cached_property
    def _control_ids(self) -> dict[str, int]:
        names = ("<s>", "<|user|>", "<|end|>", "<|assistant|>", "<|endoftext|>")
        return {name: int(self.tokenizer.convert_tokens_to_ids(name)) for name in names}

    def encode_prompt(self, user: str, num_images: int) -> list[int]:
        r"""Encode one turn's prompt; image k of the turn stands as the single number -(k + 1).

        `<|user|>\n<|image_1|>...<|image_n|>\n{user}<|end|>\n<|assistant|>\n`, each stretch
        between images encoded by itself behind a `<s>`. A user who writes the tags decides where
        the images stand.

        Raises:
            ValueError: the user's tags do not match the images.
        """
        if not TAG.search(user):
            tags = "".join(f"<|image_{number + 1}|>" for number in range(num_images))
            user = f"{tags}\n{user}" if num_images else user
        order = tag_order(user, num_images)
        start, turn_end = self._control("<s>"), self._control("<|end|>")
        first, *others = TAG.split(user)[::2]
        ids = [start, self._control("<|user|>"), *self.encode_plain("\n" + first)]
        for number, chunk in zip(order, others, strict=True):
            ids += [-(number + 1), start]
            ids += self.encode_plain(chunk) if chunk else []
        return [*ids, turn_end, *self.encode_plain("\n"), self._control("<|assistant|>")]

    def encode_system(self, text: str) -> list[int]:
        r"""Encode what stands before the first turn, in place of its `<s>`.

        `<|system|>\n{text}<|end|>\n`, as the published chat template writes it.
        """
        start, turn_end = self._control("<s>"), self._control("<|end|>")
        system = int(self.tokenizer.convert_tokens_to_ids("<|system|>"))
        return [start, system, *self.encode_plain("\n" + text), turn_end, *self.encode_plain("\n")]

    def encode_answer(self, assistant: str) -> list[int]:
        r"""Encode one turn's answer: `{assistant}<|end|>\n<|endoftext|>`."""
        text = self.encode_plain(assistant) if assistant else []
        end_of_turn, end_of_text = self.end_ids
        return [*text, end_of_turn, *self.encode_plain("\n"), end_of_text]

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Ids of which the first one ends an answer."""
        return self._control("<|end|>"), self._control("<|endoftext|>")

    def decode_answer(self, ids: Sequence[int]) -> str:
        """Read the text of an answer up to its end."""
        ids = list(ids)
        end = next((place for place, one in enumerate(ids) if one in self.end_ids), len(ids))
        text: str = self.tokenizer.decode(ids[:end], skip_special_tokens=True)
        return text.strip()


Phi3VisionImageProcessor = Phi3VImageProcessor
Phi3VisionProcessor = Phi3VProcessor


def as_rgb(picture: Picture) -> Image.Image:
    """Open a path, or take a Pillow picture, as RGB.

    Raises:
        DataError: the picture cannot be read.
        ValueError: it is neither.
    """
    if isinstance(picture, str | Path):
        return open_image(Path(picture))
    if not isinstance(picture, Image.Image):
        kind = type(picture).__name__
        raise ValueError(f"a picture is a Pillow image or a path, not {kind}")
    try:
        return to_rgb(picture)
    except OSError as error:  # Pillow decodes at the first use
        raise DataError(f"{picture}: broken picture ({error}); replace it") from error


def tag_order(text: str, num_images: int) -> list[int]:
    """Read in which order a text shows its images, counted from 0.

    Raises:
        ValueError: the tags are not 1 to `num_images`, each once.
    """
    tags = [int(tag) for tag in TAG.findall(text)]
    if sorted(tags) != list(range(1, num_images + 1)):
        named = ", ".join(f"<|image_{tag}|>" for tag in tags) or "none"
        raise ValueError(
            f"image tags in the text ({named}) do not match {num_images} images; "
            "write each of <|image_1|> to <|image_n|> once"
        )
    return [tag - 1 for tag in tags]


def deal_images(prompts: Sequence[str], images: Any) -> list[list[Picture]]:
    """Give each prompt its pictures.

    Raises:
        ValueError: a flat list of pictures is longer or shorter than the prompts' tags.
    """
    if images is None:
        images = []
    if isinstance(images, Picture):
        images = [images]
    if any(isinstance(entry, list | tuple) for entry in images):
        if len(images) != len(prompts):
            raise ValueError(f"{len(images)} lists of images for {len(prompts)} prompts")
        return [[entry] if isinstance(entry, Picture) else list(entry or ()) for entry in images]
    if len(prompts) == 1:
        return [list(images)]
    counts = [len(TAG.findall(prompt)) for prompt in prompts]
    if sum(counts) != len(images):
        raise ValueError(
            f"{sum(counts)} image tags in {len(prompts)} prompts, {len(images)} images"
        )
    rest = iter(images)
    return [[next(rest) for _ in range(count)] for count in counts]


def write_tags(messages: list[dict[str, Any]]) -> tuple[list[dict[str, str]], list[Picture]]:
    """Turn messages with parts into messages of text with tags, and the pictures beside them.

    An image part may leave its picture out, to be given to the processor with the written prompt.

    Raises:
        ValueError: a part is neither an image nor text.
    """
    plain, pictures = [], []
    num_images = 0
    for message in messages:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        text, after_image = "", False
        for part in parts:
            if part["type"] == "image":
                num_images += 1
                text += f"<|image_{num_images}|>"
                pictures += [part[key] for key in ("image", "path", "url") if key in part][:1]
            elif part["type"] == "text":
                text += "\n" * after_image + part["text"]
            else:
                raise ValueError(f"a message part is image or text, not {part['type']!r}")
            after_image = part["type"] == "image"
        plain.append({"role": message["role"], "content": text})
    return plain, pictures
