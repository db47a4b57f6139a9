"""A step whose loss or gradient is not finite -> where its numbers first were not, in words."""

from collections.abc import Sequence

import torch

from foveal.data.forward_inputs import Batch
from foveal.models.family import PARTS, LoadedModel
from foveal.models.finite import BROKEN_WEIGHTS, find_not_finite
from foveal.train.engines.one_process import Engine


def explain_step(engine: Engine, loaded: LoadedModel, rows: Sequence[Batch]) -> str:
    """Say which layer's numbers are the first that are not finite; all processes ask alike.

    The rows are read once more without gradients. Where all that they give is finite, the gradients
    that stand are looked at: those nearest to the loss were the first to be spoilt.

    Args:
        engine: that took the step, whose gradients are not dropped yet.
        loaded: bare model.
        rows: this process's of the step.
    """
    with engine.autocast():
        forward = find_not_finite(loaded, lambda: _read(engine, rows))
    if found := [one for one in engine.gather([forward]) if one]:
        # Of a weight that is cut, one process alone may hold what is no number.
        return min(found, key=lambda one: BROKEN_WEIGHTS not in one)
    spoilt = engine.gather(_spoilt_places(loaded))
    where = min(spoilt)[-1] if spoilt else "some weight"
    scale = engine.loss_scale
    why = f", with the loss multiplied by {scale['scale']:g}" if scale else ""
    return f"the gradient of {where} is not finite{why}; all layers' numbers are"


def _read(engine: Engine, rows: Sequence[Batch]) -> None:
    with torch.no_grad(), engine.reading():
        for place, row in enumerate(rows):
            with engine.passes(last=place == len(rows) - 1):
                engine.module(row.to(engine.device))


def _spoilt_places(loaded: LoadedModel) -> list[tuple[int, int, str]]:
    """List what holds gradients that are not finite, by how near it is to the loss.

    Within a block weights are registered in another order than they are run in, so of these the
    block is named.
    """
    blocks = {id(one) for one in loaded.family.blocks(loaded.model)}
    names = [name for name, one in loaded.model.named_modules() if id(one) in blocks]
    spoilt = []
    for place, (name, one) in enumerate(loaded.model.named_parameters()):
        if one.grad is None:
            continue
        own = one.grad.to_local() if hasattr(one.grad, "to_local") else one.grad
        if not own.isfinite().all():
            holder = next((block for block in names if name.startswith(f"{block}.")), name)
            part_name = loaded.family.part_name(holder)
            depth = PARTS.index(part_name.partition(".")[0])
            spoilt.append((-depth, -place, part_name))
    return spoilt
