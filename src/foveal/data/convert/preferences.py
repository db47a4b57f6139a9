"""Pairs of a better and a worse answer (TRL, RLHF-V, RLAIF-V, LLaMA-Factory) -> drafts."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from foveal.data.convert.chats import SYSTEM_KEYS, conversation_of
from foveal.data.convert.draft import Draft, LeftOutRow, Options
from foveal.data.convert.images import Find
from foveal.data.convert.source import Source
from foveal.data.convert.splits import split_of
from foveal.data.convert.table import READERS
from foveal.data.convert.tables import Hub, open_splits
from foveal.data.convert.values import UnfitError, present, refuse_meaningful, text_of
from foveal.errors import DataError
from foveal.storage import RepeatedKeyError, unique_keys

ANSWERS = ("chosen", "rejected")

QUESTIONS = ("question", "prompt", "instruction")
"""Columns of one text that is asked; LLaMA-Factory's `input` goes on behind it."""

MESSAGES = ("prompt", "conversations", "messages")
"""Columns of messages up to the one that is asked."""


def convert_preferences(source: Source | Hub, options: Options) -> Iterator[Draft | LeftOutRow]:
    """Rows of `chosen` and `rejected`, with a question, or messages, before them or in them."""
    number_of_rows = 0
    for name, row, split in _rows(source):
        number_of_rows += 1
        find = source.find if isinstance(source, Source) else _nowhere
        try:
            yield draft_of_pair(row, split, find)
        except UnfitError as error:
            yield LeftOutRow(name, str(error))
    if not number_of_rows:
        raise DataError(f"{_place(source)}: no row in it")


def _rows(source: Source | Hub) -> Iterable[tuple[str, Any, str]]:
    """Name every row, and the split that it belongs to."""
    if isinstance(source, Hub) or source.match("*.parquet"):
        for split, (rows, _) in open_splits(source, None).items():
            for number, row in enumerate(rows):
                yield f"{split} row {number}", row, split
        return
    files = [file for ending in READERS for file in source.match(f"*{ending}")]
    if not files:
        raise DataError(f"{source.path}: no Parquet, JSON, JSONL, CSV or TSV file in it")
    for file in files:
        split = split_of(file.stem, file.folders) or "train"
        for number, row in enumerate(READERS[file.suffix](file), start=1):
            yield f"{file}, row {number}", row, split


def _nowhere(path: str) -> None:
    """Find no file: a data set on the hub holds its pictures itself."""


def _place(source: Source | Hub) -> str:
    return source.name if isinstance(source, Hub) else str(source.path)


def draft_of_pair(row: Any, split: str, find: Find) -> Draft:
    """Draft the conversation of a row; its last answer is the chosen one.

    Args:
        row: of any of the layouts.
        split: that it belongs to.
        find: looks the path of a picture up.

    Raises:
        UnfitError: it cannot be an example.
    """
    row = present(row)
    if not isinstance(row, Mapping):
        raise UnfitError("not a row of named columns")
    row = {**row, **_written_in_text(row)}
    if missing := [key for key in ANSWERS if key not in row]:
        raise UnfitError(f"no {missing[0]} answer in it")
    refuse_meaningful({key: value for key, value in row.items() if key not in ANSWERS})
    before = _messages_before(row)
    within, chosen, rejected = _answers(row["chosen"], row["rejected"])
    if chosen.strip() == rejected.strip():
        raise UnfitError("the answers of its pair are equal")
    said = [*before, *within, {"role": "assistant", "content": chosen}]
    beside = next((row[key] for key in ("images", "image", "image_path") if key in row), None)
    system = {key: row[key] for key in SYSTEM_KEYS if key in row}
    draft = conversation_of({"messages": said, "images": beside, **system}, split, find)
    *others, last = draft.turns
    return replace(draft, turns=(*others, last.model_copy(update={"rejected": (rejected,)})))


def _written_in_text(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """Read the question and answers that RLHF-V writes as JSON into a column `text`."""
    text = row.get("text")
    if "chosen" in row or not isinstance(text, str | Mapping):
        return {}
    try:
        found = json.loads(text, object_pairs_hook=unique_keys) if isinstance(text, str) else text
    except RepeatedKeyError as error:
        raise UnfitError(str(error)) from None
    except ValueError:
        return {}
    names = ("question", *ANSWERS)
    return {key: found[key] for key in names if key in found} if isinstance(found, dict) else {}


def _messages_before(row: Mapping[str, Any]) -> list[Any]:
    """List what is said before the answers, and not with them."""
    for key in MESSAGES:
        if isinstance(row.get(key), list):
            return list(row[key])
    for key in QUESTIONS:
        if key in row:
            asked = [text_of(row.get(one), "a question") for one in (key, "input")]
            return [{"role": "user", "content": "\n".join(one for one in asked if one)}]
    return []


def _answers(chosen: Any, rejected: Any) -> tuple[list[Any], str, str]:
    """Part two conversations into what both begin with, and the answer of each."""
    better, worse = (value if isinstance(value, list) else [value] for value in (chosen, rejected))
    if len(better) != len(worse) or better[:-1] != worse[:-1]:
        raise UnfitError("the answers of its pair end different conversations")
    return better[:-1], _said(better[-1]), _said(worse[-1])


def _said(message: Any) -> str:
    if isinstance(message, Mapping):
        role = message.get("from") or message.get("role")
        if role in ("user", "human", "system"):
            raise UnfitError("a pair that is said by somebody else than the assistant")
        refuse_meaningful(message)
        message = message.get("value", message.get("content"))
        if isinstance(message, list) and len(message) == 1:  # one part, of text
            message = message[0].get("text") if isinstance(message[0], Mapping) else None
    text = text_of(message, "an answer")
    if text is None:
        raise UnfitError("an answer of its pair is empty")
    return text
