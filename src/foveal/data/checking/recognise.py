"""A file that holds no examples, line by line -> what it is, and the command that reads it."""

import json
import re
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE, BOM_UTF32_BE, BOM_UTF32_LE
from difflib import get_close_matches
from pathlib import Path
from shlex import quote
from typing import Any

from foveal.errors import DataError

LOOKED_AT = 2**20
"""Bytes at the beginning that are looked at."""

_PACKED = {
    b"\x1f\x8b": ("gzip", "gunzip --keep"),
    b"BZh": ("bzip2", "bunzip2 --keep"),
    b"\xfd7zXZ\0": ("xz", "unxz --keep"),
    b"\x28\xb5\x2f\xfd": ("Zstandard", "unzstd"),
    b"PK\x03\x04": ("zip", "unzip"),
}


def refuse_other_files(path: Path) -> None:
    """Refuse what cannot be read as one example a line; a line that is wrong is not looked at.

    Raises:
        DataError: the file is of another kind; it is named, with the command that reads it.
    """
    if (kind := other_kind(path)) is not None:
        raise DataError(f"{path}: {kind}")


def other_kind(path: Path) -> str | None:
    """Say what else a file is than one example a line, and the command that reads it."""
    if path.exists() and not path.is_file():
        return "no file that can be read more than once, as a pipe; write what it says into one"
    try:
        with path.open("rb") as file:
            return _kind_of(file.read(LOOKED_AT), path)
    except OSError:
        return None  # whoever reads it says so


def _kind_of(begin: bytes, path: Path) -> str | None:
    file = quote(path.name)
    for start, (name, command) in _PACKED.items():
        if begin.startswith(start):
            return f"packed by {name}; unpack it: {command} {file}"
    if begin.startswith(b"PAR1"):
        if path.suffix != ".parquet":
            return "a Parquet file; let its name end in .parquet"
        return f"a Parquet file; {_converted({}, path)}"
    if begin.startswith((BOM_UTF16_BE, BOM_UTF16_LE, BOM_UTF32_BE, BOM_UTF32_LE)):
        code = "UTF-32" if begin.startswith((BOM_UTF32_BE, BOM_UTF32_LE)) else "UTF-16"
        return f"{code} text; write it as UTF-8: iconv -f {code} -t UTF-8 {file}"
    if len(begin) > 3 and (not any(begin[1:200:2]) or not any(begin[:200:2])) and any(begin[:200]):
        code = "UTF-16BE" if begin[0] == 0 else "UTF-16LE"
        return f"{code} text; write it as UTF-8: iconv -f {code} -t UTF-8 {file}"
    if b"\0" in begin[:4096]:
        return "not a text; give a JSONL file of examples"
    if b"\r" in begin.strip() and b"\n" not in begin:
        return f"its lines end in CR alone; write LF: tr '\\r' '\\n' < {file}"
    if path.suffix in (".yaml", ".yml"):
        return "a recipe, by its name; give the file that its data.train names"
    text = begin.removeprefix(BOM_UTF8).lstrip()
    if text.startswith(b"["):
        row, _ = _first_row(text[1:])
        if {"annotations", "data"} <= row.keys():
            return f"Label Studio's whole export; {_converted({}, path)}"
        return f"a JSON array; {_converted(row, path)}"
    if text.startswith(b"{"):
        return _kind_of_rows(text, path)
    header = text.partition(b"\n")[0]
    if path.suffix.lower() in (".csv", ".tsv") or re.search(rb"\w[\t,;]\"?\w", header):
        name = "TSV" if b"\t" in header else "CSV"
        return f"a {name} table; {_converted({}, path)}"
    return None


def _kind_of_rows(text: bytes, path: Path) -> str | None:
    """Look at the first row; one that is broken, or nearly an example, is told line by line."""
    row, written = _first_row(text)
    folder = quote(str(path.parent)) if str(path.parent) != "." else "FOLDER"
    if {"images", "annotations"} <= row.keys():
        return f"COCO's annotations; foveal convert coco {folder} OUT reads their boxes"
    if "\n" in written:
        return f"one JSON object over several lines; {_converted(row, path)}"
    if (layout := _layout_of(row)) != "table":
        what = "pairs of answers" if layout == "preferences" else "conversations"
        return f"{what} in another layout; {_converted(row, path)}"
    if "conversations" not in row and any(_says(row, key) for key in _IMAGES):
        return f"rows of pictures, questions and answers; {_converted(row, path)}"
    others = [key for key in row if key not in ("id", "source", "system")]
    if len(others) > 1 and not get_close_matches("conversations", row):
        named = "--columns images=NAME,question=NAME,answer=NAME"
        command = f"foveal convert table {folder} OUT {named} reads it"
        return f"rows of the columns {', '.join(row)}; {command}"
    return None


_IMAGES = ("image", "images", "file_name", "image_path")


def _says(row: dict[str, Any], key: str) -> bool:
    return row.get(key) not in (None, [], "")


def _layout_of(row: dict[str, Any]) -> str:
    """Name the kind of conversion that reads such rows."""
    if any(key.startswith(("reject", "non_preferred")) for key in row):
        return "preferences"
    turns = row.get("conversations")
    first = turns[0] if isinstance(turns, list) and turns else None
    # Messages of one speaker each; ours are turns of question and answer.
    if isinstance(first, dict) and ("from" in first or "role" in first):
        return "llava" if "image" in row else "sharegpt"
    return "sharegpt" if _says(row, "messages") else "table"


def _first_row(text: bytes) -> tuple[dict[str, Any], str]:
    """Read the first object, as far as it lies within what is looked at, and how it is written."""
    start = text.decode("utf-8", "replace").lstrip()
    try:
        row, end = json.JSONDecoder().raw_decode(start)
    except (ValueError, RecursionError):
        return {}, ""
    return (row if isinstance(row, dict) else {}), start[:end]


def _converted(row: dict[str, Any], path: Path) -> str:
    command = f"foveal convert {_layout_of(row)} {quote(str(path))} OUT"
    return f"{command} reads it, and the pictures beside it"
