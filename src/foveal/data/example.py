"""Example: one conversation and the images it speaks of; one line of a JSONL file."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from foveal.errors import DataError


class Turn(BaseModel):
    """One question and its answer; its images come before its text."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    images: tuple[str, ...] = ()
    """Paths, relative to the images folder."""

    user: str
    assistant: str

    answers: tuple[str, ...] = ()
    """Every accepted answer, for evaluation; empty: the assistant's text alone."""

    choices: tuple[str, ...] = ()
    """Closed set of labels that the answer is one of; empty: an open answer."""

    @property
    def accepted(self) -> tuple[str, ...]:
        """Answers that an evaluation accepts."""
        return self.answers or (self.assistant,)


class Example(BaseModel):
    """One conversation, as the published recipe writes it: one line of JSON."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    id: str
    source: str = ""
    """Name of the data set it comes from."""

    turns: tuple[Turn, ...] = Field(alias="conversations", min_length=1)

    @property
    def images(self) -> tuple[str, ...]:
        """Image paths of all turns, in order."""
        return tuple(path for turn in self.turns for path in turn.images)

    def to_json(self) -> str:
        """Write the example as one line of JSON; settings left at their defaults are left out."""
        return self.model_dump_json(by_alias=True, exclude_defaults=True)


def parse_example(line: str | bytes) -> Example:
    """Read one line of JSON.

    Raises:
        ValueError: in one sentence, what is wrong with the line.
    """
    try:
        return Example.model_validate_json(line)
    except ValidationError as error:
        raise ValueError(_first_problem(error)) from None


def _first_problem(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    reason = first["msg"]
    if first["type"] == "extra_forbidden":
        return f'unknown key "{where}"'
    if first["type"] == "missing":
        return f'missing key "{where}"'
    if first["type"] == "json_invalid":
        return f"not JSON ({reason.removeprefix('Invalid JSON: ')})"
    return f'"{where}": {reason[0].lower()}{reason[1:]}' if where else reason


def numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Read the lines of a file that hold anything, each with its number, from 1.

    Raises:
        DataError: the file cannot be opened.
    """
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield number, line
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; give a JSONL file of examples") from error


def parse_line(path: Path, number: int, line: bytes) -> Example:
    """Read one line of a file.

    Raises:
        DataError: it is no example; the line is named by its number.
    """
    try:
        return parse_example(line)
    except ValueError as error:
        raise DataError(f"{path}:{number}: {error}") from None


def read_examples(path: Path) -> Iterator[Example]:
    """Read a JSONL file, one example a line; empty lines are passed over.

    Raises:
        DataError: the file cannot be opened, or a line is no example (named by its number).
    """
    return (parse_line(path, number, line) for number, line in numbered_lines(path))


def write_examples(path: Path, examples: Iterable[Example]) -> int:
    """Write a JSONL file whole or not at all; returns the number of examples."""
    beside = path.with_name(path.name + ".part")
    written = 0
    with beside.open("w", encoding="utf-8") as lines:
        for example in examples:
            lines.write(example.to_json() + "\n")
            written += 1
    beside.replace(path)
    return written


class ImageFolder:
    """Where the image paths of a JSONL file start from.

    By default the `images` folder beside the file, then the file's own folder; a path that
    leaves its folder is refused.
    """

    def __init__(self, data: Path, images: Path | None = None) -> None:
        roots = (images,) if images else (data.parent / "images", data.parent)
        self.roots = tuple(root.resolve() for root in roots)

    def find(self, path: str) -> Path:
        """Turn a path of an example into a file.

        Raises:
            DataError: the path leaves the folder, or there is no such file.
        """
        for root in self.roots:
            try:
                candidate = (root / path).resolve()
                is_file = candidate.is_file()
            except (OSError, ValueError) as error:  # too long, or holds a NUL
                raise DataError(f"image {path!r}: {error}; rename it") from None
            if not candidate.is_relative_to(root):
                raise DataError(f"image {path} lies outside {root}; move it inside")
            if is_file:
                return candidate
        raise DataError(f"image {path} is not in {' or '.join(map(str, self.roots))}")
