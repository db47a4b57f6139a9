"""A model -> the same model that computes again in the backward pass what it did not keep."""

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import torch
from torch.utils.checkpoint import (
    CheckpointPolicy,
    SelectiveCheckpointContext,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from foveal.models.cached_rows import recompute_with_cache
from foveal.models.family import Family

Recompute = Literal["none", "light", "blocks"]
"""What is computed again: nothing; what is cheap; whole blocks."""

aten = torch.ops.aten
PRODUCTS = {
    aten.mm.default: 0,
    aten.addmm.default: 1,
    aten.bmm.default: 0,
    aten.baddbmm.default: 1,
    aten._grouped_mm.default: 0,
}
"""Matrix product -> place of its left matrix among its arguments; the right one comes next."""

ATTENTION = frozenset(
    {
        aten._scaled_dot_product_flash_attention.default,
        aten._scaled_dot_product_flash_attention_for_cpu.default,
        aten._scaled_dot_product_efficient_attention.default,
        aten._scaled_dot_product_cudnn_attention.default,
    }
)

CONVOLUTIONS = frozenset({aten.convolution.default})

CHEAP_WIDENING = 16
"""A product that is so many times as wide as what it sums over is made again, such as a square of
attention scores. No layer of a model widens as much."""


def recompute_blocks(model: Any, family: Family, recompute: Recompute = "blocks") -> None:
    """Keep the inputs of repeated layers, and of `light` what was dear to make, alone.

    A tower that no gradient reaches is left out: it keeps nothing as it is, and its layers' inputs
    would be kept for a backward pass that never comes.
    """
    model.activation_checkpointing_enable({"use_reentrant": False})
    if recompute == "light":
        keep_what_is_dear(model, family)
    if family.route == "cache":
        recompute_with_cache(model)
    # Reentrant recomputing needs inputs that ask for gradients, and transformers makes them so for
    # either kind: a frozen tower would be differentiated from its first layer on, for nothing.
    model.disable_input_require_grads()
    if any(one.requires_grad for name, one in model.named_parameters() if _sees(family, name)):
        return
    blocks = {id(block) for block in family.blocks(model)}
    for name, module in model.named_modules():
        if id(module) in blocks and _sees(family, name):
            module.gradient_checkpointing = False


def keep_what_is_dear(model: Any, family: Family) -> None:
    """Let blocks that are run again keep what matrix products and attention made."""
    cheap = second_halves(model)
    kinds: dict[tuple[type, ...], DearOutputs] = {}
    for block in family.blocks(model):
        kind = tuple(type(part) for part in block.modules())
        dear = kinds.setdefault(kind, DearOutputs(cheap))
        how: Any = partial(checkpoint, use_reentrant=False, context_fn=dear.contexts)
        block._gradient_checkpointing_func = how


def second_halves(model: Any) -> frozenset[tuple[int, ...]]:
    """List the shapes, (rank, out), of what adapters multiply by last.

    What comes out is as wide as their layer and made of next to nothing.
    """
    return frozenset(
        (one.shape[1], one.shape[0])
        for name, one in model.named_parameters()
        if ".lora_B." in name and one.dim() == 2
    )


class DearOutputs:
    """Says of one kind of block which outputs are kept, as torch's selective checkpointing asks."""

    def __init__(self, cheap: frozenset[tuple[int, ...]]) -> None:
        """Begin with nothing known of the block.

        Args:
            cheap: shapes of right matrices whose products are made again.
        """
        self.cheap = cheap
        self.products: int | None = None
        """Of the last forward pass through such a block."""

        self.needs_last = False
        """Whether backward passes come to the last product. Mostly it goes into a sum, which needs
        neither side again."""

        self._made = 0
        self._made_again: Mapping[Any, int] = {}

    def contexts(self) -> tuple[Any, Any]:
        """Surround a forward pass, and the same once more in the backward pass."""
        if self._made:
            self.products = self._made
            again = sum(self._made_again.get(one, 0) for one in PRODUCTS)
            self.needs_last = self.needs_last or again >= self._made
        self._made = 0
        forward, backward = create_selective_checkpoint_contexts(self.decide)
        self._made_again = backward.func_counter
        return forward, backward

    def decide(
        self,
        context: SelectiveCheckpointContext,
        operation: Any,
        *arguments: Any,
        **named: Any,
    ) -> CheckpointPolicy:
        """Decide whether what an operation made is kept."""
        if operation in PRODUCTS:
            self._made += 1
            is_last = self._made == self.products and not self.needs_last
            is_saved = not is_last and not self._is_cheap(operation, arguments)
        elif operation in ATTENTION:
            # Where it drops at random, what it draws would not be drawn again, and all that is
            # drawn behind it would be other numbers.
            is_saved = not _argument(operation, "dropout_p", arguments, named)
        else:
            is_saved = operation in CONVOLUTIONS
        return CheckpointPolicy.MUST_SAVE if is_saved else CheckpointPolicy.PREFER_RECOMPUTE

    def _is_cheap(self, operation: Any, arguments: Any) -> bool:
        place = PRODUCTS[operation]
        left, right = arguments[place : place + 2]
        widens = CHEAP_WIDENING * left.shape[-1] < right.shape[-1]
        return widens or tuple(right.shape) in self.cheap


def _argument(operation: Any, name: str, arguments: Any, named: Any) -> Any:
    for place, one in enumerate(operation._schema.arguments):
        if one.name == name:
            given = arguments[place] if place < len(arguments) else named.get(name)
            return one.default_value if given is None else given
    return None


def _sees(family: Family, name: str) -> bool:
    return family.part_name(name).startswith("vision.")
