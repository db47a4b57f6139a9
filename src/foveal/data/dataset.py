"""A JSONL file + a processor -> Dataset: all that a plan and a batch need, no picture opened."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from foveal.data.encode import Encoded, TurnProcessor, encode
from foveal.data.example import Example, ImageFolder, read_examples
from foveal.data.media import image_sizes
from foveal.data.rows import Ragged, Sizes
from foveal.errors import DataError


@dataclass(frozen=True)
class ImageFact:
    """One distinct picture, known from its header alone."""

    path: Path
    tokens: int
    rows: int
    columns: int


@dataclass(frozen=True)
class Dataset:
    """Examples as tokens, the pictures they speak of, and what both cost."""

    examples: tuple[Encoded, ...]
    images: tuple[ImageFact, ...]
    sizes: Sizes
    fingerprint: str
    """Changes when an example, a picture's size or the encoding does."""

    def image_numbers(self, example: int) -> list[int]:
        """Places in `images` of the pictures of an example."""
        numbers: list[int] = self.sizes.images.take([example])[0]
        return numbers


def read_dataset(
    path: Path,
    processor: TurnProcessor,
    images: Path | None = None,
    cache: Path | None = None,
    workers: int = 1,
) -> tuple[list[Example], Dataset]:
    """Read and encode a JSONL file.

    Raises:
        DataError: the file or a picture's header cannot be read, or there is no example.
    """
    examples = list(read_examples(path))
    if not examples:
        raise DataError(f"{path}: no examples; write one conversation a line")
    folder = ImageFolder(path, images)
    encoded = []
    for number, example in enumerate(examples, start=1):
        try:
            encoded.append(encode(example, processor, folder))
        except (DataError, ValueError) as error:
            raise DataError(f"{path}: example {number} ({example.id}): {error}") from error
    return examples, build_dataset(encoded, processor, cache, workers)


def build_dataset(
    encoded: Sequence[Encoded],
    processor: TurnProcessor,
    cache: Path | None = None,
    workers: int = 1,
) -> Dataset:
    """Measure encoded examples; two paths to one file are one picture."""
    numbers: dict[Path, int] = {}
    owned = [
        [numbers.setdefault(path, len(numbers)) for path in example.images] for example in encoded
    ]
    facts = []
    for path, (width, height) in zip(
        numbers, image_sizes(list(numbers), cache, workers), strict=True
    ):
        rows, columns = processor.grid(width, height)
        facts.append(ImageFact(path, processor.num_image_tokens(width, height), rows, columns))
    image_tokens = np.asarray([fact.tokens for fact in facts], np.int32)
    prompts = [
        _name_images(example.entries[: example.prompt_entries], own)
        for example, own in zip(encoded, owned, strict=True)
    ]
    tokens = [
        len(example.entries) + sum(int(image_tokens[number]) - 1 for number in own)
        for example, own in zip(encoded, owned, strict=True)
    ]
    sizes = Sizes(
        np.asarray(tokens, np.int32),
        Ragged.of(prompts),
        Ragged.of(owned),
        image_tokens,
        np.asarray([_tower_crops(fact) for fact in facts], np.int32),
    )
    return Dataset(tuple(encoded), tuple(facts), sizes, _fingerprint(encoded, sizes))


def _tower_crops(fact: ImageFact) -> int:
    crops = fact.rows * fact.columns
    return crops if crops == 1 else crops + 1  # a single crop is its own global view


def _name_images(prompt: np.ndarray, own: list[int]) -> list[int]:
    """Replace an example's own image numbers by those of the whole data set."""
    return [-1 - own[-1 - entry] if entry < 0 else entry for entry in prompt.tolist()]


def _fingerprint(encoded: Sequence[Encoded], sizes: Sizes) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for example in encoded:
        digest.update(example.id.encode())
        digest.update(example.entries.tobytes())
    for array in (sizes.tokens, sizes.images.values, sizes.image_tokens, sizes.image_crops):
        digest.update(array.tobytes())
    return digest.hexdigest()
