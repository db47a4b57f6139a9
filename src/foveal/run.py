"""From a recipe: build the pieces, evaluate, train, evaluate again, report."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from safetensors import SafetensorError

from foveal.adapt.files import save_adapter
from foveal.adapt.strategy import Assignment, rules_of, strategy_table
from foveal.assemble import (
    check_attention,
    check_metrics,
    load_for_run,
    quiet_libraries,
)
from foveal.config import Recipe, save_recipe
from foveal.data.convert.unpack import unpacked
from foveal.data.dataset import Dataset, read_dataset
from foveal.data.lines import Examples
from foveal.data.loader import RowBatches, StepLoader
from foveal.data.overlap import describe_overlap
from foveal.data.remarks import check_lengths
from foveal.data.rows import Plan, Row
from foveal.deliver.export import why_no_final, write_final
from foveal.errors import ConfigError, RunError, UserError
from foveal.evaluate.evaluation import evaluate_into
from foveal.evaluate.kept import describe_question, set_aside_others
from foveal.evaluate.prediction import Scores
from foveal.libraries import LIBRARIES_LOG, REMARKS
from foveal.machine import describe_machine, free_memory, read_machine
from foveal.models.family import LoadedModel, most_tokens
from foveal.models.fingerprint import fingerprint_model, learns
from foveal.models.shared_rows import attention_of
from foveal.plan.epoch import make_plan
from foveal.plan.memory import CPU_SLACK
from foveal.plan.room import cheapest_that_fits, training_bytes
from foveal.plan.setup import engine_name
from foveal.report.report import write_report
from foveal.storage import FAILED_WRITES, write_json
from foveal.train.audit import (
    GradientAudit,
    audit_pictures,
    audit_sharing,
    audit_targets,
    sum_weights,
)
from foveal.train.best import best_checkpoint, explain_stall
from foveal.train.checkpoint import (
    Progress,
    check_same_run,
    checkpoints,
    load_checkpoint,
    prune,
    read_progress,
    resume_key,
)
from foveal.train.engines.choose import make_engine
from foveal.train.incidents import INCIDENTS, Incidents
from foveal.train.learner import Learner, make_learner
from foveal.train.log import RunLog
from foveal.train.loop import EndedEarly, LoopHooks, Stopped, train
from foveal.train.not_finite import explain_step
from foveal.train.optim import count_steps, warmup_steps
from foveal.train.preference import objective_of
from foveal.train.recompute import Recompute
from foveal.train.reference_answers import ReferenceKey, compare_with_reference, find_reference
from foveal.train.stop import StopRequest, asked_by_any, stop_requests
from foveal.train.trackers import Ending, Trackers, check_trackers
from foveal.train.whole_folder import drop_parts, make_folder, set_aside


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    run: Path
    stopped: Stopped | None
    before: Scores | None
    after: Scores | None
    report: Path | None
    steps: int = 0
    """Of the whole run."""

    has_learnt: bool = True
    """Whether any weight has moved."""


class TrainingRun:
    """One run of a recipe, from its folder's state to its report.

    Args:
        recipe: to run.
        console: where it speaks.
        fresh: whether to set aside what stands in its folder and begin anew.
        scored: told, in the main process, the name of each evaluation that is whole.
    """

    def __init__(
        self,
        recipe: Recipe,
        console: Console,
        fresh: bool = False,
        scored: Callable[[str], None] = lambda _: None,
    ) -> None:
        if not recipe.data.train_files:
            raise ConfigError("data.train is missing; give a JSONL file, data.train=...")
        quiet_libraries()
        check_metrics(recipe)
        check_attention(recipe)
        check_trackers(recipe)
        self.recipe = recipe
        self.engine = make_engine(recipe.engine, recipe.precision, recipe.sharding)
        self.console = console if self.engine.is_main else Console(quiet=True)
        self._anyones_console = console  # of the process that encodes for all others
        self.trackers: Trackers | None = None
        self._ended: Ending = "failed"
        self.run, self._fresh = recipe.run, fresh
        self._scored = scored
        if fresh and self.engine.is_main:
            set_aside(self.run)
        self.engine.wait()
        make_folder(self.run)
        if self.engine.is_main:
            REMARKS.keep_in(self.run / LIBRARIES_LOG)
        torch.manual_seed(recipe.train.seed)
        data, weights = recipe.data, [file.weight for file in recipe.data.train_files]
        files = [self._unpack(file.path) for file in data.train_files]
        validation = [self._unpack(data.validation)] if data.validation else []
        self.loaded = load_for_run(recipe, self.run, self.engine, files, self._tell)
        self.model_fingerprint = fingerprint_model(self.loaded.model)
        self.objective = objective_of(recipe)
        self.reference: NDArray[np.float32] | None = None
        _, self.dataset = self._read(files, weights, self.recipe.learns_pairs)
        self.validation = self._read(validation) if validation else None
        self._check()

    def _tell(self, line: str) -> None:
        self.console.print(line, style="yellow", highlight=False, markup=False)

    def _unpack(self, path: Path) -> Path:
        """Find the JSONL file of what the recipe names; the main process unpacks, others wait."""
        if self.engine.is_main:
            unpacked(path, self.run / ".cache", self.recipe.data.columns)
        self.engine.wait()
        return unpacked(path, self.run / ".cache", self.recipe.data.columns)

    def _check(self) -> None:
        """Say what was noticed while reading, before anything is paid for.

        Raises:
            ConfigError: what would be learnt could not be written.
        """
        self._no_final = why_no_final(self.recipe, self.loaded.family)
        if self._no_final and not any(one.adapter for one in rules_of(self.recipe.strategy)):
            raise ConfigError(f"{self._no_final}; learn adapters, strategy=lora")
        if self._no_final:
            self._tell(f"{self._no_final}: the run ends with its adapter, not with a whole model")
        audit_targets(self.dataset)
        alone = self.loaded.family.route == "plain"
        if self.recipe.learns_pairs and self.engine.gathers_blocks and alone:
            # A row is as many passes as it has answers, and each process has rows of its own.
            raise ConfigError(
                "engine=fsdp2 cannot learn preferences with a model that reads each answer by "
                "itself; use engine=ddp or engine=zero2"
            )
        overlap = ""
        if self.validation:
            overlap = describe_overlap(self.dataset, self.validation[1])
        long = check_lengths(
            self.dataset.sizes.tokens,
            self.dataset.examples,
            most_tokens(self.loaded.model.config),
            self.recipe.train.tokens_per_pass,
            self.loaded.family.image_setting,
        )
        notes = filter(None, [self.loaded.note, long, overlap])
        remarks = [*self.dataset.remarks.lines(), *notes]
        for line in [*remarks, *(self.validation[1].remarks.lines() if self.validation else ())]:
            self._tell(line)

    def _read(
        self, files: list[Path], weights: Sequence[float] = (), pairs: bool = False
    ) -> tuple[Examples, Dataset]:
        data = self.recipe.data
        return read_dataset(
            files,
            self.loaded.processor,
            data.images,
            data.cache or self.run / ".cache",
            data.workers,
            weights,
            self._anyones_console,
            self._fresh,
            pairs,
        )

    def go(self) -> Outcome:
        """Train to the end, or to a request to stop.

        Raises:
            RunError: too much goes wrong, or a file cannot be written.
        """
        try:
            with stop_requests() as request:
                outcome = self._go(request)
            self._ended = "stopped" if outcome.stopped else "done"
            return outcome
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
        finally:
            if self.trackers:
                self.trackers.close(self._ended)

    def _go(self, request: StopRequest) -> Outcome:
        recipe, engine, loaded = self.recipe, self.engine, self.loaded
        plan = self._plan()
        learner = make_learner(
            engine, loaded, recipe.strategy, recipe.train, recipe.lora, self._recompute(plan)
        )
        assignments, total_steps = (
            learner.assignments,
            count_steps(plan.steps_per_epoch, recipe.train),
        )
        audit_pictures(assignments, self.dataset)
        checkpoint, stored = self._find_checkpoint()
        first_step = stored.step if stored else 0
        if first_step < total_steps:
            # No weight has been touched yet: neither by a step nor by the checkpoint.
            if self.recipe.learns_pairs and not self._find_reference(plan, total_steps, request):
                return Outcome(self.run, Stopped(request.signal or 0, first_step), None, None, None)
            self._check_sharing(plan)
        optimizer = learner.make_optimizer()
        if engine.is_main:
            drop_parts(self.run)
            save_recipe(recipe, self.run / "recipe.yaml")
            self._describe_machine()
            write_json(self.run / "data.json", self._describe_data())
            self._set_aside_others()
            self.trackers = self._open_trackers(plan, (first_step, total_steps))
        engine.wait()
        self._introduce(assignments, plan, total_steps, stored)
        unlearnt = sum_weights(engine, loaded.model)
        # Before the checkpoint is read: where the answers no longer stand, they are made again.
        before = self.evaluate("before", 0, request)
        if stopping := asked_by_any(engine, request):
            return Outcome(self.run, Stopped(stopping, first_step), None, None, None)
        if checkpoint and stored:
            load_checkpoint(checkpoint, loaded.model, optimizer, engine)
            engine.loss_scale = stored.loss_scale
        incidents = Incidents(
            self.run,
            first_step,
            recipe.train.max_bad_steps,
            recipe.data.max_bad_fraction,
            engine.is_main,
        )
        ended, steps = None, total_steps
        if first_step < total_steps:
            ended = self._learn(
                learner, optimizer, plan, (first_step, total_steps), incidents, request
            )
        if isinstance(ended, Stopped):
            return Outcome(self.run, ended, None, None, None)
        if ended:
            self._say(ended.reason)
            steps = ended.step
        has_learnt = sum_weights(engine, loaded.model) != unlearnt
        if not has_learnt:
            incidents.record_nothing_learnt(steps)
        after = self.evaluate("after", steps, request)
        if stopping := asked_by_any(engine, request):
            return Outcome(self.run, Stopped(stopping, steps), before, None, None)
        report = self._write_out()
        return Outcome(self.run, None, before, after, report, steps, has_learnt)

    def _learn(
        self,
        learner: Learner,
        optimizer: torch.optim.Optimizer,
        plan: Plan,
        steps: tuple[int, int],
        incidents: Incidents,
        request: StopRequest,
    ) -> Stopped | EndedEarly | None:
        """Take the steps of a run, from the first one on that is still to be taken."""
        recipe, engine, model = self.recipe, self.engine, self.loaded.model
        loader = self._loader(plan)
        hooks = LoopHooks(
            progress=self._progress,
            evaluate=lambda step: self.evaluate(f"step-{step}", step, request),
            audit=GradientAudit(engine, model, learner.assignments, bool(self.dataset.images)),
            best=self._best,
            stalled=self._stalled,
            explain=partial(explain_step, engine, self.loaded),
            objective=self.objective,
        )
        log = None
        if engine.is_main:
            log = RunLog(self.run, *steps, self.console, incidents.left_out, self.trackers)
        try:
            return train(
                engine,
                model,
                engine.module,
                optimizer,
                loader,
                recipe.train,
                self.run,
                *steps,
                log,
                incidents,
                hooks,
                request,
            )
        finally:
            if log:
                log.close()

    def _loader(self, plan: Plan) -> StepLoader:
        data, engine = self.recipe.data, self.engine
        weighting = self.recipe.train.loss_weighting
        batches = RowBatches(self.dataset, self.loaded.processor, weighting, self.reference)
        on_gpu = engine.device.type == "cuda"
        return StepLoader(plan, batches, engine.rank, data.workers, on_gpu, engine.largest)

    def _find_reference(self, plan: Plan, total_steps: int, request: StopRequest) -> bool:
        """See how likely the answers are before the run; false where it was asked to stop."""
        settings = self.recipe.preference
        if not settings.compares:
            return True
        self.reference = find_reference(
            self.run,
            ReferenceKey(self.model_fingerprint, self.dataset.fingerprint, self.recipe.precision),
            self.engine,
            self.loaded.model,
            self.engine.module,
            self._loader(plan),
            total_steps,
            self.console,
            request,
        )
        if self.reference is None:
            return False
        row = next(row for rank in plan.step(0).ranks for row in rank if row.groups)
        said = compare_with_reference(
            self.engine, self.engine.module, self._loader(plan).batches[row], settings
        )
        if said:
            self._tell(said)
        return True

    def _describe_machine(self) -> None:
        """Write down what the run goes on with; say so where images are now read otherwise."""
        file, backend = self.run / "machine.json", self.loaded.processor.image_backend
        before = read_machine(file).get("image_backend", backend)
        if before != backend:
            self._tell(
                f"The run began with images read by {before}, now it is {backend}, whose pixels "
                "differ a little; install or remove torchvision to go on as it began"
            )
        write_json(file, describe_machine() | {"image_backend": backend})

    def _describe_data(self) -> dict[str, dict[str, str | int]]:
        """Say what the examples were when the run began, for who reads of it later."""
        sets = {"training": self.dataset}
        if self.validation:
            sets["validation"] = self.validation[1]
        return {
            role: {
                "fingerprint": one.fingerprint,
                "examples": one.sizes.num_sets,
                "pictures": len(one.images),
            }
            for role, one in sets.items()
        }

    def _open_trackers(self, plan: Plan, steps: tuple[int, int]) -> Trackers:
        """Tell the trackers what is run, and on what."""
        numbers = {
            "steps": steps[1],
            "steps_a_pass": plan.steps_per_epoch,
            "examples": len(self.dataset.examples),
            "images": len(self.dataset.images),
            "processes": self.engine.world_size,
        }
        try:
            trackers = Trackers(self.recipe, steps, numbers, self._tell)
        except UserError:
            self.engine.abandon()  # the other processes do not know of it
            raise
        files = ("recipe.yaml", "data.json", "machine.json")
        trackers.attach([self.run / name for name in files])
        return trackers

    def _plan(self) -> Plan:
        long = self.loaded.processor.long_context_tokens
        route = self.loaded.family.route
        return make_plan(self.recipe, self.dataset, self.engine.world_size, long, route)

    def _recompute(self, plan: Plan) -> Recompute:
        """Decide what is made again in the backward pass instead of kept."""
        if self.recipe.train.recompute != "auto":
            return self.recipe.train.recompute
        config, device = self.loaded.model.config, self.engine.device
        bytes_with = partial(
            training_bytes,
            self.recipe,
            config,
            self.loaded.family,
            self.loaded.processor,
            plan,
            self.dataset,
            engine_name(self.recipe.engine, self.engine.world_size),
            attention_of(config),
            CPU_SLACK if device.type == "cpu" else 0.0,
            self.loaded.model.device.type == device.type,
        )
        # Of several processes the one with least room decides: blocks are alike in all of them.
        free = min(self.engine.gather([free_memory(device)]))
        try:
            return cheapest_that_fits(lambda one: bytes_with(recompute=one), free)
        except ConfigError as error:  # a model whose code looks at its numbers cannot be asked
            self._tell(f"train.recompute=auto: {error}")
            return "none" if device.type == "cpu" else "blocks"

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

    def _stalled(self, step: int) -> str:
        train = self.recipe.train
        if not (train.best_metric and train.stop_after_worse):
            return ""
        return explain_stall(self.run, train.best_metric, train.stop_after_worse, step)

    def _find_checkpoint(self) -> tuple[Path | None, Progress | None]:
        """Find where the run stands; it must be this run."""
        found = checkpoints(self.run / "checkpoints")
        if not found:
            return None, None
        stored = read_progress(found[-1])
        check_same_run(found[-1], stored, self._progress(stored.step))
        return found[-1], stored

    def _set_aside_others(self) -> None:
        """Keep scores that are of other validation data, or made otherwise, out of this run's."""
        if self.validation is None:
            return
        examples, dataset = self.validation
        settings = self.recipe.evaluate
        asked = describe_question(
            examples[: settings.max_examples], dataset, settings, self.recipe.precision
        )
        said = set_aside_others(self.run / "evaluation", asked)
        if said:
            self.console.print(said, style="yellow", highlight=False, markup=False)

    def _introduce(
        self,
        assignments: Sequence[Assignment],
        plan: Plan,
        total_steps: int,
        stored: Progress | None,
    ) -> None:
        first_step = stored.step if stored else 0
        if first_step == total_steps:
            self._say(f"Finished: all {total_steps:,} steps of {self.run} are taken")
            return
        if stored:
            self._say(f"Going on from {self.run / 'checkpoints'}, step {first_step}")
        if stored and stored.world_size != self.engine.world_size:
            self._say(
                f"It ran on {stored.world_size} processes, now on {self.engine.world_size}: each "
                "step still has the same examples, but its sums are rounded in another order"
            )
        self.console.print(strategy_table(assignments))
        self._say(
            f"{self.dataset.sizes.num_sets:,} examples, {len(self.dataset.images):,} pictures; "
            f"steps {first_step} to {total_steps}, {plan.steps_per_epoch:,} a pass; "
            f"{self.engine.device}, {self.recipe.precision}"
        )
        asked, given = self.recipe.train.warmup_steps, warmup_steps(total_steps, self.recipe.train)
        if given < asked:
            self._say(
                f"train.warmup_steps={asked} is more than half of the run: the rate climbs in the "
                f"first {given} of {total_steps} steps"
            )

    def _say(self, line: str) -> None:
        self.console.print(line, highlight=False, markup=False)

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
                    self.loaded,
                    self.recipe.train.loss_weighting,
                    self.objective,
                    self.reference,
                )
                return

    def evaluate(self, name: str, step: int, request: StopRequest) -> Scores | None:
        """Answer and score the validation examples; answers that still stand are kept.

        Returns:
            None without such examples, or where the run was asked to stop.
        """
        if self.validation is None:
            return None
        learnt = fingerprint_model(self.loaded.model, learns, self.engine.whole_tensor)
        with self.engine.whole():
            scores = evaluate_into(
                self.run / "evaluation" / name,
                self.loaded,
                *self.validation,
                self.recipe.evaluate,
                self.engine,
                self.console,
                f"{self.model_fingerprint} {learnt}",
                lambda: request.signal is not None,
            )
        if self.trackers and scores:
            self.trackers.scores(name, step, scores)
        if scores and self.engine.is_main:
            self._scored(name)
        return scores

    def _write_out(self) -> Path | None:
        """Write the tuned model and the report; returns where the report is."""
        self.engine.release()
        report = None
        if self.engine.is_main:
            if self.recipe.train.best_metric:
                prune(self.run / "checkpoints", self.recipe.train.keep_checkpoints, self._best())
            note = save_final(self.loaded, self.run, whole=not self._no_final)
            if note:
                self._say(note)
            report = write_report(self.run)
        if self.trackers:
            scores = sorted((self.run / "evaluation").glob("*/scores.json"))
            self.trackers.attach([*filter(None, [report]), self.run / INCIDENTS, *scores])
        self.engine.wait()
        return report


def save_final(loaded: LoadedModel, run: Path, whole: bool = True) -> str | None:
    """Write the tuned model, adapters merged, as the run's folder `final`.

    Adapters also stand by themselves in a folder `adapter` beside it, for peft.

    Args:
        loaded: what was tuned.
        run: its folder.
        whole: whether a whole model can be written.

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
    if whole:
        write_final(run)
    return note
