"""Hidden states and targets -> the summed loss and what it was summed over."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from foveal.data.batch import Batch
from foveal.models.family import Family
from foveal.models.forward import blank_features, hidden_states

POSITIONS_PER_CHUNK = 1024
"""Positions whose logits exist at one time: 131 MB in float32 for 32,064 words."""


def answer_loss(hidden: Tensor, head: nn.Module, targets: Tensor, weights: Tensor) -> Tensor:
    """Sum the weighted cross-entropy of the tokens that are to be learnt.

    The head is applied to these positions alone, a chunk at a time; of more than one chunk the
    logits are made again in the backward pass instead of kept.

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
    chunks = [tensor.split(POSITIONS_PER_CHUNK) for tensor in (hidden, targets, weights)]
    for chunk in zip(*chunks, strict=True):
        if len(chunks[0]) > 1:
            total = total + checkpoint(_chunk_loss, head, *chunk, use_reentrant=False)
        else:
            total = total + _chunk_loss(head, *chunk)
    return total


def _chunk_loss(head: nn.Module, hidden: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    losses = F.cross_entropy(head(hidden).float(), targets, reduction="none")
    return (losses * weights).sum()


def _differentiate(module: nn.Module, inputs: Any, output: Tensor) -> None:
    """Let the decoder's first layer have a gradient to hand back, whatever its row holds.

    Under adapters words alone ask for none and pictures do, and a layer that hands none back shares
    its own gradients later than one that does: processes would wait for each other for ever.
    """
    if torch.is_grad_enabled() and not output.requires_grad:
        output.requires_grad_()


class RowLoss(nn.Module):
    """A model with the training loss on top: what engines wrap, and what a step calls."""

    def __init__(
        self, model: Any, family: Family, blank: Mapping[str, Tensor] | None = None
    ) -> None:
        """Wrap a model.

        Args:
            model: of transformers, bare.
            family: of the model.
            blank: an image that rows without images let the tower see, for nothing: processes that
                share gradients wait for each other's, weight by weight. None: they do not.
        """
        super().__init__()
        self.model = model
        self.family = family
        self.blank = blank
        if blank is not None:
            model.get_input_embeddings().register_forward_hook(_differentiate)

    def forward(self, batch: Batch) -> Tensor:
        """Sum the loss of one row, (), float32; divide by the weights of the whole step."""
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
            answer_start=batch.answer_start if plainly else None,
        )
        head = self.family.head(self.model)
        total = answer_loss(hidden[batch.predictors], head, batch.targets, batch.weights)
        return total + extra
