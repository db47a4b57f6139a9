"""A run's record and a base folder -> whether these are the weights that the run started from."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from foveal.adapt.quantize import skeleton
from foveal.deliver.export_source import RunSource
from foveal.errors import ModelError
from foveal.models.fingerprint import fingerprint_model


def check_same_base(source: RunSource) -> None:
    """Compare a base's weights with the fingerprint that the run wrote down of its own.

    Models of one family have the same names and shapes, so nothing else tells them apart.

    Raises:
        ModelError: they are others.
    """
    recorded = source.progress.model_fingerprint
    as_loaded: Any = SimpleNamespace(named_parameters=lambda: _weights_as_loaded(source))
    if recorded and fingerprint_model(as_loaded) != recorded:
        raise ModelError(
            f"{source.base} is not the model that this run started from: names and shapes are the "
            "same, the weights are others; bring the right folder back"
        )


def _weights_as_loaded(source: RunSource) -> Iterator[tuple[str, Tensor]]:
    """Yield a base's weights one by one, as a run begins with them: float32, or packed."""
    packed = {f"{layer}.weight" for layer in source.four_bit_layers}
    together: dict[str, Tensor] = {}
    if source.puts_weights_together:  # only transformers knows how: the proof loads it too
        loaded = source.family.load_model(str(source.base), "sdpa", None, None)
        together = dict(loaded.named_parameters())
    for name, shaped in skeleton(str(source.base)).named_parameters():
        if name in packed:
            yield name, torch.empty((shaped.numel() + 1) // 2, 1, dtype=torch.uint8, device="meta")
        elif name in source.base_tensors:
            yield name, source.base_tensors[name].read().float()
        elif name in together:
            yield name, together[name]
