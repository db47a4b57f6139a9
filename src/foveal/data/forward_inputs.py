"""What a model reads in one pass, and what is to be predicted there."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class GroupSpan:
    """Where one group stands in a row: a prefix, then its branches.

    A branch sees the prefix and itself, never a sibling; nothing sees another group.
    """

    start: int
    """First token of the prefix."""

    branch_starts: tuple[int, ...]
    """First token of each branch; empty: a single example, all of it prefix."""

    end: int
    """One past the last token of the group."""

    @property
    def prefix_end(self) -> int:
        """One past the last token of the prefix."""
        return self.branch_starts[0] if self.branch_starts else self.end

    @property
    def branches(self) -> tuple[tuple[int, int], ...]:
        """(start, end) of each branch."""
        return tuple(zip(self.branch_starts, (*self.branch_starts[1:], self.end), strict=False))


@dataclass(frozen=True)
class ForwardInputs:
    """What a model reads in one forward pass."""

    input_ids: Tensor
    """(1, length), int64."""

    positions: Tensor
    """(axes, 1, length), int64; where each token stands in its own example. Where a model treats
    long examples differently, a last axis says whether the token's example is one."""

    pixels: Mapping[str, Tensor]
    """Of each distinct image, as the model's tower takes them; empty: none."""

    image_features: tuple[int, ...]
    """Features of each distinct image."""

    image_indices: tuple[int, ...]
    """Which distinct image stands at each place for one, in the order of the text."""


@dataclass(frozen=True)
class LeftOut:
    """An example that is not in its row, since an image of it cannot be used."""

    example_id: str
    reason: str


@dataclass(frozen=True)
class Pairs:
    """Which answers of a row are compared; answers are counted in the order of its targets."""

    lengths: tuple[int, ...]
    """Targets of each answer."""

    chosen: Tensor
    """(pairs,), int64; the better answer of each pair."""

    rejected: Tensor
    """(pairs,), int64; the worse one."""

    reference: Tensor
    """(answers,), float32; log-probability of each answer before the run, nats; NaN: not known."""

    examples: tuple[int, ...]
    """Number of each answer in the data set."""


@dataclass(frozen=True)
class Batch(ForwardInputs):
    """One forward pass: several groups side by side in one row, no padding."""

    groups: tuple[GroupSpan, ...]

    predictors: Tensor
    """(targets,), int64; place in the row whose hidden state predicts the target."""

    targets: Tensor
    """(targets,), int64; token ids."""

    weights: Tensor
    """(targets,), float32; what each target counts for in the loss."""

    example_ids: tuple[str, ...]
    """Of what a step counts: of several answers to one prompt, once."""

    tokens: int
    """Tokens that the examples have, shared ones counted once for each."""

    left_out: tuple[LeftOut, ...] = ()
    pairs: "Pairs | None" = None
    """None: every answer is learnt for itself."""

    plainly: bool = False
    """Whether the model is to read it in its own way, see `models.forward`: of one example."""

    @property
    def count(self) -> float:
        """What the row's share of a loss is divided by: weights of targets, or pairs."""
        return float(self.weights.sum()) if self.pairs is None else float(len(self.pairs.chosen))

    @property
    def reads(self) -> int:
        """Times that a decoder runs which reads prefixes, and then what branches off them."""
        return sum(2 if group.branch_starts else 1 for group in self.groups)

    def with_idle_reads(self, count: int) -> "Batch":
        """Add tokens that stand alone and predict nothing, each of them read by itself."""
        length = self.input_ids.shape[1]
        idle = tuple(GroupSpan(at, (), at + 1) for at in range(length, length + count))
        behind = (0, 0) * (self.positions.dim() - 3) + (0, count)
        ids = torch.nn.functional.pad(self.input_ids, (0, count))
        positions = torch.nn.functional.pad(self.positions, behind)
        return replace(self, input_ids=ids, positions=positions, groups=self.groups + idle)

    @property
    def answer_starts(self) -> tuple[int | None, ...]:
        """Of each example of a row that shares nothing, where its answer begins; none: it has none.

        Counted from the example's own start.
        """
        predictors = self.predictors.tolist()
        starts = (
            [one for one in predictors if group.start <= one < group.end] for group in self.groups
        )
        return tuple(
            own[0] + 1 - group.start if own else None
            for own, group in zip(starts, self.groups, strict=True)
        )

    def to(self, device: torch.device) -> "Batch":
        """Copy to a device."""
        moved: Batch = _with_each(self, lambda tensor: tensor.to(device, non_blocking=True))
        return moved

    def pin_memory(self) -> "Batch":
        """Copy to memory that a GPU reads by itself; torch's loader looks for this name."""
        pinned: Batch = _with_each(self, Tensor.pin_memory)
        return pinned


def _with_each(part: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Change every tensor of a batch, or of a part of one."""
    if isinstance(part, Tensor):
        return change(part)
    if isinstance(part, Mapping):
        return {name: _with_each(one, change) for name, one in part.items()}
    if isinstance(part, Batch | Pairs):
        return replace(part, **_with_each(vars(part), change))
    return part
