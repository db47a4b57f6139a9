"""A model -> the same model that runs its layers again in the backward pass, where that saves."""

from typing import Any

from foveal.models.cached_rows import recompute_with_cache
from foveal.models.family import Family


def recompute_blocks(model: Any, family: Family) -> None:
    """Keep the inputs of repeated layers alone.

    A tower that no gradient reaches is left out: it keeps nothing as it is, and its layers' inputs
    would be kept for a backward pass that never comes.
    """
    model.activation_checkpointing_enable({"use_reentrant": False})
    if family.route == "cache":
        recompute_with_cache(model)
    # Reentrant recomputing needs inputs that ask for gradients, and transformers makes them so for
    # either kind: a fixed tower would be differentiated from its first layer on, for nothing.
    model.disable_input_require_grads()
    if any(one.requires_grad for name, one in model.named_parameters() if _sees(family, name)):
        return
    blocks = {id(block) for block in family.blocks(model)}
    for name, module in model.named_modules():
        if id(module) in blocks and _sees(family, name):
            module.gradient_checkpointing = False


def _sees(family: Family, name: str) -> bool:
    return family.part_name(name).startswith("vision.")
