"""The published recipe's flags -> our recipe, its run, and eval_before.json and eval_after.json."""

import argparse
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foveal.config import Recipe, load_recipe, quoted
from foveal.errors import ConfigError, UserError
from foveal.published import RECIPES, prepare

ALPHA_RATIO_TO_WONDER_AT = 4.0
"""The recipe uses 0.5 and 2; more is most likely an alpha given as a ratio."""

TOKENS_PER_EXAMPLE = 8192
"""Token budget of a forward pass for each example of --batch_size_per_gpu."""

ADAPTERS_BEHIND_FROZEN_VISION = (
    "strategy=[{match: 'vision.*', learn: false}, {match: 'projector.*', learn: false}, "
    "{match: 'language.*', learn: false, adapter: true%s}]"
)


@dataclass(frozen=True)
class Front:
    """What tells one script of the recipe from another."""

    task: str
    """Its file in `recipes`."""

    metric: str = "accuracy"
    """As eval_before.json and eval_after.json name it."""

    title: str = "Accuracy"
    num_crops: int = 16
    data_dir_required: bool = False
    mini_train: bool = False
    """Whether it learns from a small set unless --full_train is given."""

    flash_means_bf16: bool = False
    answers_by_id: bool = False
    """Whether eval_before.json and eval_after.json give the id of each answer."""


def read_flags(front: Front, arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the recipe's flags, with its defaults."""
    parser = argparse.ArgumentParser(
        description=f"Fine-tune on {front.task}; see docs/cookbook.md",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--model_name_or_path", default="microsoft/Phi-3.5-vision-instruct", help="folder or name")
    add(
        "--data_dir",
        type=Path,
        required=front.data_dir_required,
        help="the data set's files; left out: the hub, or its cache when offline",
    )
    full = "learn from all of DocVQA" if front.mini_train else "taken, and done anyway"
    add("--full_train", action="store_true", help=full)
    add("--use_flash_attention", action="store_true", help="a fused attention kernel")
    add("--bf16", action="store_true", help="compute in bf16; without it in fp16")
    add("--use_lora", action="store_true", help="learn low-rank adapters")
    add("--use_qlora", action="store_true", help="the same on 4-bit weights")
    add("--output_dir", type=Path, default=Path("./output/"), help="run folder")
    add("--batch_size", type=int, default=16, help="examples of a step, over all GPUs")
    add("--batch_size_per_gpu", type=int, default=1, help="raises the tokens of a forward pass")
    add("--num_crops", type=int, default=front.num_crops, help="most crops of a picture")
    add("--num_train_epochs", type=int, default=1, help="passes over the examples")
    add("--learning_rate", type=float, default=4.0e-5, help="highest rate")
    add("--wd", type=float, default=0.01, help="weight decay")
    add("--no-tqdm", dest="tqdm", action="store_false", help="no moving bars")
    add("--lora_rank", type=int, default=64, help="width of an adapter")
    add("--lora_alpha_ratio", type=float, default=2, help="alpha / rank")
    add("--lora_dropout", type=float, default=0.0, help="dropout of an adapter's inputs")
    add("--freeze_vision_model", action="store_true", help="leave the tower as it is")
    return parser.parse_args(arguments)


def recipe_of(front: Front, flags: argparse.Namespace, train: Path, validation: Path) -> Recipe:
    """Turn flags into a recipe.

    Raises:
        ConfigError: a value is out of its range.
    """
    if not 1 <= flags.num_crops <= 16:
        raise ConfigError(f"--num_crops {flags.num_crops}: give 1 to 16")
    if flags.batch_size_per_gpu < 1:
        raise ConfigError(f"--batch_size_per_gpu {flags.batch_size_per_gpu}: give 1 or more")
    bf16 = flags.bf16 or (flags.use_flash_attention and front.flash_means_bf16)
    return load_recipe(
        RECIPES / f"{front.task}.yaml",
        (
            *quoted(model=flags.model_name_or_path, run=flags.output_dir),
            *quoted("data.", train=train, validation=validation),
            f"data.num_crops={flags.num_crops}",
            f"precision={'bf16' if bf16 else 'fp16'}",
            strategy_of(flags),
            f"lora.rank={flags.lora_rank}",
            f"lora.alpha={max(1, round(flags.lora_rank * flags.lora_alpha_ratio))}",
            f"lora.dropout={flags.lora_dropout}",
            f"train.examples_per_step={flags.batch_size}",
            f"train.tokens_per_pass={TOKENS_PER_EXAMPLE * flags.batch_size_per_gpu}",
            f"train.epochs={flags.num_train_epochs}",
            f"train.learning_rate={flags.learning_rate}",
            f"train.weight_decay={flags.wd}",
            "published=null",  # holds for the rows alone
        ),
    )


def strategy_of(flags: argparse.Namespace) -> str:
    """Say what learns, as an override."""
    lora = flags.use_lora or flags.use_qlora
    if lora and flags.freeze_vision_model:
        return ADAPTERS_BEHIND_FROZEN_VISION % (", quantize: true" if flags.use_qlora else "")
    if lora:
        return f"strategy={'qlora' if flags.use_qlora else 'lora'}"
    return f"strategy={'frozen_vision' if flags.freeze_vision_model else 'full'}"


def remarks(flags: argparse.Namespace) -> list[str]:
    """Say what a flag does here that a person might not expect."""
    import torch

    said = []
    ratio, rank = flags.lora_alpha_ratio, flags.lora_rank
    if ratio > ALPHA_RATIO_TO_WONDER_AT and (flags.use_lora or flags.use_qlora):
        said.append(
            f"--lora_alpha_ratio {ratio:g} is a ratio: alpha = {ratio:g} x {rank} = "
            f"{round(ratio * rank)}; for alpha {ratio:g} give --lora_alpha_ratio {ratio / rank:g}"
        )
    if flags.use_flash_attention and not torch.cuda.is_available():
        said.append("--use_flash_attention: no CUDA here, so PyTorch's own attention is used")
    return said


def write_answers(front: Front, run: Path, when: str) -> float:
    """Write `eval_{when}.json` as the recipe does, from our predictions; returns its score."""
    from foveal.evaluate.metrics import anls_cookbook, plain
    from foveal.evaluate.prediction import read_predictions

    predictions = read_predictions(run / "evaluation" / when / "predictions.jsonl")
    answers: list[Any]
    texts: list[Any]
    if front.metric == "anls":
        answers = [list(one.answers) for one in predictions]
        texts = [one.prediction.strip().strip(".") for one in predictions]
        marks = [anls_cookbook(one.prediction, one.answers) for one in predictions]
    else:
        answers = [plain(one.answers[0]) for one in predictions]
        texts = [plain(one.prediction) for one in predictions]
        marks = [float(one == other) for one, other in zip(answers, texts, strict=True)]
    score = sum(marks) / len(marks)
    if front.answers_by_id:
        ids = [one.id for one in predictions]
        answers = [{"id": i, "answer": a} for i, a in zip(ids, answers, strict=True)]
        texts = [{"id": i, "generated_text": t} for i, t in zip(ids, texts, strict=True)]
    tree = {"answers_unique": answers, "generated_texts_unique": texts, front.metric: score}
    (run / f"eval_{when}.json").write_text(json.dumps(tree), encoding="utf-8")
    return score


def run(front: Front, arguments: list[str] | None = None) -> None:
    """Do what the recipe's script does: prepare the data, evaluate, learn, evaluate."""
    from rich.console import Console

    from foveal.cli.learning import announce
    from foveal.run import TrainingRun

    flags = read_flags(front, arguments)
    rank = int(os.environ.get("RANK", "0"))
    recipe_of(front, flags, Path(), Path())  # a wrong value is told before data are fetched
    for remark in remarks(flags) if rank == 0 else ():
        print(remark, file=sys.stderr, flush=True)
    full = not front.mini_train or flags.full_train
    files = prepare(
        front.task, flags.data_dir, flags.output_dir / "data", full_train=full, rank=rank
    )

    def leave_answers(name: str) -> None:
        """Leave the recipe's file of an evaluation as well."""
        written = flags.output_dir / f"eval_{name}.json"
        if name in ("before", "after") and not written.exists():
            score = write_answers(front, flags.output_dir, name)
            print(f"{front.title} {name} finetuning: {score}", flush=True)

    console = Console(stderr=True, force_terminal=None if flags.tqdm else False)
    recipe = recipe_of(front, flags, *files)
    outcome = TrainingRun(recipe, console, scored=leave_answers).go()
    if rank == 0:
        announce(outcome)


def main(front: Front) -> None:
    """Run a script of the recipe; a mendable error becomes one line and exit status 2."""
    try:
        run(front)
    except UserError as error:
        print(f"{front.task}: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
