"""Positions -> cosines and sines, with short or long factors chosen for each example by itself.

The published code, and transformers after it, choose the factors for a whole batch by its largest
position, so that a sample's numbers change with its neighbours.
"""

import torch
from torch import Tensor, nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from foveal.models.phi3_vision.config import Phi3VisionConfig


class PerExampleRotaryEmbedding(nn.Module):
    """LongRoPE (arXiv 2402.13753) whose factors follow the length of each token's own example."""

    def __init__(self, config: Phi3VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.border = int(config.original_max_position_embeddings)
        kind = config.rope_parameters["rope_type"]
        self.has_long_factors = kind == "longrope"
        self.attention_scaling = 1.0
        # Not persistent: published files hold no frequencies. Made at the first call, since a
        # model made on the meta device has no numbers yet.
        self._frequencies: tuple[Tensor, Tensor] | None = None

    def _tables(self, device: torch.device) -> tuple[Tensor, Tensor]:
        if self._frequencies is None or self._frequencies[0].device != device:
            short, scaling = self._frequencies_for(self.border, device)
            long, _ = self._frequencies_for(self.border + 1, device)
            self._frequencies, self.attention_scaling = (short, long), scaling
        return self._frequencies

    def _frequencies_for(self, length: int, device: torch.device) -> tuple[Tensor, float]:
        if self.has_long_factors:
            frequencies, scaling = ROPE_INIT_FUNCTIONS["longrope"](
                self.config, device, seq_len=length
            )
            return frequencies, float(scaling)
        base = self.config.rope_parameters["rope_theta"]
        size = self.config.hidden_size // self.config.num_attention_heads
        exponents = torch.arange(0, size, 2, dtype=torch.float32, device=device) / size
        return 1.0 / base**exponents, 1.0

    @torch.no_grad()
    def forward(
        self, position_ids: Tensor, is_long: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Work out the rotation of each token.

        Args:
            position_ids: (batch, length), place of each token in its own example.
            is_long: (batch, length) or (batch, 1), bool, whether that whole example is longer than
                `original_max_position_embeddings`.
            dtype: of the result; the arithmetic is float32.

        Returns:
            cos and sin, (batch, length, head size) each.
        """
        short, long = self._tables(position_ids.device)
        factors = torch.where(is_long[..., None], long, short)
        angles = position_ids[..., None].to(torch.float32) * factors
        angles = torch.cat((angles, angles), dim=-1)
        scaling = self.attention_scaling
        return (angles.cos() * scaling).to(dtype), (angles.sin() * scaling).to(dtype)
