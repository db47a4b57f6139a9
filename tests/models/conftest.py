"""What the tests of models share: arithmetic in float64, whatever the modelling code casts to."""

import pytest
import torch


class InDouble:
    """Stands for `torch` in modelling code that casts to float32 by name."""

    float = float32 = torch.float64

    def __getattr__(self, name):
        return getattr(torch, name)


@pytest.fixture(scope="module")
def in_double():
    """Compute in float64 throughout: what differs then differs by more than rounding."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        for kind in ("qwen3_5", "qwen3_5_moe", "lfm2", "lfm3", "lfm3_vl"):
            patch.setattr(f"transformers.models.{kind}.modeling_{kind}.torch", InDouble())
        yield
