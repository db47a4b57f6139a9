"""From a recipe: build the pieces, evaluate, train, evaluate again, report."""

import errno
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors import SafetensorError

from foveal.adapt.files import save_adapter
from foveal.adapt.strategy import Assignment, strategy_table
from foveal.assemble import load_for_run, make_plan, quiet_libraries
from foveal.config import Recipe, flatten, save_recipe
from foveal.data.convert.unpack import unpacked
from foveal.data.dataset import Dataset, read_dataset
from foveal.data.lines import Examples
from foveal.data.loader import RowBatches, StepLoader
from foveal.data.remarks import check_lengths
from foveal.data.rows import Plan, Row
from foveal.deliver.export import write_final
from foveal.errors import ConfigError, RunError, UserError
from foveal.evaluate.evaluation import evaluate_into
from foveal.evaluate.metrics import find_metrics
from foveal.evaluate.prediction import Scores
from foveal.evaluate.report import write_report
from foveal.machine import describe_machine, free_memory
from foveal.models.family import LoadedModel
from foveal.plan.memory import CPU_SLACK
from foveal.plan.room import training_bytes
from foveal.plan.setup import engine_name
from foveal.train.audit import GradientAudit, audit_sharing, audit_targets
from foveal.train.best import best_checkpoint
from foveal.train.checkpoint import (
    Progress,
    check_same_run,
    checkpoints,
    fingerprint_model,
    load_checkpoint,
    prune,
    read_progress,
)
from foveal.train.engine import make_engine
from foveal.train.incidents import Incidents
from foveal.train.learner import make_learner
from foveal.train.log import RunLog
from foveal.train.loop import LoopHooks, Stopped, train

FAILED_WRITES = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EACCES}
"""What the system says of a disk that is full or takes no more."""


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
        if not recipe.data.train_files:
            raise ConfigError("data.train is missing; give a JSONL file, data.train=...")
        quiet_libraries()
        check_scores(recipe)
        check_attention(recipe)
        self.recipe = recipe
        self.engine = make_engine(recipe.engine, recipe.precision)
        self.console = console if self.engine.is_main else Console(quiet=True)
        self.run = recipe.run
        if fresh and self.engine.is_main:
            set_aside(self.run)
        self.engine.wait()
        make_folder(self.run)
        torch.manual_seed(recipe.train.seed)
        data, weights = recipe.data, [file.weight for file in recipe.data.train_files]
        files = [self._unpack(file.path) for file in data.train_files]
        validation = [self._unpack(data.validation)] if data.validation else []
        self.loaded = load_for_run(recipe, self.run, self.engine, files)
        self.model_fingerprint = fingerprint_model(self.loaded.model)
        _, self.dataset = self._read(files, weights)
        self.validation = self._read(validation) if validation else None
        self._check()

    def _unpack(self, path: Path) -> Path:
        """Find the JSONL file of what the recipe names; the main process unpacks, others wait."""
        if self.engine.is_main:
            unpacked(path, self.run / ".cache")
        self.engine.wait()
        return unpacked(path, self.run / ".cache")

    def _check(self) -> None:
        """Say what was noticed while reading, before anything is paid for."""
        audit_targets(self.dataset)
        long = check_lengths(
            self.dataset.sizes.tokens,
            self.dataset.examples,
            getattr(self.loaded.model.config, "max_position_embeddings", None),
            self.recipe.train.tokens_per_pass,
        )
        remarks = [*self.dataset.remarks.lines(), *([long] if long else [])]
        for line in [*remarks, *(self.validation[1].remarks.lines() if self.validation else ())]:
            self.console.print(line, style="yellow", highlight=False, markup=False)

    def _read(self, files: list[Path], weights: Sequence[float] = ()) -> tuple[Examples, Dataset]:
        data, cache = self.recipe.data, self.run / ".cache"
        processor = self.loaded.processor
        return read_dataset(files, processor, data.images, cache, data.workers, weights)

    def go(self) -> Outcome:
        """Train to the end, or to a request to stop.

        Raises:
            RunError: too much goes wrong, or a file cannot be written.
        """
        try:
            return self._go()
        except UserError:
            raise  # every process knows it alike
        except Exception as error:
            self.engine.abandon()
            if isinstance(error, OSError) and error.errno in FAILED_WRITES:
                raise RunError(
                    f"cannot write to {error.filename or self.run}: {error.strerror}; "
                    "free space and run the same command again"
                ) from error
            raise

    def _go(self) -> Outcome:
        recipe, engine, loaded = self.recipe, self.engine, self.loaded
        plan = self._plan()
        learner = make_learner(
            engine, loaded, recipe.strategy, recipe.train, recipe.lora, self._recomputes(plan)
        )
        assignments, total_steps = learner.assignments, count_steps(plan, recipe)
        self._check_sharing(plan)
        optimizer = learner.make_optimizer()
        first_step = self._resume(optimizer)
        if engine.is_main:
            save_recipe(recipe, self.run / "recipe.yaml")
            (self.run / "machine.json").write_text(json.dumps(describe_machine(), indent=1))
            (self.run / "data.json").write_text(json.dumps(self._describe_data(), indent=1))
        self._introduce(assignments, plan, total_steps, first_step)
        self.evaluate("before")
        batches = RowBatches(self.dataset, loaded.processor, recipe.train.loss_weighting)
        loader = StepLoader(
            plan, batches, engine.rank, recipe.data.workers, engine.device.type == "cuda"
        )
        hooks = LoopHooks(
            progress=self._progress,
            evaluate=self._evaluate_on_the_way,
            audit=GradientAudit(engine, loaded.model, assignments, bool(self.dataset.images)),
            best=self._best,
        )
        incidents = Incidents(
            self.run,
            first_step,
            recipe.train.max_bad_steps,
            recipe.data.max_bad_fraction,
            engine.is_main,
        )
        log = None
        if engine.is_main:
            log = RunLog(self.run, first_step, total_steps, self.console, incidents.left_out)
        try:
            stopped = train(
                engine,
                loaded.model,
                engine.module,
                optimizer,
                loader,
                recipe.train,
                self.run,
                first_step,
                total_steps,
                log,
                incidents,
                hooks,
            )
        finally:
            if log:
                log.close()
        if stopped:
            return Outcome(self.run, stopped, None, None, None)
        return self._finish()

    def _describe_data(self) -> dict[str, dict[str, str | int]]:
        """Say what the examples were when the run began, for who reads of it later."""
        sets = {"training": self.dataset}
        if self.validation:
            sets["validation"] = self.validation[1]
        return {
            role: {
                "fingerprint": one.fingerprint,
                "examples": len(one.examples),
                "pictures": len(one.images),
            }
            for role, one in sets.items()
        }

    def _plan(self) -> Plan:
        long = self.loaded.family.long_context_tokens(self.loaded.model)
        return make_plan(self.recipe, self.dataset, self.engine.world_size, long)

    def _recomputes(self, plan: Plan) -> bool:
        """Decide whether blocks are run again in the backward pass instead of kept."""
        if self.recipe.train.recompute != "auto":
            return self.recipe.train.recompute == "blocks"
        config, device = self.loaded.model.config, self.engine.device
        needed = training_bytes(
            self.recipe,
            config,
            plan,
            self.dataset,
            engine_name(self.recipe.engine, self.engine.world_size),
            config._attn_implementation,
            CPU_SLACK if device.type == "cpu" else 0.0,
            self.loaded.model.device.type == device.type,
        )
        return needed > free_memory(device)

    def _progress(self, step: int) -> Progress:
        return Progress(
            step,
            resume_key(self.recipe),
            self.dataset.fingerprint,
            self.engine.world_size,
            self.model_fingerprint,
            self.engine.loss_scale,
        )

    def _best(self) -> Path | None:
        metric = self.recipe.train.best_metric
        return best_checkpoint(self.run, metric) if metric else None

    def _resume(self, optimizer: torch.optim.Optimizer) -> int:
        found = checkpoints(self.run / "checkpoints")
        if not found:
            return 0
        stored = read_progress(found[-1])
        check_same_run(found[-1], stored, self._progress(stored.step))
        load_checkpoint(found[-1], self.loaded.model, optimizer, self.engine)
        self.engine.loss_scale = stored.loss_scale
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
        self.console.print(strategy_table(assignments))
        self.console.print(
            f"{len(self.dataset.examples):,} examples, {len(self.dataset.images):,} pictures; "
            f"steps {first_step} to {total_steps}, {plan.steps_per_epoch:,} a pass; "
            f"{self.engine.device}, {self.recipe.precision}",
            highlight=False,
        )

    def _check_sharing(self, plan: Plan) -> None:
        """Compare one shared row with its separate samples, once a start.

        The same row on every process: engines may need all of them for each pass.
        """
        for row in (row for rank in plan.step(0).ranks for row in rank):
            shared = [group for group in row.groups if len(group.examples) > 1]
            if shared:
                audit_sharing(
                    self.engine,
                    self.engine.module,
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
            if self.recipe.train.best_metric:
                prune(self.run / "checkpoints", self.recipe.train.keep_checkpoints, self._best())
            note = save_final(self.loaded, self.run)
            if note:
                self.console.print(note, highlight=False)
            report = write_report(self.run)
        self.engine.wait()
        return Outcome(self.run, None, before, after, report)


def check_scores(recipe: Recipe) -> None:
    """See that a recipe's scores are known, and that of the best checkpoint among them.

    Raises:
        ConfigError: it cannot; the message says what is missing.
    """
    find_metrics(recipe.evaluate.metrics)
    best = recipe.train.best_metric
    if not best:
        return
    for name, value in (
        ("data.validation", recipe.data.validation),
        ("train.evaluate_every_steps", recipe.train.evaluate_every_steps),
    ):
        if not value:
            raise ConfigError(f"train.best_metric={best} needs {name}; give it, or leave that out")
    if best not in (*recipe.evaluate.metrics, "auroc"):
        known = ", ".join(recipe.evaluate.metrics)
        raise ConfigError(f"train.best_metric={best} is not among evaluate.metrics: {known}")


def check_attention(recipe: Recipe) -> None:
    """See that a recipe's attention can read the rows that it asks for.

    Raises:
        ConfigError: it cannot.
    """
    if recipe.attention == "flash_attention_2" and recipe.data.share_images:
        raise ConfigError(
            "attention=flash_attention_2 cannot read rows that share pictures; "
            "use attention=flex, or give data.share_images=false"
        )


def make_folder(run: Path) -> None:
    """See that a run has its folder before anything is paid for.

    Raises:
        RunError: it cannot be made.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"run={run}: {error.strerror}; give a folder to write to") from error


def set_aside(run: Path) -> None:
    """Keep a former run under another name."""
    if not run.exists():
        return
    number = 1
    while (kept := run.with_name(f"{run.name}.before-{number}")).exists():
        number += 1
    run.rename(kept)


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
        "data.max_bad_fraction",
        "train.best_metric",
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
        if name not in free and not name.startswith(("evaluate.", "published", "base"))
    }


def save_final(loaded: LoadedModel, run: Path) -> str | None:
    """Write the tuned model, adapters merged, as the run's folder `final`.

    Adapters also stand by themselves in a folder `adapter` beside it, for peft.

    Returns:
        What a reader of the folders must know, if anything.

    Raises:
        RunError: it cannot be written.
    """
    try:
        note = save_adapter(loaded.model, run / "adapter")
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RunError(
            f"cannot write {run / 'adapter'}: {reason}; free space, run again"
        ) from error
    write_final(run)
    return note
