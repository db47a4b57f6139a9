"""From a recipe: build the pieces, evaluate, train, evaluate again, report."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from foveal.adapt.strategy import strategy_table
from foveal.beginning import (
    claim_folder,
    drop_parts,
    introduction,
    open_trackers,
    release_folder,
    write_machine,
)
from foveal.config import Recipe, save_recipe
from foveal.data.loader import RowBatches, StepLoader
from foveal.data.row_planning.groups import Row
from foveal.data.rows import RowPlanner
from foveal.deliver.model_folder import save_final
from foveal.errors import ConfigError, UserError
from foveal.evaluate.evaluation import evaluate_into
from foveal.evaluate.kept import describe_question, set_aside_others
from foveal.evaluate.prediction import Scores
from foveal.inputs import check_recipe, open_inputs, quiet_libraries
from foveal.libraries import LIBRARIES_LOG, REMARKS
from foveal.machine import kernels_in_one_order
from foveal.models.fingerprint import fingerprint_model, learns
from foveal.plan.auto_recompute import choose_recompute
from foveal.plan.epoch import make_row_planner
from foveal.report.report import write_report
from foveal.storage import write_json
from foveal.train.audit import audit_images, audit_sharing, sum_weights
from foveal.train.checkpoint import (
    Progress,
    best_checkpoint,
    check_same_run,
    checkpoints,
    load_checkpoint,
    prune,
    read_progress,
    resume_key,
)
from foveal.train.engines import make_engine
from foveal.train.learner import Learner, make_learner
from foveal.train.loop import EndedEarly, train
from foveal.train.objective import objective_of
from foveal.train.optim import count_steps
from foveal.train.records.log import INCIDENTS, RunLog, record_nothing_learnt
from foveal.train.records.tracker_clients import Ending
from foveal.train.records.trackers import Trackers, check_trackers
from foveal.train.reference_answers import ReferenceKey, compare_with_reference, find_reference
from foveal.train.stop import StoppedError, StopRequest, mendable_failure, stop_requests


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    run: Path
    stopped: StoppedError | None = None
    before: Scores | None = None
    after: Scores | None = None
    report: Path | None = None
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
        check_recipe(recipe)
        check_trackers(recipe)
        self.recipe = recipe
        self.engine = make_engine(recipe.engine, recipe.precision, recipe.sharding)
        self.console = console if self.engine.is_main else Console(quiet=True)
        self.trackers: Trackers | None = None
        self.run, self._scored = recipe.run, scored
        self._claim = claim_folder(self.run, fresh, self.engine)
        if self.engine.is_main:
            REMARKS.keep_in(self.run / LIBRARIES_LOG)
        torch.manual_seed(recipe.train.seed)
        self.inputs = open_inputs(recipe, self.engine, self._tell, console, fresh)
        self.loaded, self.dataset = self.inputs.loaded, self.inputs.dataset
        self.validation = self.inputs.validation
        self.reference: NDArray[np.float32] | None = None

    def _tell(self, line: str) -> None:
        self.console.print(line, style="yellow", highlight=False, markup=False)

    def go(self) -> Outcome:
        """Train to the end, or to a request to stop.

        Raises:
            RunError: too much goes wrong, or a file cannot be written.
        """
        ending: Ending = "failed"
        try:
            in_order = kernels_in_one_order(self.recipe.train.deterministic)
            with stop_requests() as request, in_order:
                outcome = self._go(request)
            ending = "done"
            return outcome
        except StoppedError as stopped:
            ending = "stopped"
            return Outcome(self.run, stopped.with_traceback(None))
        except UserError:
            raise  # every process knows it alike
        except Exception as error:
            self.engine.abort()
            if explained := mendable_failure(error, self.run):
                raise explained from error
            raise
        finally:
            if self.trackers:
                self.trackers.close(ending)
            release_folder(self._claim)

    def _go(self, request: StopRequest) -> Outcome:
        recipe, engine, loaded = self.recipe, self.engine, self.loaded
        planner = self._make_planner()
        recompute = choose_recompute(recipe, loaded, planner, self.dataset, engine, self._tell)
        learner = make_learner(
            engine,
            loaded,
            recipe.strategy,
            recipe.train,
            recipe.lora,
            recompute,
            objective=objective_of(recipe),
        )
        audit_images(learner.assignments, self.dataset)
        stored = self._find_progress()
        total_steps = count_steps(planner.steps_per_epoch, recipe.train)
        steps = range(stored.step if stored else 0, total_steps)
        if steps:
            # No weight has been touched yet: neither by a step nor by the checkpoint.
            if recipe.learns_pairs and recipe.preference.compares:
                self._find_reference(learner, planner, steps, request)
            self._check_sharing(learner, planner)
        optimizer = learner.optimizer  # from here on engines run the model in another way
        engine.by_main(lambda: self._write_down(planner, steps))
        if steps:
            self.console.print(strategy_table(learner.assignments))
        for line in introduction(recipe, engine, self.dataset, planner, steps, stored):
            self._say(line)
        unlearnt = sum_weights(engine, loaded.model)
        # Before the checkpoint is read: where the answers no longer stand, they are made again.
        before = self.evaluate("before", 0, request)
        request.heed(engine, steps.start)
        if stored:
            newest = checkpoints(self.run / "checkpoints")[-1]
            load_checkpoint(newest, loaded.model, optimizer, engine)
            engine.loss_scale = stored.loss_scale
        last = total_steps
        if steps and (ended := self._learn(learner, planner, steps, request)):
            self._say(ended.reason)
            last = ended.step
        has_learnt = sum_weights(engine, loaded.model) != unlearnt
        if not has_learnt:
            engine.by_main(lambda: record_nothing_learnt(self.run, last))
        after = self.evaluate("after", last, request)
        request.heed(engine, last)
        return Outcome(self.run, None, before, after, self._write_out(), last, has_learnt)

    def _write_down(self, planner: RowPlanner, steps: range) -> None:
        """Note what is run, and on what; tell the trackers of it."""
        drop_parts(self.run)
        save_recipe(self.recipe, self.run / "recipe.yaml")
        backend = self.loaded.processor.image_backend
        if said := write_machine(self.run / "machine.json", backend):
            self._tell(said)
        write_json(self.run / "data.json", self.inputs.describe())
        self._set_aside_others()
        world_size = self.engine.world_size
        self.trackers = open_trackers(
            self.recipe, self.dataset, planner, steps, world_size, self._tell
        )

    def _learn(
        self,
        learner: Learner,
        planner: RowPlanner,
        steps: range,
        request: StopRequest,
    ) -> EndedEarly | None:
        """Take the steps of a run that are still to be taken."""
        log = RunLog(
            self.run,
            self._progress(steps.start),
            steps.stop,
            self.recipe.train.max_bad_steps,
            self.recipe.data.max_bad_fraction,
            self.console if self.engine.is_main else None,
            self.trackers,
        )

        def evaluate(step: int) -> object:
            return self.evaluate(f"step-{step}", step, request)

        try:
            return train(learner, self._loader(planner), log, evaluate, request)
        finally:
            log.close()

    def _loader(self, planner: RowPlanner) -> StepLoader:
        data, engine = self.recipe.data, self.engine
        weighting = self.recipe.train.loss_weighting
        batches = RowBatches(self.dataset, self.loaded.processor, weighting, self.reference)
        on_gpu = engine.device.type == "cuda"
        return StepLoader(planner, batches, engine.rank, data.workers, on_gpu, engine.largest)

    def _find_reference(
        self, learner: Learner, planner: RowPlanner, steps: range, request: StopRequest
    ) -> None:
        """See how likely the answers are before the run."""
        key = ReferenceKey(
            self.inputs.model_fingerprint, self.dataset.fingerprint, self.recipe.precision
        )
        loader = self._loader(planner)
        self.reference = find_reference(
            self.run, key, learner, loader, steps, self.console, request
        )
        row = next(row for rank in planner.step(0).ranks for row in rank if row.groups)
        batch = self.engine.alike(lambda: self._loader(planner).batches[row])
        if said := compare_with_reference(learner, batch, self.recipe.preference):
            self._tell(said)

    def _make_planner(self) -> RowPlanner:
        family, processor = self.loaded.family, self.loaded.processor
        return make_row_planner(
            self.recipe, self.dataset, self.engine.world_size, family, processor
        )

    def _progress(self, step: int) -> Progress:
        return Progress(
            step,
            resume_key(self.recipe),
            self.dataset.fingerprint,
            self.engine.world_size,
            self.inputs.model_fingerprint,
            self.engine.loss_scale,
        )

    def _find_progress(self) -> Progress | None:
        """Find where the run stands; it must be this run."""
        found = checkpoints(self.run / "checkpoints")
        if not found:
            return None
        stored = read_progress(found[-1])
        check_same_run(found[-1], stored, self._progress(stored.step))
        return stored

    def _set_aside_others(self) -> None:
        """Keep scores that are of other validation data, or made otherwise, out of this run's."""
        if self.validation is None:
            return
        examples, dataset = self.validation
        settings = self.recipe.evaluate
        asked = describe_question(
            examples[: settings.max_examples], dataset, settings, self.recipe.precision
        )
        if said := set_aside_others(self.run / "evaluation", asked):
            self._tell(said)

    def _say(self, line: str) -> None:
        self.console.print(line, highlight=False, markup=False)

    def _check_sharing(self, learner: Learner, planner: RowPlanner) -> None:
        """Compare one shared row with its separate samples, once a start.

        The same row on every process: engines may need all of them for each pass.
        """
        groups = (group for rank in planner.step(0).ranks for row in rank for group in row.groups)
        shared = next((group for group in groups if len(group.examples) > 1), None)
        if shared:
            audit_sharing(
                self.engine,
                learner.loss,
                Row((shared,)),
                self.dataset,
                self.loaded,
                self.recipe.train.loss_weighting,
                learner.objective,
                self.reference,
            )

    def evaluate(self, name: str, step: int, request: StopRequest) -> Scores | None:
        """Answer and score the validation examples; answers that still stand are kept.

        Returns:
            None without such examples, or where the run was asked to stop.
        """
        if self.validation is None:
            return None
        learnt = fingerprint_model(self.loaded.model, learns, self.engine.whole_tensor)
        with self.engine.gathered_weights():
            scores = evaluate_into(
                self.run / "evaluation" / name,
                self.loaded,
                *self.validation,
                self.recipe.evaluate,
                self.engine,
                self.console,
                f"{self.inputs.model_fingerprint} {learnt}",
                lambda: request.signal is not None,
            )
        if self.trackers and scores:
            self.trackers.scores(step, scores)
        if scores and self.engine.is_main:
            self._scored(name)
        return scores

    def _write_out(self) -> Path | None:
        """Write the tuned model and the report; returns where the report is."""
        self.engine.release()
        return self.engine.by_main(self._write_results)

    def _write_results(self) -> Path:
        train = self.recipe.train
        if train.best_metric:
            best = best_checkpoint(self.run, train.best_metric)
            prune(self.run / "checkpoints", train.keep_checkpoints, best)
        if note := save_final(self.run):
            self._say(note)
        report = write_report(self.run)
        if self.trackers:
            scores = sorted((self.run / "evaluation").glob("*/scores.json"))
            self.trackers.attach([report, self.run / INCIDENTS, *scores])
        return report
