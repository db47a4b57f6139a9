"""The settings -> one recipe that holds every one of them, its default, and what it is for."""

import types
from collections.abc import Iterator
from textwrap import wrap
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from foveal.config import Recipe, as_typed

HEAD = """\
# Every setting of a run, at its default, with what it is for. Copy it, keep the lines that you
# change, and delete the rest; `base: FILE` takes everything else from another recipe.
# Written by `foveal recipes --explain`.
"""

EXAMPLES = {
    "model": "microsoft/Phi-3.5-vision-instruct",
    "run": "runs/mine",
    "data.train": "train.jsonl",
    "data.validation": "validation.jsonl",
}
"""Values of the settings that a run of one's own cannot go without."""

WIDTH = 99


def explain_settings() -> str:
    """Write a recipe in which every setting is explained."""
    return HEAD + "\n".join(_lines(Recipe, "")) + "\n"


def _lines(settings: type[BaseModel], prefix: str) -> Iterator[str]:
    indent = "  " * prefix.count(".")
    for name, field in settings.model_fields.items():
        below = field.annotation
        yield ""
        if isinstance(below, type) and issubclass(below, BaseModel):
            yield from _comment(below.__doc__ or "", indent)
            yield f"{indent}{name}:"
            yield from list(_lines(below, f"{prefix}{name}."))[1:]
            continue
        yield from _comment(field.description or "", indent)
        if choices := _choices(below):
            yield from _comment(f"One of {', '.join(choices)}.", indent)
        default = None if field.is_required() else field.get_default(call_default_factory=True)
        value = EXAMPLES.get(prefix + name, default)
        yield f"{indent}{name}: {as_typed(value)}"


def _comment(text: str, indent: str) -> Iterator[str]:
    for line in wrap(text, WIDTH - len(indent) - 2):
        yield f"{indent}# {line}"


def _choices(kind: Any) -> list[str]:
    """List the names that a setting may have; empty where it is no choice."""
    if get_origin(kind) in (Union, types.UnionType):
        return [name for one in get_args(kind) for name in _choices(one)]
    return [str(name) for name in get_args(kind)] if get_origin(kind) is Literal else []
