"""The rows of a run before its first step -> how likely each answer was then, kept in one file."""

import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from foveal.adapt.adapters import without_adapters
from foveal.config import PreferenceSettings
from foveal.data.forward_inputs import Batch
from foveal.data.loader import StepLoader
from foveal.data.parallel import counting
from foveal.data.rows import RowPlanner
from foveal.storage import written_whole
from foveal.train.checkpoint import save_tensors
from foveal.train.engines.one_process import Engine
from foveal.train.learner import Learner
from foveal.train.objective import pair_losses
from foveal.train.stop import StoppedError, StopRequest

REFERENCE = "reference.safetensors"
VALUES = "log_probabilities"

SAVE_EVERY_SECONDS = 60.0

SAME_LOSS = {"float32": 1e-4}
LOOSELY_SAME_LOSS = 5e-2
"""Most that a pair's loss may be away from that of untouched weights, nats; number formats of 16
bits read a row a little differently in each company."""


@dataclass(frozen=True)
class ReferenceKey:
    """What the numbers hang on; others are not those of this run."""

    weights: str
    """Fingerprint of the model before it learnt."""

    data: str
    """Fingerprint of the examples."""

    precision: str


def read_reference(path: Path, key: ReferenceKey, count: int) -> NDArray[np.float32]:
    """Read what is known of `count` answers; NaN: nothing yet, or of another run's."""
    try:
        with safe_open(path, "pt") as file:
            if file.metadata() == asdict(key):
                known: NDArray[np.float32] = file.get_tensor(VALUES).numpy()
                return known
    except (OSError, SafetensorError):
        pass  # absent, or not from here: it is made again
    return np.full(count, np.nan, np.float32)


def write_reference(path: Path, key: ReferenceKey, known: NDArray[np.float32]) -> None:
    """Write the file whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    with written_whole(path) as beside:
        save_tensors(beside, {VALUES: torch.from_numpy(known)}, asdict(key))


def missing_steps(planner: RowPlanner, total_steps: int, known: NDArray[np.float32]) -> list[int]:
    """List the steps whose rows hold an answer of which nothing is known, nor from one before."""
    covered, needed = ~np.isnan(known), []
    for step in range(total_steps):
        if covered.all():
            break
        examples = planner.examples(step)
        if not covered[examples].all():
            needed.append(step)
            covered[examples] = True
    return needed


def find_reference(
    run: Path,
    key: ReferenceKey,
    learner: Learner,
    loader: StepLoader,
    steps: range,
    console: Console,
    request: StopRequest,
) -> NDArray[np.float32]:
    """Say how likely the model that a run begins from finds each answer of its steps.

    Read in the rows that the run itself reads, each once; what was known when a run was killed is
    not worked out again.

    Args:
        run: folder that holds the file.
        key: of model and data.
        learner: as it was before the first step; adapters are left aside.
        loader: this rank's rows.
        steps: that are still to be taken; the last one is the run's.
        console: to show progress on.
        request: to stop, if there is one.

    Returns:
        (examples,), nats; NaN for what the run never shows.

    Raises:
        StoppedError: the run was asked to stop; what is known is saved.
    """
    engine, loss = learner.engine, learner.loss
    path = run / REFERENCE
    count = len(loader.planner.sizes.tokens)
    (known,) = engine.gather([read_reference(path, key, count)] if engine.is_main else [])
    needed = missing_steps(loader.planner, steps.stop, known)
    saved = time.monotonic()

    def save(found: dict[int, float]) -> None:
        for place, value in engine.gather(list(found.items())):
            known[place] = value
        found.clear()
        engine.by_main(partial(write_reference, path, key, known))

    found: dict[int, float] = {}
    loss.eval()
    work_to_do = loader.some_steps(needed)
    try:
        with (
            torch.no_grad(),
            engine.reading(),
            without_adapters(learner.model),
            counting(console, "reading what is compared with", len(needed)) as done,
        ):
            for number in range(1, len(needed) + 1):
                rows: list[Batch] = engine.alike(partial(list, next(work_to_do).batches))
                for batch in rows:
                    found |= _read_row(engine, loss, batch)
                done(number)
                stopping = request.of_any(engine)
                is_due = engine.is_main and time.monotonic() - saved > SAVE_EVERY_SECONDS
                if stopping or engine.add_up([float(is_due)])[0]:
                    save(found)
                    saved = time.monotonic()
                if stopping:
                    raise StoppedError(stopping, steps.start)
    finally:
        work_to_do.close()
    if needed:
        save(found)
    engine.wait()
    return known


def _read_row(engine: Engine, loss: nn.Module, batch: Batch) -> dict[int, float]:
    assert batch.pairs is not None
    with engine.autocast():
        output: Tensor = loss(batch.to(engine.device))
    return dict(zip(batch.pairs.examples, output.float().cpu().tolist(), strict=True))


def compare_with_reference(
    learner: Learner, batch: Batch, settings: PreferenceSettings
) -> str | None:
    """See that weights which no step has touched are the reference, so that dpo's loss is log 2.

    Args:
        learner: as it was before the first step.
        batch: a row with pairs.
        settings: which loss.

    Returns:
        What a person should hear, where they are not.
    """
    engine, loss = learner.engine, learner.loss
    batch = batch.to(engine.device)
    pairs = batch.pairs
    assert pairs is not None
    loss.eval()
    with torch.no_grad(), engine.reading(), engine.autocast():
        output: Tensor = loss(batch)
    ours, expected = (
        pair_losses(one, pairs, settings) for one in (output.float(), pairs.reference)
    )
    difference = (ours - expected).abs()
    if not len(difference) or float(difference.max()) <= SAME_LOSS.get(
        engine.precision, LOOSELY_SAME_LOSS
    ):
        return None
    worst = int(difference.argmax())
    return (
        f"before the first step the loss of a pair is {float(ours[worst]):.4f}, where untouched "
        f"weights give {float(expected[worst]):.4f}: what answers are compared with is not the "
        f"model that begins; delete {REFERENCE} in the run folder to have it made again"
    )
