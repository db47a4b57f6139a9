"""A row of a table -> which of its columns holds the pictures, the question and the answer."""

from collections.abc import Mapping
from typing import Any

from foveal.config import Columns
from foveal.data.convert.chats import SYSTEM_KEYS
from foveal.data.convert.sources.values import UnfitError, present

USUAL_NAMES = {
    "images": (
        ("images", "image"),
        ("file_name", "image_path", "imgname"),
        ("img", "picture", "photo", "jpg", "jpeg", "png", "image_bytes"),
    ),
    "messages": (("messages", "conversations"),),
    "question": (("question", "query"), ("prompt", "text", "instruction")),
    "answer": (("answer",), ("label", "caption", "response", "output", "completion")),
    "answers": (("answers",),),
    "choices": (("choices", "options"),),
    "system": (SYSTEM_KEYS,),
}
"""What a column holds -> names that say so, the clearest first; two as clear are asked about."""

CAPTIONS = ("text", "txt")
"""Columns that hold the answer where every row is asked the same."""


def find_column(what: str, row: Mapping[str, Any], named: Columns) -> str | None:
    """Find which column holds something; none: no column does.

    Args:
        what: one of USUAL_NAMES.
        row: with all its columns.
        named: by the user; where they say both what is asked and answered, no other is guessed at.

    Raises:
        UnfitError: a named column is not there, or two could be meant.
    """
    name: str | None = getattr(named, what)
    if name is not None:
        if name not in row:
            raise UnfitError(f"no column {name} among {', '.join(row)}")
        return name
    if says_all(named) and what != "images":
        return None
    taken = named.model_dump(exclude={"ask"}).values()
    for names in USUAL_NAMES[what]:
        found = [one for one in row if one.lower() in names and one not in taken]
        found.sort(key=lambda one: names.index(one.lower()))
        if len(found) > 1:  # what a row leaves empty is not meant
            found = [one for one in found if present(row[one]) is not None] or found[:1]
        if len(found) > 1:
            raise UnfitError(
                f"{' and '.join(found)} could each be the {what}; say which: "
                f"{_to_name(what, found[0])}"
            )
        if found:
            return found[0]
    return None


def says_all(named: Columns) -> bool:
    """Whether a person has named what is asked and what is answered."""
    asked, answered = named.question or named.ask, named.answer or named.answers
    return bool(named.messages or (asked and answered))


def missing(what: str, row: Mapping[str, Any]) -> str:
    """Say that no column holds something, and how to name one."""
    usual = ", ".join(name for names in USUAL_NAMES[what] for name in names)
    captions = [name for name in CAPTIONS if name in row]
    asked = _to_name("ask", "TEXT")
    alike = f"; or ask every row the same: {asked}" if what == "question" else ""
    if what == "answer" and captions:
        alike = f"; where {captions[0]} is the answer, say what is asked: {asked}"
    return (
        f"no column of the {what} ({usual}) among {', '.join(row)}; "
        f"name it: {_to_name(what, 'NAME')}{alike}"
    )


def _to_name(what: str, name: str) -> str:
    return f"--columns {what}={name}, of a run data.columns.{what}={name}"
