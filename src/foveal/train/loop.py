"""Step, log, evaluate, save, stop: the one loop of every run."""

import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch
from torch import nn

from foveal.config import TrainSettings
from foveal.data.loader import StepLoader
from foveal.errors import RunError
from foveal.train.audit import GradientAudit
from foveal.train.checkpoint import Progress, save_checkpoint
from foveal.train.engine import Engine
from foveal.train.log import RunLog
from foveal.train.optim import rate_scale, set_rate
from foveal.train.step import train_step


@dataclass(frozen=True)
class Stopped:
    """Why the loop ended before its last step."""

    signal: int
    step: int


class StopRequest:
    """Set by the first SIGINT or SIGTERM; the second one leaves at once."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Remember the signal, and give the next one back its usual effect."""
        self.signal = number
        signal.signal(
            number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        )


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Turn SIGINT and SIGTERM into a request that the loop answers after its step."""
    request = StopRequest()
    former = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


@dataclass(frozen=True)
class LoopHooks:
    """What the loop calls but does not know."""

    progress: Callable[[int], Progress]
    """Steps taken -> what a checkpoint must say."""

    evaluate: Callable[[int], None]
    """Steps taken -> scores written."""

    audit: GradientAudit
    """Called with the gradients of a step in place, before they are used, until it has seen all."""


def train(
    engine: Engine,
    model: nn.Module,
    loss: nn.Module,
    optimizer: torch.optim.Optimizer,
    loader: StepLoader,
    settings: TrainSettings,
    run: Path,
    first_step: int,
    total_steps: int,
    log: RunLog | None,
    hooks: LoopHooks,
) -> Stopped | None:
    """Take the steps from `first_step` on; returns why it stopped early, if it did.

    Args:
        engine: that prepared `loss`.
        model: the bare model, for checkpoints.
        loss: `RowLoss`, as the engine wrapped it.
        optimizer: of the learning weights.
        loader: this rank's rows.
        settings: of the recipe.
        run: folder of the run.
        first_step: steps already taken.
        total_steps: steps of the whole run.
        log: of the main process.
        hooks: see there.

    Raises:
        RunError: too many steps in a row were not finite, or a checkpoint cannot be written.
    """
    bad_in_a_row = 0
    loss.train()
    with stop_requests() as request:
        for work in loader.steps(first_step, total_steps):
            started = time.perf_counter()
            # Every random choice of a step follows from its number, so none need be saved.
            torch.manual_seed(_mix(settings.seed, work.step, engine.rank))
            rate = set_rate(optimizer, rate_scale(work.step, total_steps, settings))
            audit = hooks.audit if hooks.audit.pending else None
            seen = train_step(engine, loss, optimizer, work.batches, settings.gradient_clip, audit)
            taken = work.step + 1
            if log:
                log.write(taken, seen, rate, time.perf_counter() - started)
            bad_in_a_row = 0 if seen.applied else bad_in_a_row + 1
            if not seen.applied:
                _record_bad_step(run, engine, taken, seen.loss, seen.example_ids)
            if bad_in_a_row > settings.max_bad_steps:
                raise RunError(
                    f"step {taken}: loss or gradient was not finite {bad_in_a_row} times in a row; "
                    "lower train.learning_rate or use precision=float32 (see incidents.jsonl)"
                )
            last, stopping = taken == total_steps, _anyone_asked(engine, request)
            if last or stopping or taken % settings.save_every_steps == 0:
                if log:
                    log.flush()
                save_checkpoint(
                    run / "checkpoints",
                    hooks.progress(taken),
                    model,
                    optimizer,
                    settings.keep_checkpoints,
                    write=engine.is_main,
                )
                engine.wait()
            if stopping and not last:
                return Stopped(stopping, taken)
            every = settings.evaluate_every_steps
            if every and taken % every == 0 and not last:
                hooks.evaluate(taken)
                loss.train()
    return None


def _anyone_asked(engine: Engine, request: StopRequest) -> int:
    """Agree over all processes: a signal may reach one of them a step earlier."""
    numbers = engine.add_up([float(request.signal == n) for n in (signal.SIGINT, signal.SIGTERM)])
    if numbers[0]:
        return int(signal.SIGINT)
    return int(signal.SIGTERM) if numbers[1] else 0


def _mix(seed: int, step: int, rank: int) -> int:
    return (seed * 1_000_003 + step) * 65_537 + rank


def _record_bad_step(
    run: Path, engine: Engine, step: int, loss: float, example_ids: tuple[str, ...]
) -> None:
    if engine.is_main:
        line = {"step": step, "what": "not finite", "loss": str(loss), "examples": example_ids}
        with (run / "incidents.jsonl").open("a") as lines:
            lines.write(json.dumps(line) + "\n")
