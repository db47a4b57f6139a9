"""Example: one conversation and the images it speaks of; one line of a JSONL file."""

import json
import os
import re
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator
from dataclasses import replace
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

from foveal.data.images.archives import ENDINGS, containing_file, state_of
from foveal.data.images.frames import parse_frame
from foveal.data.images.missing import where_else
from foveal.data.images.objects import called, object_at, read_url
from foveal.data.line_mistakes import mistake_in
from foveal.errors import ConfigError, DataError
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
            raise ValueError(mistake_in(content, error)) from None
    try:
        return Example.model_validate_json(full)
    except ValidationError as error:
        raise ValueError(mistake_in(content, error)) from None


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


def holds_anything(line: bytes) -> bool:
    """Tell a line from an empty one."""
    return bool(line.removeprefix(BOM_UTF8).strip())


def numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Read the lines of a file that hold anything, each with its number, from 1.

    Raises:
        DataError: the file cannot be opened.
    """
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if holds_anything(line):
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
    written = 0
    with written_whole(path) as beside, beside.open("w", encoding="utf-8") as lines:
        for example in examples:
            lines.write(example.to_json() + "\n")
            written += 1
    return written


MOST_REMEMBERED_PATHS = 20_000
"""Images that are looked for once: most have several questions."""


class ImageFolder:
    """Where the image paths of a JSONL file start from.

    By default the `images` folder beside the file, then the file's own folder; a path that
    leaves its folder is refused. A zip or tar file is a folder too.
    """

    def __init__(self, data: Path, images: Path | None = None, indices: Path | None = None) -> None:
        """Find the folders.

        Args:
            data: the file.
            images: folder that paths start from, in place of those.
            indices: folder that keeps where things are in archives.
        """
        roots = (images,) if images else (data.parent / "images", data.parent)
        self.roots = tuple(root.resolve() for root in roots)
        self._indices = indices
        self.states: dict[str, list[int]] = {}
        """Files that paths or entries hang on, as archives, and their states at that time."""
        self._found: dict[str, Path] = {}

    def find(self, path: str) -> Path:
        """Turn a path of an example into a file, or the name of a clip's frame into its own.

        Raises:
            DataError: the path leaves the folder, or there is no such file.
        """
        found = self._found.get(path)
        if found is None:
            frame = parse_frame(path)
            found = (
                Path(str(replace(frame, clip=str(self.find(frame.clip)))))
                if frame
                else self._look_for(path)
            )
            if len(self._found) < MOST_REMEMBERED_PATHS:
                self._found[path] = found
        return found

    def note_states(self, paths: Iterable[Path]) -> None:
        """Note the states of files whose content matters before they are opened."""
        for path in map(containing_file, paths):
            if str(path) not in self.states:
                self.states[str(path)] = state_of(path)

    def _look_for(self, path: str) -> Path:
        if "\0" in path:  # each Python has its own way to say so, and some say nothing
            raise DataError(f"image {path!r}: a null byte in its name; rename it")
        if path.startswith("data:"):
            raise DataError(f"image {path[:40]}: it is the image itself; write that into a file")
        for root in self.roots:
            stored = object_at(root)
            try:
                url = read_url(path, stored.cache if stored else root) if "://" in path else None
            except ConfigError as error:  # of this one line, not of the command
                raise DataError(f"image {error}") from None
            if url:
                if not stored or not url.path.is_relative_to(root):
                    raise DataError(
                        f"image {path} lies outside {called(root)}; name the store that images "
                        f"come from: data.images={url.scheme}://{url.key.partition('/')[0]}"
                    )
                path = str(url.path)
            try:
                candidate = Path(os.path.realpath(os.path.join(root, path)))
                is_file = bool(stored) or candidate.is_file()
            except OSError as error:  # too long
                raise DataError(f"image {path!r}: {error}; rename it") from None
            if not candidate.is_relative_to(root):
                raise DataError(f"image {path} lies outside {called(root)}; move it inside")
            if any(ending in path or ending in root.name for ending in ENDINGS) and (
                stored or not is_file
            ):
                from foveal.data.images.archive_index import find_member  # which needs numpy

                if member := find_member(candidate, self._indices, self.states):
                    self.note_states([member.path])
                    return member.path
            if is_file:
                return candidate
        roots = " or ".join(map(str, self.roots))
        raise DataError(f"image {path[:200]} is not in {roots}; {where_else(self.roots, path)}")
