"""What is wrong with a setting, in one line."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError

from foveal.config.settings import Recipe, Rule, setting_names

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


def explain(error: ValidationError) -> tuple[list[str], str]:
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
        return names, f"unknown setting {'.'.join(names)}{_nearest(names)}"
    where = ".".join(names)
    if problem["type"] == "missing":
        how = f"add it to the recipe or give {where}=... on the command line"
        return names, f"{where} is missing; {how}"
    shown = " ".join(str(given).split())
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


def _nearest(names: list[str]) -> str:
    """Ask whether the nearest setting was meant: by what its name means, else by its letters."""
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
    return f"; did you mean {best}?" if best else ""
