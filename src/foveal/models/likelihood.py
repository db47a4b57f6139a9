"""Hidden states and targets -> how likely each target is, and each answer that they make up."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

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
