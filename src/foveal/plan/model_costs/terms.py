"""What a pass costs, as numbers that are linear in what is in its row (pure)."""

from collections.abc import Mapping
from dataclasses import dataclass

from foveal.plan.epoch import RowCounts
from foveal.plan.model_costs.weights import FULL_BYTES
from foveal.train.loss import POSITIONS_PER_CHUNK


@dataclass(frozen=True)
class Terms:
    """A number that is linear in what is in a row."""

    by: Mapping[str, float]
    """Name of a count of `RowCounts` -> what one more of it adds."""

    def of(self, row: RowCounts) -> float:
        """Work it out for a row."""
        return float(sum(each * getattr(row, name) for name, each in self.by.items()))


@dataclass(frozen=True)
class PartCosts:
    """What a part of the model costs in a pass; forward and backward together."""

    saved_bytes: Terms
    """Held from the forward pass to the backward pass, weights and their copies aside."""

    operations: Terms
    """A product of (m, k) and (k, n) is 2 m k n; attention aside."""

    attention_of_pair: float
    """Operations for each pair of tokens of which one looks at the other, in all layers."""

    forward_work_bytes: Terms
    """At most held in a layer beside what is kept, while it runs."""

    backward_work_bytes: Terms


@dataclass(frozen=True)
class PassCosts:
    """What a pass over a row costs."""

    vision: PartCosts
    """Tower and projector."""

    language: PartCosts
    head: PartCosts
    head_sides: tuple[int, int]
    """Width, and how many words the head tells apart."""

    pixels_of_crop: float
    """Numbers of a crop as the tower takes it."""

    def head_bytes(self, row: RowCounts) -> float:
        """Bytes that the head keeps; of more than one chunk its inputs, see `train.loss`."""
        saved = self.head.saved_bytes.of(row)
        if row.targets > POSITIONS_PER_CHUNK and saved:
            return float(FULL_BYTES * self.head_sides[0] * row.targets)
        return saved

    def logits_work_bytes(self, row: RowCounts) -> int:
        """Gradients of the logits beside what the head keeps, while the loss goes back."""
        if not self.head.saved_bytes.of(row):
            return 0
        return 2 * FULL_BYTES * min(row.targets, POSITIONS_PER_CHUNK) * self.head_sides[1]

    def saved_bytes(self, row: RowCounts) -> int:
        """All that a forward pass keeps."""
        saved = self.vision.saved_bytes.of(row) + self.language.saved_bytes.of(row)
        return int(saved + self.head_bytes(row))

    def weigh(self, row: RowCounts) -> int:
        """Bytes that hang on what is in a row, while its largest layer goes back."""
        work = max(part.backward_work_bytes.of(row) for part in (self.vision, self.language))
        return self.saved_bytes(row) + int(work)
