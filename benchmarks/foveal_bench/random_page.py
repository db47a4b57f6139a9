"""A size -> a random model of that size, and one page of random pixels with its questions."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from foveal.data.dataset import Dataset, build_dataset
from foveal.data.encode import encode
from foveal.data.example import Example, Turn
from foveal.data.images.image_folder import ImageFolder
from foveal.errors import ConfigError
from foveal.machine import pick_device
from foveal.models.phi3_vision.config import Phi3VisionConfig
from foveal.models.phi3_vision.image import Phi3VImageProcessor
from foveal.models.phi3_vision.model import Phi3VisionForConditionalGeneration
from foveal.models.phi3_vision.read_images import CropReader
from foveal.models.phi3_vision.tiny import TinySizes, sized_config
from foveal.models.shared_rows import choose_attention

NUM_CROPS = 16
IMAGE = "page.bmp"

LETTERS = "abcdefghijklmnopqrstuvwxyz "
PAD_ID, IMAGE_ID = 0, 1
"""Ids below those of letters."""


@dataclass(frozen=True, kw_only=True)
class BenchSize(TinySizes):
    """A model and the text that is asked of it."""

    patch_size: int = 14
    rope_theta: float = 10000.0
    initial_spread: float = 0.02
    vocabulary: int
    page: tuple[int, int]
    """Width and height of the image, pixels; 4 x 4 crops."""

    question_tokens: tuple[int, int]
    """Fewest and most."""

    answer_tokens: int
    tokens_per_pass: int
    """Room for one page and its questions, not for two pages: the recipe's micro-batch."""

    @property
    def crop_tokens_side(self) -> int:
        """Merged patches along one side of a crop."""
        return self.crop_size // self.patch_size // 2


LETTER_PAGE = (1700, 2200)
"""Pixels at 200 dots an inch."""

STANDARD = BenchSize(
    crop_size=336,
    tower_width=320,
    tower_layers=5,
    tower_heads=5,
    width=1152,
    mlp=3072,
    layers=4,
    heads=12,
    vocabulary=1664,
    page=LETTER_PAGE,
    question_tokens=(20, 40),
    answer_tokens=10,
    tokens_per_pass=4096,
)
"""Of the published model's proportions; wide and shallow: attention's share of the work grows with
length / width, so a narrow model would measure attention and little else."""

SIZES = {
    "tiny": BenchSize(
        crop_size=56,
        tower_width=32,
        tower_layers=3,
        tower_heads=2,
        width=48,
        mlp=128,
        layers=2,
        heads=2,
        vocabulary=160,
        page=(170, 220),
        question_tokens=(4, 8),
        answer_tokens=3,
        tokens_per_pass=160,
    ),
    "standard": STANDARD,
    "narrow": BenchSize(
        crop_size=336,
        tower_width=256,
        tower_layers=9,
        tower_heads=4,
        width=512,
        mlp=1365,
        layers=8,
        heads=8,
        vocabulary=32064,
        page=LETTER_PAGE,
        question_tokens=(20, 40),
        answer_tokens=10,
        tokens_per_pass=4096,
    ),
    "half": replace(STANDARD, crop_size=168, tokens_per_pass=1024),
    "published": replace(
        STANDARD,
        tower_width=1024,
        tower_layers=24,
        tower_heads=16,
        width=3072,
        mlp=8192,
        layers=32,
        heads=32,
        vocabulary=32064,
    ),
}
"""`tiny` takes seconds and measures nothing; `narrow` has the published model's vocabulary but a
sixth of its width, so that attention and head weigh more; `half` has crops of half the side, a
quarter of the tokens; `published` is Phi-3.5-vision itself, 4.15 billion numbers."""


def find_size(name: str) -> BenchSize:
    """Look a size up.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in SIZES:
        raise ConfigError(f"bench: no size {name!r}; choose from {', '.join(SIZES)}")
    return SIZES[name]


def make_config(size: BenchSize) -> Phi3VisionConfig:
    """Configure a model of a size."""
    none = dict.fromkeys(("bos_token_id", "eos_token_id"))
    ids = {"pad_token_id": PAD_ID, "image_token_id": IMAGE_ID}
    return sized_config(size, size.vocabulary, none | ids)


def make_model(size: BenchSize, seed: int = 0) -> Phi3VisionForConditionalGeneration:
    """Make a model on this machine's device, with random weights and its fastest attention."""
    with torch.random.fork_rng(devices=[]), pick_device():
        torch.manual_seed(seed)
        model = Phi3VisionForConditionalGeneration(make_config(size))
    model.set_attn_implementation(choose_attention("auto"))
    return model


class LetterProcessor(CropReader):
    """Encodes one letter as one token, and cuts images as the published processor does."""

    image_token_id = IMAGE_ID

    def __init__(self, size: BenchSize) -> None:
        tokens = size.crop_tokens_side**2
        self.image_processor = Phi3VImageProcessor(NUM_CROPS, size.crop_size, tokens)

    def encode_prompt(self, user: str, num_images: int) -> list[int]:
        """Put the images before the letters."""
        return [-(image + 1) for image in range(num_images)] + self.encode_answer(user)

    def encode_system(self, text: str) -> list[int]:
        """Put the letters before the prompt's first token, which is none of its own."""
        return self.encode_answer(text)

    def encode_answer(self, assistant: str) -> list[int]:
        """Take each letter's own number."""
        return list(assistant.encode("ascii"))


def make_random_page(size: BenchSize, questions: int, folder: Path, seed: int = 0) -> Dataset:
    """Write a page of random pixels and ask questions of random letters about it.

    Args:
        size: how long questions and answers are.
        questions: examples that share the page; the first ones are the same for any number.
        folder: for the image.
        seed: start of every random choice.
    """
    randomness = random.Random(seed)
    blocks = np.random.default_rng(seed).integers(0, 256, (55, 43, 3), np.uint8)
    Image.fromarray(blocks).resize(size.page).save(folder / IMAGE)

    def letters(count: int) -> str:
        return "".join(randomness.choices(LETTERS, k=count))

    examples = [
        Example(
            id=f"question-{number}",
            conversations=(
                Turn(
                    images=(IMAGE,),
                    user=letters(randomness.randint(*size.question_tokens)),
                    assistant=letters(size.answer_tokens),
                ),
            ),
        )
        for number in range(questions)
    ]
    return encode_page(examples, size, folder)


def encode_page(examples: Sequence[Example], size: BenchSize, folder: Path) -> Dataset:
    """Take the ordinary walk from examples to a data set."""
    processor = LetterProcessor(size)
    images = ImageFolder(folder / "page.jsonl", folder)
    return build_dataset([encode(one, processor, images) for one in examples], processor)
