"""A step -> does all that should learn get a gradient, and where are its numbers not finite?"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from foveal.adapt.strategy import Assignment
from foveal.data.batch import build_batch
from foveal.data.dataset import Dataset
from foveal.data.forward_inputs import Batch
from foveal.data.row_planning.groups import Group, Row
from foveal.errors import RunError
from foveal.models.family import PARTS, LoadedModel
from foveal.models.finite import BROKEN_WEIGHTS, explain_not_finite, find_not_finite
from foveal.train.engines.one_process import Engine
from foveal.train.objective import ANSWERS, Objective

SHARED_TOLERANCE = 1e-4
"""Largest relative difference of a shared row from its separate samples, float32."""

VANISHING = ("k_proj.bias",)
"""Weights whose gradient is zero by arithmetic: softmax ignores what all keys have in common."""


class StepAudit:
    """Audits the first step, the first one with images, and each that is not finite."""

    def __init__(
        self,
        engine: Engine,
        loaded: LoadedModel,
        assignments: Sequence[Assignment],
        expects_images: bool,
    ) -> None:
        self.engine = engine
        self.loaded = loaded
        self.assignments = assignments
        self.expects_images = expects_images
        self.pending = True

    def __call__(self, saw_images: bool) -> None:
        """Check the gradients of a step; see `audit_gradients`."""
        model = self.loaded.model
        audit_gradients(model, self.assignments, saw_images, self.engine.has_gradient)
        self.pending = self.expects_images and not saw_images

    def explain(self, rows: Sequence[Batch]) -> str:
        """Say which layer's numbers are the first that are not finite; all processes ask alike.

        The rows are read once more without gradients. Where all that they give is finite, the
        gradients that stand are looked at: those nearest to the loss were the first to be spoilt.

        Args:
            rows: this process's, of the step that was taken, whose gradients are not dropped yet.
        """
        engine, loaded = self.engine, self.loaded
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


def audit_gradients(
    model: nn.Module,
    assignments: Sequence[Assignment],
    saw_images: bool,
    has_gradient: Callable[[nn.Parameter], bool] | None = None,
) -> None:
    """Check after the first backward pass that every learning weight has a gradient.

    An adapter's first matrix gets none while its second one is still zero, and towers get none
    from text alone; both are known and passed over.

    Raises:
        RunError: some weight learns nothing; the message names it.
    """
    parameters = dict(model.named_parameters())
    found = has_gradient or (lambda one: one.grad is not None and bool(one.grad.any()))
    silent = []
    for one in assignments:
        if not one.learn or one.name.endswith(VANISHING) or ".lora_A." in one.name:
            continue
        if not saw_images and not _reads_words(one):
            continue
        if not found(parameters[one.name]):
            silent.append(one.name)
    if silent:
        more = f" and {len(silent) - 3} more" if len(silent) > 3 else ""
        raise RunError(
            f"no gradient reaches {', '.join(silent[:3])}{more}: they would silently learn "
            "nothing; freeze them with a rule, or report this"
        )


def audit_targets(dataset: Dataset) -> None:
    """Check that every example has tokens to learn.

    Raises:
        RunError: an example has none; the message names it.
    """
    for place in dataset.without_targets():
        name = dataset.examples[place].id
        raise RunError(f"example {name} has no learnt token; give it an answer")


def audit_images(assignments: Sequence[Assignment], dataset: Dataset) -> None:
    """Check that weights before the text, where they alone learn, are shown an image.

    Raises:
        RunError: no example has one.
    """
    learning = [one for one in assignments if one.learn]
    if learning and not dataset.images and not any(map(_reads_words, learning)):
        raise RunError(
            f"only weights before the text learn, such as {learning[0].name}, and no example has "
            "a picture: nothing would be learnt; give pictures, or let `language.*` learn"
        )


def _reads_words(one: Assignment) -> bool:
    return one.part_name.startswith("language.")


def sum_weights(engine: Engine, model: nn.Module) -> list[float]:
    """Sum every learning weight and its squares, to see later whether any has moved."""
    sums = []
    for one in model.parameters():
        if one.requires_grad:
            whole = engine.whole_tensor(one.detach())
            squares = torch.linalg.vector_norm(whole, dtype=torch.float64)
            sums += [float(whole.sum(dtype=torch.float64)), float(squares)]
    return sums


def audit_sharing(
    engine: Engine,
    loss: nn.Module,
    row: Row,
    dataset: Dataset,
    loaded: LoadedModel,
    weighting: str,
    objective: Objective = ANSWERS,
    reference: NDArray[np.float32] | None = None,
) -> float:
    """Compare a group of a row against its separate samples: summed loss and gradient norm.

    The samples are read in the model's own way, with its own positions and masks.

    Leaves no gradient behind.

    Returns:
        The larger relative difference.

    Raises:
        RunError: they disagree, or are no numbers.
    """
    shared = Row(row.groups[:1])
    alone = [
        Row((Group((example,), int(dataset.sizes.tokens[example])),)) for example in shared.examples
    ]
    build = partial(
        build_batch,
        dataset=dataset,
        processor=loaded.processor,
        weighting=weighting,
        reference=reference,
    )
    built = engine.alike(lambda: [build(row) for row in (shared, *alone)])
    ours, *theirs = (one.to(engine.device) for one in built)
    theirs = [replace(one, plainly=True) for one in theirs]
    loss.train(False)  # dropout would differ
    with engine.autocast():
        output = loss(ours)
    # What each answer weighs in the gradient hangs on the others of its row.
    leaf = output.detach().requires_grad_()
    total = objective.total(leaf, ours)
    (weights,) = torch.autograd.grad(total, leaf)
    output.backward(weights)
    together, norm = float(total.detach()), _take_norm(engine)
    outputs = []
    for batch, weight in zip(theirs, weights.flatten().expand(len(theirs)), strict=True):
        with engine.autocast():
            outputs.append(loss(batch))
        outputs[-1].backward(weight.reshape(outputs[-1].shape))
    made = torch.cat([one.detach().reshape(-1) for one in outputs])
    apart = float(objective.total(made if ours.pairs else made.sum(), ours))
    norm_apart = _take_norm(engine)
    if not math.isfinite(together + apart):
        with engine.autocast():
            reason = explain_not_finite(loaded, lambda: loss(ours))
        raise RunError(f"the loss is not finite before the first step: {reason}")
    loss.train(True)
    difference = max(
        abs(together - apart) / max(abs(apart), 1e-12),
        abs(norm - norm_apart) / max(norm_apart, 1e-12),
    )
    tolerance = SHARED_TOLERANCE if engine.precision == "float32" else 5e-2
    if difference > tolerance:
        raise RunError(
            f"a shared row of {len(shared.examples)} questions differs from its separate samples "
            f"by {difference:.1e} "
            f"(loss {together:.6f} and {apart:.6f}); "
            "run with data.share_images=false and report this"
        )
    return difference


def _take_norm(engine: Engine) -> float:
    """Measure the gradients that are there, and forget them."""
    norm = float(engine.gradient_norm())
    for one in engine.parameters:
        one.grad = None
    return norm


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
