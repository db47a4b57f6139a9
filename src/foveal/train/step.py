"""The rows of a step -> one optimizer step: every loss added up, divided once."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from foveal.data.forward_inputs import Batch, LeftOut
from foveal.train.engines.one_process import Engine
from foveal.train.objective import ANSWERS, Objective, means


@dataclass(frozen=True)
class StepMeasures:
    """What one step saw, over all processes."""

    loss: float
    """Mean over the learnt tokens (or examples, or pairs), nats."""

    gradient_norm: float
    """Before clipping."""

    examples: int
    tokens: int
    """Tokens of the examples, shared ones counted once for each."""

    images: int
    """Distinct images encoded."""

    example_ids: tuple[str, ...]
    """Of this process; of all where the step was not applied."""

    left_out: tuple[LeftOut, ...] = ()
    """Examples that should have been in the step, of all processes."""

    measures: Mapping[str, float] = field(default_factory=dict)
    """What the objective says of the step besides, means over pairs."""

    applied: bool = False
    """Whether the weights moved: a step that is not finite is not applied."""

    cause: str = ""
    """Where the numbers of a step that was not applied stopped being finite."""


def backward_rows(
    engine: Engine,
    loss: nn.Module,
    batches: Iterable[Batch],
    objective: Objective = ANSWERS,
) -> StepMeasures:
    """Add up the gradients of a step's rows on this process.

    Loss and count are added over all rows and all processes and divided once, so the result does
    not depend on how the step was cut.
    """
    rows = list(batches)
    counted = [
        sum(row.count for row in rows),
        sum(len(row.example_ids) for row in rows),
        sum(row.tokens for row in rows),
        sum(len(row.image_features) for row in rows),
        sum(len(row.left_out) for row in rows),
    ]
    count, examples, tokens, images, missing = engine.add_up(counted)
    total = torch.zeros((), dtype=torch.float64)
    sums = [0.0] * len(objective.measures)
    for place, row in enumerate(rows):
        with engine.passes(last=place == len(rows) - 1):
            with engine.autocast():
                there = row.to(engine.device)
                output = loss(there)
                row_total = objective.total(output, there)
            engine.backward(row_total / (count or 1))
        total += row_total.detach().double().cpu()
        own = objective.measure(output.detach(), there)
        sums = [before + more for before, more in zip(sums, own, strict=True)]
    total_loss, *sums = engine.add_up([float(total), *sums])
    left_out = [one for row in rows for one in row.left_out]
    return StepMeasures(
        loss=total_loss / count if count else math.nan,  # nothing was left to learn from
        gradient_norm=math.nan,
        examples=int(examples),
        tokens=int(tokens),
        images=int(images),
        example_ids=tuple(name for row in rows for name in row.example_ids),
        left_out=tuple(engine.gather(left_out) if missing else ()),
        measures=means(objective.measures, sums, count),
    )


def train_step(
    engine: Engine,
    loss: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[Batch],
    gradient_clip: float,
    audit: Callable[[bool], None] | None = None,
    explain: Callable[[Sequence[Batch]], str] = lambda _: "",
    objective: Objective = ANSWERS,
) -> StepMeasures:
    """Take one optimizer step; a loss or gradient that is not finite leaves the weights alone.

    Args:
        engine: that prepared `loss`.
        loss: `RowLoss`, as the engine wrapped it.
        optimizer: of the learning weights.
        batches: this process's rows.
        gradient_clip: largest norm of all gradients together.
        audit: called while the gradients are in place, before they are used, with whether any
            process saw an image.
        explain: says of the rows, while the gradients are in place, what is not finite in them.
        objective: what is made small.
    """
    rows = list(batches)
    seen = backward_rows(engine, loss, rows, objective)
    if audit and seen.examples:
        audit(seen.images > 0)
    norm = float(engine.clip(optimizer, gradient_clip))
    finite = math.isfinite(norm) and math.isfinite(seen.loss)
    if finite:
        engine.optimizer_step(optimizer)
    else:
        # A step that was left without examples has nothing that could be explained.
        seen = replace(seen, cause=explain(rows) if seen.examples else "")
        engine.skip_step(optimizer)
        seen = replace(seen, example_ids=tuple(engine.gather(list(seen.example_ids))))
    return replace(seen, gradient_norm=norm, applied=finite)
