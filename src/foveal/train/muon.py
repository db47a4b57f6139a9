"""Muon for the matrices of hidden layers, AdamW for all other weights, as one optimizer."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from pytorch_optimizer import Muon
from pytorch_optimizer.optimizer.utils.matrix import zero_power_via_newton_schulz_5
from torch import Tensor


class Float32Muon(Muon):
    """Muon that works in float32: a processor multiplies bf16 matrices twenty times slower.

    Its count of steps stands beside each weight's other state, where a checkpoint looks for it.
    """

    @staticmethod
    def _orthogonalize(group: dict[str, Any], updates: Iterable[Tensor]) -> list[Tensor]:
        return [
            zero_power_via_newton_schulz_5(
                one, group["ns_steps"], weights=group["ns_coeffs"], dtype=torch.float32
            )
            for one in updates
        ]

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step."""
        for group in self.param_groups:
            held = [self.state[one] for one in group["params"] if one in self.state]
            if held:
                group["step"] = int(held[0]["step"])
        value: float | None = super().step(closure)
        for group in self.param_groups:
            for one in group["params"]:
                if one in self.state:
                    self.state[one]["step"] = torch.tensor(float(group["step"]))
        return value


def build_muon(
    groups: Sequence[Mapping[str, Any]], betas: tuple[float, float], epsilon: float
) -> Float32Muon:
    """Give each group Muon or AdamW, by its entry `hidden`; one learning rate suits both.

    Source: Jordan et al., Muon (2024), whose embeddings and head learn with AdamW too; Liu et al.,
    Muon is scalable for LLM training (arXiv 2502.16982), whose factor makes the updates as large as
    AdamW's.
    """
    muon = {"use_muon": True, "use_adjusted_lr": True}
    adamw = {"use_muon": False, "betas": betas, "eps": epsilon}
    return Float32Muon([{**group, **(muon if group["hidden"] else adamw)} for group in groups])
