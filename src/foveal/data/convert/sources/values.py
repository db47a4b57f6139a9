"""Somebody else's value -> a text, several texts or nothing; what is none of them is refused."""

from collections.abc import Mapping
from datetime import date, time
from math import isfinite, isnan
from typing import Any

_WEIGHS_ONE = ("weight", "loss", "train", "trainable", "mask", "loss_mask")
"""Keys under which 1 and true are what is usual."""

_INNER = ("en", "text", "answer", "value")
"""Keys of a mapping that stands where a text is meant: languages, and what wraps an answer."""


class UnfitError(Exception):
    """Something that cannot be an example, and why, in words that do not change from row to row."""


def present(value: Any) -> Any:
    """Strip a value of what is absent: null, NaN, blank text, and whatever holds nothing else.

    Tables and Arrow write every key into every row, null where it was left out. A null within a
    list keeps its place.
    """
    value = value.tolist() if hasattr(value, "tolist") else value  # numpy's
    if isinstance(value, Mapping):
        kept = {key: held for key, one in value.items() if (held := present(one)) is not None}
        return kept or None
    if isinstance(value, list | tuple):
        items = [present(one) for one in value]
        return None if all(one is None for one in items) else items
    blank = value == b"" or (isinstance(value, str) and not value.strip())
    return None if blank or (isinstance(value, float) and isnan(value)) else value


def text_of(value: Any, what: str) -> str | None:
    """Read one text; numbers are written out, whole ones without a fraction.

    Args:
        value: none, or anything.
        what: it is meant to be, with its article.

    Raises:
        UnfitError: it is no text.
    """
    value = present(value)
    if isinstance(value, Mapping):
        value = _unwrapped(value, what)
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        raise UnfitError(f"{what} that is true or false; write the word")
    if isinstance(value, float) and isfinite(value):  # tables turn a column with gaps into floats
        return str(int(value)) if value.is_integer() else str(value)
    if isinstance(value, int):
        return str(value)
    if isinstance(value, date | time):
        raise UnfitError(
            f"{what} that is a moment in time, as datasets makes of texts like dates; "
            "store it as the text that it was"
        )
    raise UnfitError(f"{what} that is a {type(value).__name__}, not a text")


def texts_of(value: Any, what: str) -> tuple[str, ...]:
    """Read several texts; one alone is a list of one, and nulls are passed over.

    Raises:
        UnfitError: it holds something else.
    """
    value = present(value)
    if isinstance(value, Mapping):
        value = _unwrapped(value, what)
    items = value if isinstance(value, list) else [value]
    found = (text_of(item, what) for item in items)
    return tuple(text for text in found if text is not None)


def _unwrapped(value: Mapping[Any, Any], what: str) -> Any:
    for key in _INNER:
        if key in value:
            return value[key]
    raise UnfitError(f"{what} that is a mapping of {', '.join(map(str, value))}")


CHOSEN = ("chosen", "chosen_response", "preferred_output")
REJECTED = (
    *("rejected", "rejected_response", "rejected_messages", "rejected_conversations"),
    "non_preferred_output",
)
"""What others call the better and the worse answers of a pair."""

CHANGES_MEANING = (
    *("video", "videos", "audio", "audios", "tools", "functions", "tool_calls", "function_call"),
    *(*CHOSEN, *REJECTED, "rejected_images", "rejected_videos", "rejected_audios"),
    *("history", "kto_tag"),
    *_WEIGHS_ONE,
    *("reasoning", "reasoning_content", "thinking"),
)
"""Keys of others by which a row or a message means something else, none of which is obeyed."""


def refuse_meaningful(row: Mapping[str, Any], also: tuple[str, ...] = ()) -> None:
    """Refuse what means something else by one of its keys, unless the key says what is usual.

    Args:
        row: stripped by `present`.
        also: more such keys.

    Raises:
        UnfitError: the key is named.
    """
    for key in (*CHANGES_MEANING, *also):
        if key in row and row[key] != (key in _WEIGHS_ONE):  # 1 and true weigh, false has no clip
            calls = "an answer that calls a tool: " * (key in ("tool_calls", "function_call"))
            raise UnfitError(f"{calls}`{key}` changes what it means, and is not obeyed")
