"""What a pass costs + a row -> the operations in it that are of use to a result, by part (pure)."""

from dataclasses import dataclass

from foveal.plan.epoch import RowCounts
from foveal.plan.model_costs.terms import PassCosts


@dataclass(frozen=True)
class Operations:
    """What is multiplied and added that is of use to a result, by part: nothing twice."""

    tower: float
    projector: float
    decoder: float
    head: float
    decoder_attention: float
    """Part of the decoder's: scores and what is made of them."""

    @property
    def total(self) -> float:
        """Of all parts."""
        return self.tower + self.projector + self.decoder + self.head


def useful_operations(costs: PassCosts, row: RowCounts) -> Operations:
    """Count products part by part; of attention the pairs that see each other alone."""
    vision = costs.vision.operations.of(row)
    # What brings features to the decoder's width: nothing else hangs on an image's tokens.
    projector = costs.vision.operations.by["image_tokens"] * row.image_tokens
    attention = costs.language.attention_of_pair * row.pairs
    decoder = costs.language.operations.of(row) + attention
    head = costs.head.operations.of(row)
    found = vision - projector, projector, decoder, head, attention
    return Operations(*(float(round(one)) for one in found))  # they were solved for
