"""What a pass costs, as numbers that are linear in what is in its row (pure)."""

from dataclasses import dataclass, fields

from foveal.models.likelihood import POSITIONS_PER_CHUNK
from foveal.plan.epoch import RowCounts
from foveal.plan.model_costs.weights import FULL_BYTES


@dataclass(frozen=True)
class Terms:
    """A number that is linear in what is in a row, by what it hangs on."""

    one: float = 0.0
    tokens: float = 0.0
    token_squares: float = 0.0
    image_tokens: float = 0.0
    crops: float = 0.0
    crop_pairs: float = 0.0
    branch_tokens: float = 0.0
    branch_cells: float = 0.0
    branch_keys: float = 0.0
    prefix_squares: float = 0.0
    targets: float = 0.0

    def of(self, row: RowCounts) -> float:
        """Work it out for a row, or for several added up."""
        return (
            self.one
            + self.tokens * row.tokens
            + self.token_squares * row.tokens**2
            + self.image_tokens * row.image_tokens
            + self.crops * row.crops
            + self.crop_pairs * row.crop_pairs
            + self.branch_tokens * row.branch_tokens
            + self.branch_cells * row.branch_cells
            + self.branch_keys * row.branch_keys
            + self.prefix_squares * row.prefix_squares
            + self.targets * row.targets
        )


NONE = Terms()
SINGLE = {one.name: Terms(**{one.name: 1.0}) for one in fields(Terms)}
"""Terms by the one thing that they hang on."""
"""Name -> what counts that alone."""


@dataclass(frozen=True)
class PartCosts:
    """What a part of the model costs in a pass; forward and backward together."""

    kept_bytes: Terms = NONE
    """Held from the forward pass to the backward pass, weights and their copies aside."""

    operations: Terms = NONE
    """A product of (m, k) and (k, n) is 2 m k n; attention aside."""

    attention_of_pair: float = 0.0
    """Operations for each pair of tokens of which one looks at the other, in all layers."""

    forward_work_bytes: Terms = NONE
    """At most held in a layer beside what is kept, while it runs."""

    backward_work_bytes: Terms = NONE


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
        """Bytes that the head keeps; of more than one chunk its inputs, see `models.likelihood`."""
        kept = self.head.kept_bytes.of(row)
        if row.targets > POSITIONS_PER_CHUNK and kept:
            return float(FULL_BYTES * self.head_sides[0] * row.targets)
        return kept

    def logits_work_bytes(self, row: RowCounts) -> int:
        """Gradients of the logits beside what the head keeps, while the loss goes back."""
        if not self.head.kept_bytes.of(row):
            return 0
        return 2 * FULL_BYTES * min(row.targets, POSITIONS_PER_CHUNK) * self.head_sides[1]

    def kept_bytes(self, row: RowCounts) -> int:
        """All that a forward pass keeps."""
        kept = self.vision.kept_bytes.of(row) + self.language.kept_bytes.of(row)
        return int(kept + self.head_bytes(row))

    def weigh(self, row: RowCounts) -> int:
        """Bytes that hang on what is in a row, while its largest layer goes back."""
        work = max(part.backward_work_bytes.of(row) for part in (self.vision, self.language))
        return self.kept_bytes(row) + int(work)
