"""Weights in fewer bits -> their numbers: by plain arithmetic, by kernels that get them right.

A kernel is only taken at its word where it agrees with these numbers: of one library and one model,
some shapes come out right on one processor and wrong on the next, without an error.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

CODE = "nf4"
EXACT, HALF = 1e-3, 1e-1
"""Most that a kernel may be off, in standard deviations of the right numbers: two orders of the
same sums differ by a thousandth of the first in float32, by a fraction of the second in 16 bits. A
kernel that takes the wrong scale or place is off by one and more."""

MOST_LOST = 0.2
"""Of a block's largest number, by packing: half of the code's widest gap, 0.28, and some for scales
that are rounded too."""

TOKENS = (1, 5)
"""Of the passes that are tried: libraries have a kernel of their own for one."""

MOST_CPU_OUTPUTS = 2048
"""Rows of a matrix that are tried on a processor, which treats all rows alike: the whole of a large
one would take seconds, and more memory than its layer."""


def is_quantized(model: nn.Module) -> bool:
    """Tell whether any layer of a model is held in 4 bits."""
    return bool(getattr(model, "is_loaded_in_4bit", False))


def keep_layout(model: nn.Module) -> None:
    """Keep 4-bit layers as they were packed, and trainable, on every processor.

    On one with AVX-512 bf16, bitsandbytes repacks a layer in place when it first answers, for a
    kernel that rounds its scales and has no backward pass: a run that evaluates before it trains
    would then train on no gradient. And it rounds a layer's bias in place to the format that it
    computes in, also one that learns.
    """
    if is_quantized(model):
        from bitsandbytes.nn import Linear4bit

        for layer in model.modules():
            if isinstance(layer, Linear4bit):
                layer.support_avx512bf16_for_cpu = False
            if type(layer) is Linear4bit and layer.bias is not None:
                layer.__class__ = _layer_that_keeps_its_bias()


@cache
def _layer_that_keeps_its_bias() -> Any:
    from bitsandbytes.nn import Linear4bit

    class KeptBiasLinear4bit(Linear4bit):  # type: ignore[misc]
        def forward(self, hidden: Tensor) -> Tensor:
            """Show the pass a rounded copy of the bias, which hands gradients on to it."""
            bias = self._parameters.pop("bias")
            self.__dict__["bias"] = bias.to(self.compute_dtype)
            try:
                made: Tensor = super().forward(hidden)
                return made
            finally:
                del self.__dict__["bias"]
                self._parameters["bias"] = bias

    return KeptBiasLinear4bit


def unpack(packed: Tensor, state: Any) -> Tensor:
    """Work out the numbers of a weight in 4 bits: each one's place in the code, times its scale.

    The same bits on every machine, since nothing is summed.

    Args:
        packed: two numbers a byte, the first in its high half.
        state: bitsandbytes' QuantState.

    Returns:
        Of the weight's own shape, float32.
    """
    scales = state.absmax
    if state.nested:
        coarse = state.state2
        scales = _scaled(coarse.code[scales.int()], coarse.absmax, coarse.blocksize) + state.offset
    pairs = torch.cartesian_prod(state.code, state.code)  # (256, 2)
    numbers = pairs[packed.view(torch.uint8).flatten().int()].flatten()[: state.shape.numel()]
    return _scaled(numbers, scales, state.blocksize).reshape(state.shape)


def _scaled(numbers: Tensor, scales: Tensor, block: int) -> Tensor:
    """Multiply each block of numbers by its scale; the last block may be short."""
    count = numbers.numel()
    blocks = pad(numbers.float(), (0, -count % block)).view(-1, block)
    return (blocks * scales.float()[:, None]).flatten()[:count]


def is_computed_rightly(
    shape: tuple[int, int], device: torch.device, compute: torch.dtype, double: bool
) -> bool:
    """Try whether layers of a shape give the right numbers when held in 4 bits on a device.

    Reading back, answering and the gradient are all compared with products of the unpacked
    numbers, by way of the same layer that a run has.

    Args:
        shape: (outputs, inputs) of the layer.
        device: that it would compute on.
        compute: number format of its products.
        double: whether the scales of its blocks are quantized too.
    """
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Linear4bit, Params4bit

    outputs, inputs = shape
    if device.type == "cpu":
        outputs = min(outputs, MOST_CPU_OUTPUTS)
    random = torch.Generator().manual_seed(outputs * inputs)
    weight = torch.randn(outputs, inputs, generator=random)
    layer = Linear4bit(
        inputs,
        outputs,
        bias=False,
        compute_dtype=compute,
        device="meta",
    )
    layer.weight = Params4bit(
        weight,
        requires_grad=False,
        compress_statistics=double,
        quant_type=CODE,
        module=layer,
    )
    layer.support_avx512bf16_for_cpu = False  # as `keep_layout` leaves it
    layer.to(device)
    packed, state = layer.weight.data, layer.weight.quant_state
    right = unpack(packed, state)
    lost = (right - weight.to(device)).abs().max()
    if not lost <= MOST_LOST * weight.abs().max():
        return False
    if not _agree(dequantize_4bit(packed, state), right, EXACT):
        return False
    limit = EXACT if compute == torch.float32 else HALF
    for tokens in TOKENS:
        hidden = torch.randn(tokens, inputs, generator=random).to(device)
        pull = torch.randn(tokens, outputs, generator=random).to(device)
        with torch.no_grad():
            answered = layer.eval()(hidden)
        made = layer.train()(hidden.requires_grad_())
        (gradient,) = torch.autograd.grad(made, hidden, pull)
        with torch.no_grad():
            expected = hidden @ right.T
            if not (_agree(answered, expected, limit) and _agree(made, expected, limit)):
                return False
            if not _agree(gradient, pull @ right, limit):
                return False
    return True


def _agree(found: Tensor, right: Tensor, limit: float) -> bool:
    apart = (found.detach().float() - right).abs().max()
    return bool(apart <= limit * right.square().mean().sqrt())  # never of what is no number
