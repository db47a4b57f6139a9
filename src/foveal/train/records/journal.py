"""Lines of JSON, each with its step -> a file that a resumed run takes back to where it stands."""

import json
import sys
from pathlib import Path
from typing import Any

from foveal.storage import write_text


def read_journal(path: Path, step: int) -> list[dict[str, Any]]:
    """Read the lines up to `step`; no file is no lines."""
    return [line for _, line in _kept(path, step)]


def last_step(path: Path) -> int:
    """Read the step of the last line; no file is step 0."""
    return max((line["step"] for _, line in _kept(path, sys.maxsize)), default=0)


def rewind_journal(path: Path, step: int) -> None:
    """Drop the lines after `step`: those steps will be taken again."""
    if path.exists():
        write_text(path, "".join(f"{text}\n" for text, _ in _kept(path, step)))


def _kept(path: Path, step: int) -> list[tuple[str, dict[str, Any]]]:
    if not path.exists():
        return []
    lines = [(text, _parse(text)) for text in path.read_text(encoding="utf-8").splitlines()]
    return [(text, line) for text, line in lines if line is not None and line["step"] <= step]


def _parse(text: str) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
    except ValueError:  # torn by a kill
        return None
    return line if isinstance(line, dict) and "step" in line else None
