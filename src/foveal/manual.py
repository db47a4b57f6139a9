"""Commands, settings and errors, as the code has them -> one text, for whoever reads it at once."""

import ast
import re
import types
from collections.abc import Iterator
from importlib.resources import files
from textwrap import wrap
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from foveal import errors as mendable
from foveal.config import Recipe, as_typed
from foveal.data.convert import KINDS

HEAD = """\
# foveal in one text

Every command, every setting and how errors are told, written from the code by `foveal manual`.

Fine-tune a vision-language model: write examples as JSON lines (below), `foveal check` them,
`foveal train` a recipe, read `RUN/report.html`, `foveal export` the model. Settings stand in a
YAML recipe and on the command line as `key=value`; an unknown name is an error that names the
nearest one. The same command again goes on where a run stood.

One example a line; image paths start from the folder `images` beside the file, else from its
own:

```json
{"id": "1", "conversations": [{"images": ["a.png"], "user": "The total?", "assistant": "$12.50"}]}
```

A turn may add `videos` (clips, shown by frames), `answers` (all that are accepted when it is
scored) and `choices` (a closed set); an example may add `system`. Other layouts: `foveal
convert`; Parquet, CSV, JSON and data sets on the hub: `foveal convert table`, or as `data.train`
itself.

Exit status: 0 done; 1 the thing that was checked is wrong, or a run has moved no weight; 2
something to mend, said in one line on standard error (what is wrong, where, what to do); 130
interrupted; 128 and its number where another signal ended a command that had nothing to save.
"""

SETTINGS_HEAD = """\
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

ERRORS = {name for name, one in vars(mendable).items() if isinstance(one, type)}
"""Names of what a person can mend."""


def write_manual(group: Any, errors: bool = True) -> str:
    """Write the text.

    Args:
        group: the command line, as click has it.
        errors: whether to list every message of an error that a person can mend.
    """
    parts = [HEAD, "## Commands\n", *_commands(group), "## Settings\n"]
    parts.append(f"```yaml\n{explain_settings()}```\n")
    if errors:
        parts += ["## Errors\n", "What changes from case to case stands in braces.\n"]
        parts.append("".join(f"- {message}\n" for message in sorted(set(messages()))))
    return "\n".join(parts)


def _commands(group: Any) -> Iterator[str]:
    for name, command in group.commands.items():
        arguments = [one for one in command.params if one.param_type_name == "argument"]
        options = [one for one in command.params if one.param_type_name == "option"]
        usage = " ".join(["foveal", name, *(_argument(one) for one in arguments)])
        told = re.sub(r"\n\n+", "\n\n", (command.help or "").strip())
        lines = [f"- `{_argument(one)}`: {one.help}" for one in arguments if one.help]
        lines += [_option(one) for one in options if not one.hidden]
        yield f"### {usage}\n\n{told}\n"
        if name == "convert":
            lines.append(f"- Kinds: {', '.join(KINDS)}")
        if lines:
            yield "\n".join(lines) + "\n"


def _argument(argument: Any) -> str:
    shown = argument.metavar or argument.name.upper()
    return shown if argument.required or shown.startswith("[") else f"[{shown}]"


def _option(option: Any) -> str:
    names = "/".join([*option.opts, *option.secondary_opts])
    default = option.default
    takes = "" if option.is_flag else " ..."
    if default in (None, "", False) or option.is_flag:
        said = "" if not (option.is_flag and default) else " (on unless switched off)"
    else:
        said = f" (default {default})"
    return f"- `{names}{takes}`: {option.help or ''}{said}"


def explain_settings() -> str:
    """Write a recipe in which every setting is explained."""
    return SETTINGS_HEAD + "\n".join(_settings(Recipe, "")) + "\n"


def _settings(settings: type[BaseModel], prefix: str) -> Iterator[str]:
    indent = "  " * prefix.count(".")
    for name, field in settings.model_fields.items():
        below = field.annotation
        yield ""
        if isinstance(below, type) and issubclass(below, BaseModel):
            yield from _comment(below.__doc__ or "", indent)
            yield f"{indent}{name}:"
            yield from list(_settings(below, f"{prefix}{name}."))[1:]
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


def messages() -> Iterator[str]:
    """Read, in the package's own source, what each error that a person can mend says."""
    for place in sorted(_sources(files("foveal")), key=str):
        for node in ast.walk(ast.parse(place.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            if isinstance(node.func, ast.Name) and node.func.id in ERRORS:
                text = _text(node.args[0])
                if re.search(r"[a-z]{3}", re.sub(r"\{[^}]*\}", "", text)):
                    yield " ".join(text.split())


def _sources(folder: Any) -> Iterator[Any]:
    for one in folder.iterdir():
        if one.is_dir():
            yield from _sources(one)
        elif one.name.endswith(".py"):
            yield one


def _text(node: ast.expr) -> str:
    """Write a text with what is put in as `{its words}`."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(one) for one in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _text(node.left) + _text(node.right)
    if isinstance(node, ast.FormattedValue):
        return "{" + _words(node.value) + "}"
    return "{" + _words(node) + "}"


def _words(node: ast.expr) -> str:
    """Name what is put in by the last of its names."""
    names = [
        one.id if isinstance(one, ast.Name) else one.attr
        for one in ast.walk(node)
        if isinstance(one, ast.Name | ast.Attribute)
    ]
    return names[0].strip("_").replace("_", " ") if names else "..."
