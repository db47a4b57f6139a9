"""Logits of many sequences -> the next token of each, by its own rule; its log-probability."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

COLDEST = 1e-5
"""Temperature below which the likeliest token is taken: logits divided by less are not finite."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn."""

    temperature: float = 0.0
    """0: always the likeliest."""

    top_p: float = 1.0
    """Smallest share of the probability that is drawn from."""

    top_k: int = 0
    """Most tokens that are drawn from; 0: all."""

    seed: int | None = None
    """Start of the draws; none: another one each time."""


@dataclass
class Drawer:
    """Draws the tokens of one sequence; what is drawn for others does not touch it."""

    sampling: Sampling
    device: torch.device
    warpers: LogitsProcessorList = field(init=False)
    generator: torch.Generator | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        how = self.sampling
        self.warpers = LogitsProcessorList()
        if how.temperature < COLDEST:
            return
        if how.temperature != 1:
            self.warpers.append(TemperatureLogitsWarper(float(how.temperature)))
        if how.top_k:
            self.warpers.append(TopKLogitsWarper(how.top_k))
        if how.top_p < 1:
            self.warpers.append(TopPLogitsWarper(float(how.top_p)))
        self.generator = torch.Generator(self.device)
        if how.seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(how.seed)

    def draw(self, logits: Tensor) -> int:
        """Draw from (vocab,) logits."""
        unused = torch.empty(1, 0, dtype=torch.long, device=logits.device)
        chances = self.warpers(unused, logits[None]).softmax(-1)
        return int(torch.multinomial(chances, 1, generator=self.generator))


def choose_tokens(logits: Tensor, drawers: Sequence[Drawer]) -> list[int]:
    """Choose the next token of each sequence.

    Args:
        logits: (sequences, vocab), float32.
        drawers: one a sequence.
    """
    likeliest: list[int] = logits.argmax(-1).tolist()
    return [
        token if drawer.generator is None else drawer.draw(row)
        for token, row, drawer in zip(likeliest, logits, drawers, strict=True)
    ]
