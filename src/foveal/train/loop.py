"""Step, log, evaluate, save, stop: the one loop of every run."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch

from foveal.data.forward_inputs import Batch
from foveal.data.loader import StepLoader
from foveal.errors import UserError
from foveal.machine import forget_peak
from foveal.train.audit import StepAudit
from foveal.train.checkpoint import best_checkpoint, explain_stall, prune, save_checkpoint
from foveal.train.learner import Learner
from foveal.train.optim import rate_scale, set_rate
from foveal.train.records.log import RunLog
from foveal.train.step import train_step
from foveal.train.stop import StoppedError, StopRequest


@dataclass(frozen=True)
class EndedEarly:
    """Why the loop had nothing more to gain before its last step."""

    step: int
    reason: str


def train(
    learner: Learner,
    loader: StepLoader,
    log: RunLog,
    evaluate: Callable[[int], object],
    request: StopRequest,
) -> EndedEarly | None:
    """Take the steps of a run; returns why it ended early, if it did.

    Args:
        learner: of the run.
        loader: this rank's rows.
        log: of the run; says which steps are still to be taken.
        evaluate: steps taken -> scores written.
        request: to stop, if there is one.

    Raises:
        RunError: too much went wrong, see `RunLog.check`, or a checkpoint cannot be written. The
            steps up to then are saved.
        StoppedError: the run was asked to stop; they are saved too.
    """
    engine, loss, settings = learner.engine, learner.loss, learner.settings
    every, metric = settings.evaluate_every_steps, settings.best_metric
    run, steps = log.run, log.steps
    taken = saved = steps.start
    has_images = bool(loader.batches.dataset.images)
    audit = StepAudit(engine, learner.loaded, learner.assignments, has_images)

    def save() -> None:
        nonlocal saved
        saved = taken  # also where it fails: nobody tries again
        log.flush()
        now = replace(log.begun, step=taken, loss_scale=engine.loss_scale)
        folder = run / "checkpoints"
        save_checkpoint(folder, now, learner.model, learner.optimizer, engine)
        engine.by_main(
            lambda: prune(folder, settings.keep_checkpoints, best_checkpoint(run, metric))
        )

    loss.train()
    work_to_do = loader.some_steps(steps)
    try:
        for work in work_to_do:
            # Here and not behind the step: a run that was killed in between does it now.
            if every and work.step and work.step % every == 0:
                if saved < taken:
                    save()  # an evaluation may find what no step has: nothing is lost by it
                evaluate(work.step)
                request.heed(engine, taken)
                # The main process has written the scores: others may not see them yet.
                reason = partial(explain_stall, run, metric, settings.stop_after_worse, taken)
                if said := engine.gather([reason()] if engine.is_main else [])[0]:
                    return EndedEarly(taken, said)
                loss.train()
            started = time.perf_counter()
            forget_peak()
            # Every random choice of a step follows from its number, so none need be saved.
            torch.manual_seed(_mix(settings.seed, work.step, engine.rank))
            rate = set_rate(learner.optimizer, rate_scale(work.step, steps.stop, settings))
            # One process alone may not reach its images.
            rows: list[Batch] = engine.alike(partial(list, work.batches))
            seen = train_step(
                engine,
                loss,
                learner.optimizer,
                rows,
                settings.gradient_clip,
                audit if audit.pending else None,
                audit.explain,
                learner.objective,
            )
            taken = work.step + 1
            log.write(taken, seen, rate, time.perf_counter() - started)
            log.check(taken, loader.examples_until(taken), loader.examples_in_a_pass)
            last, stopping = taken == steps.stop, request.of_any(engine)
            if last or stopping or taken % settings.save_every_steps == 0:
                save()
            if stopping and not last:
                raise StoppedError(stopping, taken)
    except UserError:  # every process knows it alike
        if saved < taken:
            save()
        raise
    finally:
        work_to_do.close()
    return None


def _mix(seed: int, step: int, rank: int) -> int:
    return (seed * 1_000_003 + step) * 65_537 + rank
