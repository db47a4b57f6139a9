"""A YAML recipe, the recipes below it and `key=value` overrides -> every setting; and back.

What is wrong with a setting is said in one line, with the name that was meant.
"""

import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from difflib import get_close_matches
from os.path import expanduser, normpath
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from foveal.config.data_settings import Settings
from foveal.config.settings import Base, Recipe, Rule, setting_names
from foveal.errors import ConfigError, one_line
from foveal.storage import write_text

ELSEWHERE: Mapping[str, str] = {
    "attn_implementation": "attention",
    "batch_size": "train.examples_per_step",
    "bf16": "precision",
    "dataloader_num_workers": "data.workers",
    "dataset": "data.train",
    "deepspeed": "engine",
    "dtype": "precision",
    "eval_dataset": "data.validation",
    "eval_steps": "train.evaluate_every_steps",
    "fp16": "precision",
    "fsdp": "engine",
    "global_batch_size": "train.examples_per_step",
    "gradient_accumulation_steps": "train.examples_per_step",
    "gradient_checkpointing": "train.recompute",
    "load_in_4bit": "strategy",
    "lr": "train.learning_rate",
    "max_grad_norm": "train.gradient_clip",
    "max_length": "train.tokens_per_pass",
    "max_seq_length": "train.tokens_per_pass",
    "model_name_or_path": "model",
    "num_train_epochs": "train.epochs",
    "optim": "train.optimizer",
    "output_dir": "run",
    "per_device_train_batch_size": "train.tokens_per_pass",
    "r": "lora.rank",
    "report_to": "log.trackers",
    "save_total_limit": "train.keep_checkpoints",
    "torch_dtype": "precision",
    "warmup_ratio": "train.warmup_steps",
    "wd": "train.weight_decay",
}
"""Name that other tools, or people in a hurry, give a setting -> ours."""

EXPECTED: Mapping[str, str] = {
    "string_type": "a text, in quotes",
    "path_type": "a path",
    "path_str": "a path",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping of settings",
    "model_attributes_type": "a mapping of settings",
}
"""What to give where a value is of another type; pydantic's own words are good for the rest."""

Layer = tuple[Path, dict[str, Any]]
"""A recipe's file, and what that file itself says."""


def load_recipe(path: Path, overrides: tuple[str, ...] = ()) -> Recipe:
    """Read a recipe and apply `key=value` overrides, dots between the names.

    A recipe that says `base: other.yaml`, a path from its own folder, is the other recipe with its
    own settings laid over it; what was set otherwise is kept in `base`.

    Raises:
        ConfigError: the file is no YAML mapping, or holds a name or a value we do not know.
    """
    layers = _read_layers(path)
    tree = _lay_together(layers)
    for override in overrides:
        _apply(tree, override)
    recipe = _validate(tree, layers, overrides)
    below = layers[1:] or (layers if overrides else [])
    return recipe.model_copy(update={"base": _compare(recipe, below)}) if below else recipe


def save_recipe(recipe: Recipe, path: Path) -> None:
    """Write a recipe with every setting spelled out, whole or not at all."""
    text = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    write_text(path, text)


def quoted(prefix: str = "", **values: object) -> tuple[str, ...]:
    """Write overrides whose values are taken as they are, whatever signs stand in them."""
    return tuple(f"{prefix}{name}={json.dumps(str(value))}" for name, value in values.items())


def as_typed(value: object) -> str:
    """Write the value of a setting as a person would give it, on one line."""
    text = yaml.safe_dump(
        _plain(value), default_flow_style=True, width=10_000, sort_keys=False, allow_unicode=True
    )
    return text.removesuffix("\n").removesuffix("...").strip()


def _plain(value: object) -> object:
    if isinstance(value, Settings):
        return value.model_dump(mode="json", exclude_defaults=True)
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value


def _validate(tree: dict[str, Any], layers: list[Layer], overrides: tuple[str, ...] = ()) -> Recipe:
    # A heading with nothing below it, as `data:`, leaves everything at its default.
    filled = {name: value for name, value in tree.items() if value is not None}
    try:
        return Recipe.model_validate(filled)
    except ValidationError as error:
        names, message = _explain(error)
        given = [one.partition("=")[0].split(".") for one in overrides]
        overridden = any(names[: len(one)] == one for one in given)
        files = [file for file, own in layers if _holds(own, names) and not overridden]
        raise ConfigError(f"{files[0] if files else layers[0][0]}: {message}") from None


def _explain(error: ValidationError) -> tuple[list[str], str]:
    """Name the setting that is wrong, and say what is wrong with it."""
    # Of a setting with several forms, the form that was understood furthest.
    problems = error.errors(include_url=False)
    problem = max(
        problems, key=lambda one: (len(_names(one["loc"])), one["type"] == "extra_forbidden")
    )
    names = _names(problem["loc"])
    given = problem["input"]
    if problem["type"] == "extra_forbidden":
        while isinstance(given, dict) and given:
            name, given = next(iter(given.items()))
            names.append(str(name))
        return names, f"unknown setting {'.'.join(names)}{_hint(names)}"
    where = ".".join(names)
    if problem["type"] == "missing":
        how = f"add it to the recipe or give {where}=... on the command line"
        return names, f"{where} is missing; {how}"
    shown = one_line(given)
    forms = [one["type"] for one in problems if _names(one["loc"]) == names]
    if problem["type"] in EXPECTED:
        expected = dict.fromkeys(EXPECTED[form] for form in forms if form in EXPECTED)
        return names, f"{where}={shown}: give {' or '.join(expected)}"
    return names, f"{where}={shown}: {problem['msg'][0].lower()}{problem['msg'][1:]}"


def _names(location: Sequence[Any]) -> list[str]:
    """Name a setting by its place, without pydantic's names of its forms."""
    return [
        str(name)
        for place, name in enumerate(location)
        if "[" not in str(name)
        and not str(name).startswith("constrained-")
        and not (name == "str" and place == len(location) - 1)
    ]


def _hint(names: list[str]) -> str:
    nearest = nearest_setting(names)
    return f"; did you mean {nearest}?" if nearest else ""


def nearest_setting(names: list[str]) -> str:
    """Find the setting that was meant: by what its name means, else by its letters; or none."""
    in_rule = names[0] == "strategy"
    known = setting_names(Rule, ".".join(names[:2]) + ".") if in_rule else setting_names(Recipe)
    by_end: dict[str, list[str]] = {}
    for one in known:
        by_end.setdefault(one.rpartition(".")[2], []).append(one)
    end = names[-1]
    meant = ELSEWHERE.get(end, "").rpartition(".")[2]
    ends = get_close_matches(end, by_end, n=1, cutoff=0.6)
    close = by_end.get(meant) or (by_end[ends[0]] if ends else [])
    if not close and len(names) == 1:  # a name with another tool's or our own heading before it
        close = get_close_matches(end, known, n=1, cutoff=0.6)
    (best,) = get_close_matches(".".join(names), close, n=1, cutoff=0) or [""]
    return best


def _holds(tree: Any, names: list[str]) -> bool:
    """Whether a file itself has the setting that is wrong, or the beginning of its name."""
    for name in names:
        if not isinstance(tree, dict):
            break
        keys = {str(key): value for key, value in tree.items()}
        if name not in keys:
            return False
        tree = keys[name]
    return True


def _compare(recipe: Recipe, below: list[Layer]) -> Base:
    """Find what a recipe says otherwise than the files below it."""
    needed = {"model": recipe.model, "run": str(recipe.run)}  # which a base may leave open
    base = _validate(needed | _lay_together(below), below)
    here, there = (flatten(one.model_dump(mode="json", exclude={"base"})) for one in (recipe, base))
    names = [name for name in here | there if here.get(name) != there.get(name)]
    otherwise = {name: there.get(name) for name in names}
    return Base(file=Path(normpath(below[0][0])), otherwise=otherwise)


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Name every leaf of a tree by its dotted path."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _read_layers(path: Path) -> list[Layer]:
    """Read a recipe and its bases, the nearest first."""
    layers: list[Layer] = []
    file: Path | None = path
    while file is not None:
        seen = [one.resolve() for one, _ in layers]
        if file.resolve() in seen:
            raise ConfigError(f"{layers[-1][0]}: base: {file} is built on this very recipe")
        tree = _read_tree(file, layers[-1][0] if layers else None)
        base = tree.pop("base", None)
        if isinstance(base, dict):  # the recipe of a run, which is whole
            tree |= {} if layers else {"base": base}
            base = None
        if base is not None and not (isinstance(base, str) and base):
            raise ConfigError(f"{file}: base={base}: give the path of another recipe")
        layers.append((file, tree))
        file = file.parent / expanduser(base) if base else None
    return layers


class _RepeatedNameError(yaml.MarkedYAMLError):
    """A mapping has two values under one name."""


class _Reader(yaml.SafeLoader):
    """Reads YAML in which a name stands once: of two values the last would win without a word."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Read a mapping, before another is merged into it."""
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                raise _RepeatedNameError(problem=key.value, problem_mark=key.start_mark)
            seen.add(key.value)
        return node


# A date is a text: a folder may be called by one, even by one that no calendar has.
_Reader.yaml_implicit_resolvers = {
    first: [one for one in known if one[0] != "tag:yaml.org,2002:timestamp"]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _read_yaml(text: str | bytes) -> Any:
    """Read YAML.

    Raises:
        yaml.YAMLError, ValueError, RecursionError: it is none, or is a part of itself.
    """
    tree = _Reader(text).get_single_data()
    json.dumps(tree, default=str, skipkeys=True)  # looks for circles
    return tree


def _read_tree(path: Path, named_by: Path | None) -> dict[str, Any]:
    try:
        tree = _read_yaml(path.read_bytes())
    except OSError as error:
        what = f"{named_by}: base: {path}" if named_by else f"{path}"
        if (of_run := path / "recipe.yaml").is_file():
            raise ConfigError(f"{what}: {error.strerror}; give {of_run}") from error
        raise ConfigError(f"{what}: {error.strerror}; give a YAML recipe") from error
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{path}{_what_is_no_yaml(error)}") from error
    except RecursionError:
        raise ConfigError(f"{path}: not YAML: nested too deeply; give a YAML recipe") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: a recipe is a mapping of settings, such as `model: ...`")
    return tree


def _what_is_no_yaml(error: yaml.YAMLError | ValueError) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        where = f":{error.problem_mark.line + 1}:"
        if isinstance(error, _RepeatedNameError):
            return f"{where} {error.problem} is there twice; keep one of them"
        return f"{where} not YAML: {error.problem}; give a YAML recipe"
    return f": not YAML: {one_line(error)}; give a YAML recipe"


def _lay_together(layers: list[Layer]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for _, own in reversed(layers):
        _lay_over(tree, deepcopy(own))  # what is laid upon it shall not reach the layer itself
    return tree


def _lay_over(tree: dict[str, Any], own: dict[str, Any]) -> None:
    for name, value in own.items():
        below = tree.get(name)
        if isinstance(below, dict) and (value is None or isinstance(value, dict)):
            _lay_over(below, value or {})
        else:
            tree[name] = value


def _apply(tree: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    *parents, last = name.split(".")
    if not equals or not all([*parents, last]):
        raise ConfigError(f"{override}: write an override as key=value, such as train.epochs=2")
    if name == "base":
        raise ConfigError(f"{override}: a base is named in the recipe's file, as `base: FILE`")
    branch = tree
    for parent in parents:
        if branch.get(parent) is None:
            branch[parent] = {}
        branch = branch[parent]
        if not isinstance(branch, dict):
            raise ConfigError(f"{override}: {parent} is a value and has no settings below it")
    branch[last] = _read_value(text)


def _read_value(text: str) -> Any:
    try:
        value = _read_yaml(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return text
    # What a number or a truth is, the setting knows better: a folder may be called 1e3.
    return value if value is None or isinstance(value, str | list | dict) else text
