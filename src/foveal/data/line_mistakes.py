"""A line that is no example -> what is wrong with it, in one sentence."""

import json
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError

KEYS = ("id", "source", "system", "conversations")
KEYS_OF_TURNS = ("images", "videos", "user", "assistant", "answers", "choices", "rejected")


def mistake_in(line: bytes, error: ValidationError) -> str:
    """Say what is wrong with a line, and where in it.

    Args:
        line: of a JSONL file.
        error: that it was refused with.
    """
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
    near = get_close_matches(str(key).lower(), KEYS_OF_TURNS if above else KEYS, n=1)
    return f'; did you mean "{near[0]}"?' if near else ""
