"""Prompts and continuations -> how likely each is, all behind prefixes that are read once."""

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from foveal.models.family import LoadedModel
from foveal.models.generation.generator import check_fits
from foveal.models.generation.passes import (
    Growing,
    broken_nodes,
    logits_behind,
    not_finite,
    plant,
    run_pass,
)
from foveal.models.generation.prompt import Prompt, go_on
from foveal.models.generation.tree import Tree

LOGITS_AT_ONCE = 1024
"""Places that the head is applied to at once: bounds the memory, changes no result."""


@dataclass
class _Reading:
    """All that is read in one pass."""

    loaded: LoadedModel
    parts: list[Growing] = field(default_factory=list)
    trees: dict[Hashable, Tree] = field(default_factory=dict)
    ends: dict[Hashable, int] = field(default_factory=dict)
    """Prompt -> its last part."""

    def end_of(self, number: int, prompt: Prompt, is_long: bool) -> int:
        """Plan to read a prompt, once; returns its last part."""
        if (number, is_long) not in self.ends:
            start = prompt.prefix_entries
            stretches = prompt.stretches(self.loaded.processor, start)
            key = (prompt.prefix_key if start else number, is_long)
            self.parts += plant(self.trees.get(key), key, is_long, *stretches)
            self.trees[key] = self.parts[-1].tree
            self.ends[number, is_long] = len(self.parts) - 1
        return self.ends[number, is_long]


def score(
    loaded: LoadedModel, questions: Sequence[tuple[Prompt, Sequence[Sequence[int]]]]
) -> list[list[float]]:
    """Say how likely each continuation of each prompt is, in one forward pass.

    Args:
        loaded: model, in evaluation mode, and processor.
        questions: (prompt, token ids of its continuations).

    Returns:
        For each question, the sum of the log-probabilities of each continuation's tokens, nats.

    Raises:
        ValueError: an empty prompt or continuation, or more than the model can see.
        NotFiniteError: the model's numbers are not finite for one of the questions.
    """
    border = loaded.processor.long_context_tokens
    reading = _Reading(loaded)
    wanted: list[tuple[int, int | None, Sequence[int]]] = []
    asking: list[tuple[int, bool]] = []
    for number, (prompt, continuations) in enumerate(questions):
        for ids in continuations:
            check_fits(loaded, prompt, len(ids))
            is_long = border is not None and prompt.tokens + len(ids) > border
            end = reading.end_of(number, prompt, is_long)
            own = None
            if len(ids) > 1:  # the last token is predicted, never read
                ending = reading.parts[end]
                behind = ending.tree.add_node(ending.node)
                own = len(reading.parts)
                reading.parts.append(Growing(ending.tree, behind, go_on(ending.stretch, ids[:-1])))
            wanted.append((end, own, ids))
            asking.append((number, is_long))
    if not wanted:
        return [[] for _ in questions]
    hidden = run_pass(loaded, reading.parts)
    rows = torch.cat(
        [
            torch.cat([hidden[end][-1:], *([] if own is None else [hidden[own]])])
            for end, own, _ in wanted
        ]
    )
    found = list(_sums(loaded, rows, [ids for _, _, ids in wanted]))
    broken = broken_nodes(reading.parts, hidden)
    for (number, is_long), (end, own, ids), total in zip(asking, wanted, found, strict=True):
        line = reading.parts[end if own is None else own].node.line()
        if math.isnan(total) or not broken.isdisjoint(line):
            asked = questions[number][0].whole(loaded.processor)
            raise not_finite(loaded, asked.joined(go_on(asked, ids[:-1])), is_long, number)
    sums = iter(found)
    return [[next(sums) for _ in continuations] for _, continuations in questions]


def _sums(loaded: LoadedModel, rows: Tensor, targets: Sequence[Sequence[int]]) -> Iterator[float]:
    flat = torch.tensor([one for ids in targets for one in ids], device=rows.device)
    numbers = torch.cat(
        [
            logits_behind(loaded, some).log_softmax(-1).gather(1, chosen[:, None])[:, 0]
            for some, chosen in zip(
                rows.split(LOGITS_AT_ONCE), flat.split(LOGITS_AT_ONCE), strict=True
            )
        ]
    )
    for one in numbers.double().split([len(ids) for ids in targets]):
        yield float(one.sum())
