"""Hidden states and targets -> the summed loss of a row, or how likely each answer of it is."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from foveal.data.forward_inputs import Batch
from foveal.models.family import Family
from foveal.models.forward import blank_features, hidden_states

POSITIONS_PER_CHUNK = 1024
"""Positions whose logits exist at one time: 131 MB in float32 for 32,064 words."""


def target_losses(hidden: Tensor, head: nn.Module, targets: Tensor) -> list[Tensor]:
    """Take the cross-entropy of each target, in chunks.

    The head is applied to these positions alone, a chunk at a time; of more than one chunk the
    logits are made again in the backward pass instead of kept.

    Args:
        hidden: (targets, width), the states that predict.
        head: width -> vocab.
        targets: (targets,), int64.

    Returns:
        Of each chunk, (positions,), float32, nats; of no targets one chunk of none.
    """
    chunks = [tensor.split(POSITIONS_PER_CHUNK) for tensor in (hidden, targets)]
    if len(chunks[0]) == 1:
        return [_chunk_losses(head, hidden, targets)]
    return [
        checkpoint(_chunk_losses, head, *chunk, use_reentrant=False)
        for chunk in zip(*chunks, strict=True)
    ]


def _chunk_losses(head: nn.Module, hidden: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(head(hidden).float(), targets, reduction="none")


def sum_by_answer(losses: Tensor, lengths: Sequence[int]) -> Tensor:
    """Sum what belongs to each answer, (answers,); in one order on any device.

    Args:
        losses: (targets,), answer behind answer.
        lengths: targets of each answer.
    """
    if not lengths:
        return losses  # of nothing, and yet a part of the graph that other processes wait for
    return torch.stack([own.sum() for own in losses.split(list(lengths))])


def answer_loss(hidden: Tensor, head: nn.Module, targets: Tensor, weights: Tensor) -> Tensor:
    """Sum the weighted cross-entropy of the tokens that are to be learnt.

    Args:
        hidden: (targets, width), the states that predict.
        head: width -> vocab.
        targets: (targets,), int64.
        weights: (targets,), float32.

    Returns:
        (), float32, nats.

    Raises:
        ValueError: the three do not belong together.
    """
    if not len(hidden) == len(targets) == len(weights):
        raise ValueError(f"{len(hidden)} states, {len(targets)} targets, {len(weights)} weights")
    total = torch.zeros((), dtype=torch.float32, device=hidden.device)
    losses = target_losses(hidden, head, targets)
    for some, own in zip(losses, weights.split([len(one) for one in losses]), strict=True):
        total = total + (some * own).sum()
    return total


def _differentiate(module: nn.Module, inputs: Any, output: Tensor) -> None:
    """Let the decoder's first layer have a gradient to hand back, whatever its row holds.

    Under adapters words alone ask for none and images do, and a layer that hands none back shares
    its own gradients later than one that does: processes would wait for each other for ever.
    """
    if torch.is_grad_enabled() and not output.requires_grad:
        output.requires_grad_()


class RowLoss(nn.Module):
    """A model with the training loss on top: what engines wrap, and what a step calls."""

    def __init__(
        self,
        model: Any,
        family: Family,
        blank: Mapping[str, Tensor] | None = None,
        most_of_all: Callable[[int], int] | None = None,
    ) -> None:
        """Wrap a model.

        Args:
            model: of transformers, bare.
            family: of the model.
            blank: an image that rows without images let the tower see, for nothing: processes that
                share gradients wait for each other's, weight by weight. None: they do not.
            most_of_all: of a number, finds the largest that any process has; for processes that
                gather a block's weights together each time it runs, where a row may run it more
                often than another does. None: they need not agree.
        """
        super().__init__()
        self.model = model
        self.family = family
        self.blank = blank
        self.most_of_all = most_of_all
        if blank is not None:
            model.get_input_embeddings().register_forward_hook(_differentiate)

    def forward(self, batch: Batch) -> Tensor:
        """Run one row.

        Returns:
            Its summed loss, (), float32, to be divided by the weights of the whole step; where
            answers are compared, the log-probability of each, (answers,), float32, nats.
        """
        if self.most_of_all is not None:
            batch = batch.with_idle_reads(self.most_of_all(batch.reads) - batch.reads)
        extra: Tensor | float = 0.0
        if self.blank is not None and not batch.pixels:
            # First, as images are: where processes gather a block's weights together, all of them
            # must come to the blocks in one order.
            blank = {name: one.to(batch.input_ids.device) for name, one in self.blank.items()}
            extra = blank_features(self.family, self.model, blank)
        plainly = batch.plainly or self.family.route == "plain"
        hidden = hidden_states(
            self.model,
            self.family,
            batch,
            groups=batch.groups,
            plainly=plainly,
            answer_starts=batch.answer_starts if plainly else (),
        )
        head = self.family.head(self.model)
        predicting = hidden[batch.predictors]
        if batch.pairs is not None:
            losses = target_losses(predicting, head, batch.targets)
            return extra - sum_by_answer(torch.cat(losses), batch.pairs.lengths)
        return answer_loss(predicting, head, batch.targets, batch.weights) + extra
