"""An entry with JSON in it -> its values."""

import json
from collections.abc import Iterator
from typing import Any

from foveal.data.convert.sources.source import Entry
from foveal.errors import DataError
from foveal.storage import RepeatedKeyError, unique_keys


def read_json(file: Entry) -> Any:
    """Read a whole file as one JSON value.

    Raises:
        DataError: it is no JSON.
    """
    try:
        return json.loads(file.read_text(), object_pairs_hook=unique_keys)
    except RepeatedKeyError as error:
        raise DataError(f"{file}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: not JSON ({error})") from None


def read_rows_of_json(file: Entry) -> Iterator[Any]:
    """Read the members of a list; anything else is one row that is none."""
    rows = read_json(file)
    yield from rows if isinstance(rows, list) else [None]


def read_lines(file: Entry) -> Iterator[dict[str, Any]]:
    """Read one JSON object a line.

    Raises:
        DataError: a line is something else (named by its number).
    """
    for number, line in enumerate(file.read_text().split("\n"), start=1):
        if line.strip():
            try:
                value = json.loads(line, object_pairs_hook=unique_keys)
            except RepeatedKeyError as error:
                raise DataError(f"{file}:{number}: {error}") from None
            except (ValueError, RecursionError) as error:
                raise DataError(f"{file}:{number}: not JSON ({error})") from None
            if not isinstance(value, dict):
                raise DataError(f"{file}:{number}: not a JSON object")
            yield value
