"""Step, log, evaluate, save, stop: the one loop of every run."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from foveal.data.forward_inputs import Batch
from foveal.data.loader import StepLoader
from foveal.errors import UserError
from foveal.machine import forget_peak
from foveal.train.audit import StepAudit
from foveal.train.checkpoint import Progress, prune, save_checkpoint
from foveal.train.learner import Learner
from foveal.train.objective import ANSWERS, Objective
from foveal.train.optim import rate_scale, set_rate
from foveal.train.records.incidents import Incidents
from foveal.train.records.log import RunLog
from foveal.train.step import train_step
from foveal.train.stop import StopRequest, asked_by_any


@dataclass(frozen=True)
class Stopped:
    """Why the loop ended before its last step."""

    signal: int
    step: int


@dataclass(frozen=True)
class EndedEarly:
    """Why the loop had nothing more to gain before its last step."""

    step: int
    reason: str


@dataclass(frozen=True)
class LoopHooks:
    """What the loop calls but does not know."""

    progress: Callable[[int], Progress]
    """Steps taken -> what a checkpoint must say."""

    evaluate: Callable[[int], object]
    """Steps taken -> scores written."""

    audit: StepAudit
    """Called with the gradients of a step in place, before they are used, until it has seen all."""

    best: Callable[[], Path | None]
    """The checkpoint that is kept however old it is."""

    stalled: Callable[[int], str]
    """Steps taken, and evaluated -> why no more are worth taking; empty: they are."""

    objective: Objective = ANSWERS
    """What is made small."""


def train(
    learner: Learner,
    optimizer: torch.optim.Optimizer,
    loader: StepLoader,
    run: Path,
    first_step: int,
    total_steps: int,
    log: RunLog | None,
    incidents: Incidents,
    hooks: LoopHooks,
    request: StopRequest,
) -> Stopped | EndedEarly | None:
    """Take the steps from `first_step` on; returns why it stopped early, if it did.

    Args:
        learner: of the run.
        optimizer: of its learning weights.
        loader: this rank's rows.
        run: folder of the run.
        first_step: steps already taken.
        total_steps: steps of the whole run.
        log: of the main process.
        incidents: of the run so far.
        hooks: see there.
        request: to stop, if there is one.

    Raises:
        RunError: too much went wrong, see `Incidents`, or a checkpoint cannot be written. The
            steps up to then are saved.
    """
    engine, loss, settings = learner.engine, learner.loss, learner.settings
    every = settings.evaluate_every_steps
    taken = saved = first_step
    folder = run / "checkpoints"

    def save() -> None:
        nonlocal saved
        saved = taken  # also where it fails: nobody tries again
        if log:
            log.flush()
        save_checkpoint(folder, hooks.progress(taken), learner.model, optimizer, engine)
        engine.by_main(lambda: prune(folder, settings.keep_checkpoints, hooks.best()))

    loss.train()
    work_to_do = loader.steps(first_step, total_steps)
    try:
        for work in work_to_do:
            # Here and not behind the step: a run that was killed in between does it now.
            if every and work.step and work.step % every == 0:
                if saved < taken:
                    save()  # an evaluation may find what no step has: nothing is lost by it
                hooks.evaluate(work.step)
                if stopping := asked_by_any(engine, request):
                    return Stopped(stopping, taken)
                # The main process has written the scores: others may not see them yet.
                reason = engine.gather([hooks.stalled(taken) if engine.is_main else ""])[0]
                if reason:
                    return EndedEarly(taken, reason)
                loss.train()
            started = time.perf_counter()
            forget_peak()
            # Every random choice of a step follows from its number, so none need be saved.
            torch.manual_seed(_mix(settings.seed, work.step, engine.rank))
            rate = set_rate(optimizer, rate_scale(work.step, total_steps, settings))
            audit = hooks.audit if hooks.audit.pending else None
            how = settings.gradient_clip, audit, hooks.audit.explain, hooks.objective
            # One process alone may not reach its images.
            rows: list[Batch] = engine.alike(partial(list, work.batches))
            seen = train_step(engine, loss, optimizer, rows, *how)
            taken = work.step + 1
            if log:
                log.write(taken, seen, rate, time.perf_counter() - started)
            incidents.record(taken, seen)
            incidents.check(taken, loader.examples_until(taken), loader.examples_in_a_pass)
            last, stopping = taken == total_steps, asked_by_any(engine, request)
            if last or stopping or taken % settings.save_every_steps == 0:
                save()
            if stopping and not last:
                return Stopped(stopping, taken)
    except UserError:  # every process knows it alike
        if saved < taken:
            save()
        raise
    finally:
        work_to_do.close()
    return None


def _mix(seed: int, step: int, rank: int) -> int:
    return (seed * 1_000_003 + step) * 65_537 + rank
