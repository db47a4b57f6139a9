"""From a recipe: build the pieces, evaluate, train, evaluate again, report."""

import json
import platform
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from foveal.adapt.strategy import Assignment, assign, rules_of, summarize
from foveal.config import EvaluateSettings, Recipe, load_recipe, save_recipe
from foveal.data.dataset import Dataset, read_dataset
from foveal.data.example import Example, ImageFolder, Turn, read_examples
from foveal.data.loader import RowBatches, StepLoader
from foveal.data.rows import Plan, Row
from foveal.errors import ConfigError, ModelError, RunError
from foveal.evaluate.predict import predict
from foveal.evaluate.prediction import (
    Scores,
    read_scores,
    score_predictions,
    write_predictions,
    write_scores,
)
from foveal.evaluate.report import write_report
from foveal.models.family import LoadedModel, load
from foveal.plan.memory import CPU_SLACK
from foveal.plan.room import training_bytes
from foveal.plan.setup import engine_name
from foveal.train.audit import GradientAudit, audit_sharing, audit_targets
from foveal.train.checkpoint import (
    Progress,
    check_same_run,
    checkpoints,
    load_checkpoint,
    read_progress,
)
from foveal.train.engine import Engine, make_engine
from foveal.train.log import RunLog
from foveal.train.loop import LoopHooks, Stopped, train
from foveal.train.loss import RowLoss
from foveal.train.optim import build_optimizer
from foveal.train.recompute import recompute_blocks

TINY = "phi3-vision-tiny"
"""A recipe's `model` that is made from nothing: small, with random weights."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    run: Path
    stopped: Stopped | None
    before: Scores | None
    after: Scores | None
    report: Path | None


class TrainingRun:
    """One run of a recipe, from its folder's state to its report."""

    def __init__(self, recipe: Recipe, console: Console, fresh: bool = False) -> None:
        if recipe.data.train is None:
            raise ConfigError("data.train is missing; give a JSONL file, data.train=...")
        quiet_libraries()
        self.recipe = recipe
        self.engine = make_engine(recipe.engine, recipe.precision)
        self.console = console if self.engine.is_main else Console(quiet=True)
        self.run = recipe.run
        if fresh and self.engine.is_main:
            set_aside(self.run)
        self.engine.wait()
        torch.manual_seed(recipe.train.seed)
        self.loaded = load_for_run(recipe, self.run, self.engine)
        _, self.dataset = self._read(recipe.data.train)
        self.validation = self._read(recipe.data.validation) if recipe.data.validation else None

    def _read(self, path: Path) -> tuple[list[Example], Dataset]:
        data = self.recipe.data
        cache = self.run / ".cache" / f"{path.stem}-sizes.json"
        return read_dataset(path, self.loaded.processor, data.images, cache, data.workers)

    def go(self) -> Outcome:
        """Train to the end, or to a request to stop."""
        recipe, engine, loaded = self.recipe, self.engine, self.loaded
        assignments = assign(
            loaded.model,
            loaded.family,
            rules_of(recipe.strategy),
            recipe.train.learning_rate,
            recipe.train.weight_decay,
            recipe.lora,
        )
        loss = RowLoss(loaded.model, loaded.family, use_every_weight=engine.world_size > 1)
        wrapped = engine.prepare(loss, loaded.family.blocks(loaded.model))
        self._choose_recompute()
        optimizer = build_optimizer(loaded.model, assignments, recipe.train)
        plan = self._plan()
        total_steps = count_steps(plan, recipe)
        first_step = self._resume(optimizer)
        if engine.is_main:
            self.run.mkdir(parents=True, exist_ok=True)
            save_recipe(recipe, self.run / "recipe.yaml")
            (self.run / "machine.json").write_text(json.dumps(describe_machine(), indent=1))
        self._introduce(assignments, plan, total_steps, first_step)
        self.evaluate("before")
        batches = RowBatches(self.dataset, loaded.processor, recipe.train.loss_weighting)
        loader = StepLoader(
            plan, batches, engine.rank, recipe.data.workers, engine.device.type == "cuda"
        )
        if first_step < total_steps:
            self._check_sharing(plan, first_step, wrapped)
        hooks = LoopHooks(
            progress=self._progress,
            evaluate=self._evaluate_on_the_way,
            audit=GradientAudit(loaded.model, assignments, bool(self.dataset.images)),
        )
        audit_targets(self.dataset)
        log = RunLog(self.run, first_step, total_steps, self.console) if engine.is_main else None
        try:
            stopped = train(
                engine,
                loaded.model,
                wrapped,
                optimizer,
                loader,
                recipe.train,
                self.run,
                first_step,
                total_steps,
                log,
                hooks,
            )
        finally:
            if log:
                log.close()
        if stopped:
            return Outcome(self.run, stopped, None, None, None)
        return self._finish()

    def _plan(self) -> Plan:
        recipe, loaded = self.recipe, self.loaded
        return Plan(
            self.dataset.sizes,
            examples_per_step=recipe.train.examples_per_step,
            tokens_per_pass=recipe.train.tokens_per_pass,
            world_size=self.engine.world_size,
            seed=recipe.train.seed,
            share_images=recipe.data.share_images,
            order=recipe.data.order,
            long_context_tokens=loaded.family.long_context_tokens(loaded.model),
        )

    def _choose_recompute(self) -> None:
        wanted, model = self.recipe.train.recompute, self.loaded.model
        if wanted == "auto":
            needed = training_bytes(
                self.recipe,
                model.config,
                self._plan(),
                self.dataset,
                engine_name(self.recipe.engine, self.engine.world_size),
                model.config._attn_implementation,
                CPU_SLACK if self.engine.device.type == "cpu" else 0.0,
            )
            wanted = "blocks" if needed > free_memory(self.engine.device) else "none"
        if wanted == "blocks":
            recompute_blocks(model, self.loaded.family)

    def _progress(self, step: int) -> Progress:
        return Progress(
            step, resume_key(self.recipe), self.dataset.fingerprint, self.engine.world_size
        )

    def _resume(self, optimizer: torch.optim.Optimizer) -> int:
        found = checkpoints(self.run / "checkpoints")
        if not found:
            return 0
        stored = read_progress(found[-1])
        check_same_run(found[-1], stored, self._progress(stored.step))
        load_checkpoint(found[-1], self.loaded.model, optimizer)
        self.console.print(f"Going on from {found[-1]}", highlight=False)
        if stored.world_size != self.engine.world_size:
            self.console.print(
                f"It ran on {stored.world_size} processes, now on {self.engine.world_size}: each "
                "step still has the same examples, but its sums are rounded in another order",
                highlight=False,
            )
        return stored.step

    def _introduce(
        self, assignments: Sequence[Assignment], plan: Plan, total_steps: int, first_step: int
    ) -> None:
        table = Table("part", "what becomes of it", "parameters", "highest rate")
        for part, fate, count, rate in summarize(assignments):
            table.add_row(part, fate, f"{count:,}", f"{rate:.1e}" if rate else "-")
        self.console.print(table)
        self.console.print(
            f"{len(self.dataset.examples):,} examples, {len(self.dataset.images):,} pictures; "
            f"steps {first_step} to {total_steps}, {plan.steps_per_epoch:,} a pass; "
            f"{self.engine.device}, {self.recipe.precision}",
            highlight=False,
        )

    def _check_sharing(self, plan: Plan, step: int, loss: nn.Module) -> None:
        """Compare one shared row with its separate samples, once a start.

        The same row on every process: engines may need all of them for each pass.
        """
        for row in (row for rank in plan.step(step).ranks for row in rank):
            shared = [group for group in row.groups if len(group.examples) > 1]
            if shared:
                audit_sharing(
                    self.engine,
                    loss,
                    Row((shared[0],)),
                    self.dataset,
                    self.loaded.processor,
                    self.recipe.train.loss_weighting,
                )
                return

    def _evaluate_on_the_way(self, step: int) -> None:
        self.evaluate(f"step-{step}")

    def evaluate(self, name: str) -> Scores | None:
        """Answer and score the validation examples, unless that was done before."""
        if self.validation is None:
            return None
        with self.engine.whole():
            return evaluate_into(
                self.run / "evaluation" / name,
                self.loaded,
                *self.validation,
                self.recipe.evaluate,
                self.engine,
                self.console,
            )

    def _finish(self) -> Outcome:
        after = self.evaluate("after")
        before = self.evaluate("before")
        report = None
        self.engine.release()
        if self.engine.is_main:
            save_final(self.loaded, self.run / "final")
            report = write_report(self.run)
        self.engine.wait()
        return Outcome(self.run, None, before, after, report)


def set_aside(run: Path) -> None:
    """Keep a former run under another name."""
    if not run.exists():
        return
    number = 1
    while (kept := run.with_name(f"{run.name}.before-{number}")).exists():
        number += 1
    run.rename(kept)


def load_for_run(recipe: Recipe, run: Path, engine: Engine) -> LoadedModel:
    """Load a recipe's model; the tiny one is first made in the run folder."""
    name = recipe.model
    if name == TINY and not Path(name).exists():
        from foveal.models.phi3_vision.tiny import write_tiny

        folder = run / "model"
        if engine.is_main and not (folder / "config.json").exists():
            assert recipe.data.train is not None
            examples = list(read_examples(recipe.data.train))
            images = ImageFolder(recipe.data.train, recipe.data.images)
            shown = [path for example in examples[:200] for path in example.images][:32]
            write_tiny(
                folder,
                recipe.train.seed,
                texts={text for one in examples for turn in one.turns for text in _texts(turn)},
                pictures=[images.find(path) for path in shown],
                num_crops=recipe.data.num_crops,
            )
        engine.wait()
        name = str(folder)
    return load(name, recipe.data.num_crops, recipe.attention)


def load_in_passing(recipe: Recipe) -> LoadedModel:
    """Load a recipe's model as a run would, and leave nothing behind."""
    with TemporaryDirectory() as folder:
        return load_for_run(recipe, Path(folder), Engine(recipe.precision))


def _texts(turn: Turn) -> tuple[str, ...]:
    # As they stand in a prompt: behind a line break, or by themselves.
    return f"\n{turn.user}", turn.user, turn.assistant


def count_steps(plan: Plan, recipe: Recipe) -> int:
    """Steps of a whole run."""
    steps = max(1, round(plan.steps_per_epoch * recipe.train.epochs))
    return min(steps, recipe.train.max_steps or steps)


def resume_key(recipe: Recipe) -> dict[str, Any]:
    """Everything in a recipe that decides the numbers of a run, by dotted name."""
    free = {
        "run",
        "engine",
        "data.workers",
        "data.validation",
        "data.images",
        "train.save_every_steps",
        "train.keep_checkpoints",
        "train.evaluate_every_steps",
        "train.recompute",
        "train.max_bad_steps",
    }
    flat = flatten(recipe.model_dump(mode="json"))
    return {
        name: value
        for name, value in flat.items()
        if name not in free and not name.startswith("evaluate.")
    }


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Name every leaf of a tree by its dotted path."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def free_memory(device: torch.device) -> int:
    """Bytes that a device still has."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 8 * 2**30


def describe_machine() -> dict[str, str]:
    """What a reader of the numbers wants to know of the machine."""
    import transformers

    import foveal

    return {
        "platform": platform.platform(),
        "python": sys.version.split()[0],
        "foveal": foveal.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": str(torch.accelerator.current_accelerator() or "cpu"),
        "threads": str(torch.get_num_threads()),
    }


def evaluate_into(
    folder: Path,
    loaded: LoadedModel,
    examples: list[Example],
    dataset: Dataset,
    settings: EvaluateSettings,
    engine: Engine,
    console: Console,
) -> Scores:
    """Write predictions.jsonl and scores.json of some examples, unless they are there.

    Each process answers its share; every example is answered exactly once.
    """
    scores_file = folder / "scores.json"
    if scores_file.exists():
        return read_scores(scores_file)
    limit = settings.max_examples or len(examples)
    mine = list(range(min(limit, len(examples))))[engine.rank :: engine.world_size]
    with console.status(f"Answering {limit:,} examples ({folder.name})"):
        made = predict(
            loaded,
            examples,
            dataset,
            settings.max_new_tokens,
            settings.tokens_per_batch,
            only=mine,
        )
    predictions = [one.scored(settings.metrics) for one in engine.gather(made)]
    scores = score_predictions(predictions, settings.metrics)
    if engine.is_main:
        write_predictions(folder / "predictions.jsonl", predictions)
        write_scores(scores_file, scores)
    engine.wait()
    return scores


def evaluate_model(
    model: str,
    data: Path,
    out: Path | None,
    *,
    images: Path | None,
    num_crops: int | None,
    settings: EvaluateSettings,
    console: Console,
) -> tuple[Path, Scores]:
    """Answer and score a file with a run's model, a folder's or the hub's; returns where, and how.

    A run's own recipe says how its pictures are cut, unless `num_crops` does.
    """
    quiet_libraries()
    recipe = Path(model) / "recipe.yaml"
    if num_crops is None and recipe.exists():
        num_crops = load_recipe(recipe).data.num_crops
    engine = make_engine("auto", "float32")
    loaded = load(find_model(model), num_crops)
    loaded.model.to(engine.device)
    beside = Path(model) / "evaluation" if recipe.exists() else Path("evaluation")
    folder = out or beside / data.stem
    examples, dataset = read_dataset(data, loaded.processor, images)
    (folder / "scores.json").unlink(missing_ok=True)  # asked for again, answered again
    scores = evaluate_into(folder, loaded, examples, dataset, settings, engine, console)
    return folder, scores


def quiet_libraries() -> None:
    """Leave the terminal to our own bar and tables."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def save_final(loaded: LoadedModel, folder: Path) -> None:
    """Write the tuned model, adapters merged, as a folder that transformers reads.

    Raises:
        RunError: it cannot be written.
    """
    from foveal.adapt.adapters import merge_adapters

    beside = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(beside, ignore_errors=True)
    merge_adapters(loaded.model)
    try:
        loaded.model.save_pretrained(beside)
        loaded.processor.save_pretrained(beside)
        shutil.rmtree(folder, ignore_errors=True)
        beside.rename(folder)
    except OSError as error:
        shutil.rmtree(beside, ignore_errors=True)
        raise RunError(f"cannot write {folder}: {error.strerror}; free space, run again") from error


def find_model(place: str) -> str:
    """Find the model of a run folder, a model folder or a hub name.

    Raises:
        ModelError: a run folder that holds no finished model.
    """
    folder = Path(place)
    if (folder / "final").is_dir():
        return str(folder / "final")
    if (folder / "recipe.yaml").exists():
        raise ModelError(f"{place}: this run has not ended; run `foveal train` on its recipe")
    return place
