"""Example: one conversation and the images it speaks of; one line of a JSONL file."""

import json
import re
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
)

from foveal.errors import DataError
from foveal.storage import RepeatedKeyError, unique_keys, written_whole


class Turn(BaseModel):
    """One question and its answer; its images come before its text."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    images: tuple[str, ...] = ()
    """Paths, relative to the images folder."""

    videos: tuple[str, ...] = ()
    """Paths of clips, whose frames stand behind the images."""

    user: str
    assistant: str

    answers: tuple[str, ...] = ()
    """Every accepted answer, for evaluation; empty: the assistant's text alone."""

    choices: tuple[str, ...] = ()
    """Closed set of labels that the answer is one of; empty: an open answer."""

    rejected: tuple[str, ...] = ()
    """Worse answers than the assistant's, each of which makes a pair with it; one may stand in
    the line by itself."""

    @field_validator("rejected", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        if isinstance(value, str):
            return (value,)
        return tuple(value) if isinstance(value, list) else value

    @model_serializer(mode="wrap")
    def _written(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave `rejected` out where there is none: answers go by how their question is written."""
        written: dict[str, Any] = write(self)
        rejected = written.pop("rejected", ())
        if rejected:
            written["rejected"] = rejected[0] if len(rejected) == 1 else rejected
        return written

    @property
    def texts(self) -> tuple[str, ...]:
        """All that a model may read or write in this turn."""
        return (self.user, self.assistant, *self.choices)

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

    system: str = ""
    """What the model is told before the first turn; empty: nothing."""

    turns: tuple[Turn, ...] = Field(alias="conversations", min_length=1)

    @property
    def images(self) -> tuple[str, ...]:
        """Image paths of all turns, in order; clips are not among them."""
        return tuple(path for turn in self.turns for path in turn.images)

    def to_json(self) -> str:
        """Write the example as one line of JSON; settings left at their defaults are left out."""
        return self.model_dump_json(by_alias=True, exclude_defaults=True)


_KEY = re.compile(rb'(?<!\\)"\s*:')
"""What follows a key of valid JSON, and nothing else: in a text the quote has a backslash."""


def parse_example(line: str | bytes) -> Example:
    """Read one line of JSON; a key that holds null is one that was left out.

    Raises:
        ValueError: in one sentence, what is wrong with the line.
    """
    content = line.encode("utf-8", "surrogatepass") if isinstance(line, str) else line
    content = content.removeprefix(BOM_UTF8)
    try:
        example = Example.model_validate_json(content)
        # Of two values under one key the parser takes the last and says nothing.
        num_keys = sum(len(one.model_fields_set) for one in (example, *example.turns))
        if len(_KEY.findall(content)) != num_keys:
            json.loads(content, object_pairs_hook=unique_keys)
        return example
    except ValidationError as error:
        if (full := _without_nulls(content)) is None:
            raise ValueError(_mistake_in(content, error)) from None
    try:
        return Example.model_validate_json(full)
    except ValidationError as error:
        raise ValueError(_mistake_in(content, error)) from None


def _without_nulls(content: bytes) -> str | None:
    """Write a line without the keys that hold null, as tables add them; none: it has none."""
    dropped = False

    def keep(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal dropped
        kept = {key: value for key, value in unique_keys(pairs).items() if value is not None}
        dropped |= len(kept) < len(pairs)
        return kept

    try:
        value = json.loads(content, object_pairs_hook=keep) if b"null" in content else None
    except RepeatedKeyError:
        raise
    except (ValueError, RecursionError):
        return None
    return json.dumps(value) if dropped else None


def _mistake_in(line: bytes, error: ValidationError) -> str:
    """Say what is wrong with a refused line, and where in it, in one sentence."""
    try:
        line.decode()
    except UnicodeDecodeError as unreadable:
        return f"not UTF-8 (byte {unreadable.start + 1} of the line); save the file as UTF-8"
    problems = error.errors(include_url=False)
    # A key that is written otherwise is missing, too: how it is written says more.
    first = next((one for one in problems if _nearest_key(one)), problems[0])
    where = ".".join(str(part) for part in first["loc"])
    kind, reason, given = first["type"], first["msg"], first["input"]
    if kind == "extra_forbidden":
        return f'unknown key "{where}"{_nearest_key(first)}'
    if kind == "missing":
        return f'missing key "{where}"'
    if kind == "json_invalid":
        what_to_do = "; write one example a line" * ("trailing characters" in reason)
        return f"not JSON ({reason.removeprefix('Invalid JSON: ')}){what_to_do}"
    if kind == "string_type" and isinstance(given, int | float):
        return f'"{where}": {json.dumps(given)} is no text; write it in quotes'
    if kind == "tuple_type" and isinstance(given, str):
        return f'"{where}": a text is no list; write [{json.dumps(given[:40])}]'
    if kind == "too_short":
        return f'"{where}": nothing in it; write at least one'
    return f'"{where}": {reason[0].lower()}{reason[1:]}' if where else reason


def _nearest_key(problem: Any) -> str:
    """Ask whether a key of ours was meant by an unknown one; empty: none was."""
    if problem["type"] != "extra_forbidden":
        return ""
    *above, key = problem["loc"]
    fields = (Turn if above else Example).model_fields
    known = [field.alias or name for name, field in fields.items()]
    near = get_close_matches(str(key).lower(), known, n=1)
    return f'; did you mean "{near[0]}"?' if near else ""


def holds_anything(line: bytes) -> bool:
    """Tell a line from an empty one."""
    return bool(line.removeprefix(BOM_UTF8).strip())


@contextmanager
def naming_unreadable(path: object) -> Iterator[None]:
    """Name a file of examples that cannot be read."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; give a JSONL file of examples") from error


def numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Read the lines of a file that hold anything, each with its number, from 1.

    Raises:
        DataError: the file cannot be opened.
    """
    with naming_unreadable(path), path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if holds_anything(line):
                yield number, line


def read_examples(path: Path) -> Iterator[Example]:
    """Read a JSONL file, one example a line; empty lines are passed over.

    Raises:
        DataError: the file cannot be opened, or a line is no example (named by its number).
    """
    for number, line in numbered_lines(path):
        try:
            example = parse_example(line)
        except ValueError as error:
            raise DataError(f"{path}:{number}: {error}") from None
        yield example


def write_examples(path: Path, examples: Iterable[Example]) -> int:
    """Write a JSONL file whole or not at all; returns the number of examples."""
    written = 0
    with written_whole(path) as beside, beside.open("w", encoding="utf-8") as lines:
        for example in examples:
            lines.write(example.to_json() + "\n")
            written += 1
    return written
