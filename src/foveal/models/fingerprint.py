"""A model's weights -> a name that tells them from others."""

import hashlib
from collections.abc import Callable

from torch import Tensor, nn

NUMBERS_PER_WEIGHT = 64


def fingerprint_model(
    model: nn.Module,
    which: Callable[[nn.Parameter], bool] = lambda _: True,
    whole: Callable[[Tensor], Tensor] = lambda one: one,
) -> str:
    """Tell models apart by the names, shapes and some numbers of all their weights.

    Not by all numbers: a model learns in every weight, and billions take a minute to read.

    Args:
        model: bare.
        which: weights that count.
        whole: brings a weight together that is cut over processes.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, one in model.named_parameters():
        if not which(one):
            continue
        digest.update(f"{name} {tuple(one.shape)} {one.dtype}".encode())
        if one.is_floating_point():  # what is packed on the way in, devices round differently
            numbers = whole(one.detach()).flatten()
            # A copy: memory that NumPy has seen cannot be freed by who holds the weight.
            some = numbers[:: max(1, len(numbers) // NUMBERS_PER_WEIGHT)].clone()
            digest.update(some.float().cpu().numpy().tobytes())
    return digest.hexdigest()


def learns(weight: nn.Parameter) -> bool:
    """Tell whether a weight learns."""
    return weight.requires_grad
