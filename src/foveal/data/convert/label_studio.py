"""A task of Label Studio's whole export -> a row: its data, and what was said of it by name."""

from collections.abc import Mapping
from typing import Any

from foveal.data.convert.sources.values import UnfitError, present

SAID = ("choices", "text", "number", "rating")
"""Keys under which a result holds what was chosen or written."""


def is_task(row: Any) -> bool:
    """Tell a task with its annotations from a row of columns."""
    return (
        isinstance(row, Mapping) and isinstance(row.get("data"), Mapping) and "annotations" in row
    )


def row_of_task(task: Mapping[str, Any]) -> dict[str, Any]:
    """Put what the first annotation that stands says beside the task's data, under its own names.

    Where it says one thing alone, that is the answer, unless the data has one.

    Raises:
        UnfitError: nobody has labelled it, or with marks on the picture.
    """
    annotations = present(task["annotations"]) or []
    stands = [one for one in annotations if one.get("result") and not one.get("was_cancelled")]
    if not stands:
        raise UnfitError("a task that nobody has labelled")
    said: dict[str, Any] = {}
    for result in stands[0]["result"]:
        value = result.get("value") or {}
        held = next((value[key] for key in SAID if key in value), None)
        if held is None:
            raise UnfitError(f"marks that are neither a choice nor a text ({result.get('type')})")
        said[result["from_name"]] = held
    row = {**task["data"], **said}
    if len(said) == 1:
        row.setdefault("answer", next(iter(said.values())))
    return row
