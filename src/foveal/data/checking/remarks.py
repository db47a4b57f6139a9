"""What a run notices while it reads its examples: the cheap part of `foveal check`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from foveal.data.checking.texts import example_problems, example_warnings
from foveal.data.encode import Encoded
from foveal.data.example import Example
from foveal.errors import DataError

SHOWN = 3
"""Remarks that are spelled out; the others are counted."""


@dataclass
class Remarks:
    """Things that stop no run, but that nobody wants."""

    count: int = 0
    first: list[str] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    """Where they are, in the order of the run's files."""

    def add(self, file: Path, number: int, message: str) -> None:
        """Note one thing about a line, or about a whole file (number 0)."""
        self.count += 1
        if len(self.first) < SHOWN:
            self.first.append(f"{file}:{number}: {message}" if number else f"{file}: {message}")
        if file not in self.files:
            self.files.append(file)

    def lines(self) -> Iterator[str]:
        """Say them in a few lines."""
        yield from self.first
        if self.count:
            more = (
                f"and {self.count - len(self.first):,} more"
                if self.count > SHOWN
                else "that is all"
            )
            names = " and ".join(f"`foveal check {file}`" for file in self.files)
            yield f"{more} of what was noticed while reading; {names} opens the pictures too"


def look_at(example: Example) -> Iterator[str]:
    """Say what is odd about an example's texts."""
    yield from example_problems(example)
    yield from example_warnings(example)


def check_lengths(
    tokens: NDArray[np.int32],
    examples: Sequence[Encoded],
    window: int | None,
    tokens_per_pass: int,
    image_setting: str,
) -> str | None:
    """Compare the lengths of examples with what a model and a pass can hold.

    Args:
        tokens: of each example.
        examples: the same, for their ids.
        window: most tokens that the model was made for; none: not known.
        tokens_per_pass: of the recipe.
        image_setting: which of its settings says how much of an image is read.

    Returns:
        What is worth saying about those that fill a pass alone.

    Raises:
        DataError: one is longer than the model's window.
    """
    longest = int(tokens.argmax())
    if window is not None and tokens[longest] > window:
        count = int((tokens > window).sum())
        raise DataError(
            f"example {examples[longest].id} has {tokens[longest]:,} tokens, more than the "
            f"{window:,} that the model was made for ({count:,} such); shorten it, or lower "
            f"{image_setting}"
        )
    count = int((tokens > tokens_per_pass).sum())
    if not count:
        return None
    return (
        f"{count:,} examples are longer than train.tokens_per_pass={tokens_per_pass:,} and fill a "
        f"pass alone; the longest, {examples[longest].id}, has {tokens[longest]:,} tokens"
    )
