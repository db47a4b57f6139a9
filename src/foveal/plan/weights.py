"""A model's sizes + rules -> every weight, what becomes of it, and how much that is (pure).

The names are those that rules speak of, `part.name`; a test holds them against the model itself.
"""

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from foveal.adapt.strategy import first_match
from foveal.config import Rule
from foveal.models.phi3_vision.vision import UNUSED_LAYERS

QUANTIZED_BLOCK, QUANTIZED_GROUP = 64, 256
"""Weights that share a scale, and scales that share one (Dettmers et al., QLoRA, section 3)."""

FOUR_BIT_BYTES = 0.5 + (1 + 4 / QUANTIZED_GROUP) / QUANTIZED_BLOCK
"""Of a weight in 4 bits whose scales are held in 8: 4.127 bits."""


@dataclass(frozen=True)
class Weight:
    """One tensor of the model, before any adapter."""

    name: str
    """`part.name`."""

    shape: tuple[int, ...]
    is_linear: bool = False
    is_used: bool = True
    """Whether a forward pass reads it."""

    beside_linear: bool = False
    """Whether it is a linear layer's bias: adapters leave that as it is."""

    @property
    def elements(self) -> int:
        """Numbers in it."""
        return math.prod(self.shape)

    @property
    def block(self) -> str | None:
        """Name of the repeated layer that it stands in, if it stands in one."""
        head, layers, rest = self.name.partition("layers.")
        return f"{head}{layers}{rest.split('.')[0]}" if layers else None


@dataclass(frozen=True)
class Fate:
    """What becomes of a weight."""

    weight: Weight
    learns: bool
    adapter_rank: int = 0
    four_bits: bool = False

    @property
    def learnt_elements(self) -> int:
        """Numbers that have a gradient: all of the weight's, or its adapter's."""
        return self.weight.elements if self.learns else self.adapter_elements

    @property
    def adapter_elements(self) -> int:
        """Numbers of the adapter beside it."""
        return self.adapter_rank * sum(self.weight.shape) if self.adapter_rank else 0


def list_weights(config: Any) -> Iterator[Weight]:
    """Name every weight of a Phi-3.5-vision model, in no particular order."""
    width, mlp, vocabulary = config.hidden_size, config.intermediate_size, config.vocab_size
    head = width // config.num_attention_heads
    kept = 2 * config.num_key_value_heads * head
    yield Weight("language.embed_tokens.weight", (vocabulary, width))
    yield Weight("language.norm.weight", (width,))
    yield Weight("language.lm_head.weight", (vocabulary, width), is_linear=True)
    for number in range(config.num_hidden_layers):
        layer = f"language.layers.{number}."
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield Weight(f"{layer}{name}.weight", (width,))
        for name, shape in (
            ("self_attn.qkv_proj", (width + kept, width)),
            ("self_attn.o_proj", (width, width)),
            ("mlp.gate_up_proj", (2 * mlp, width)),
            ("mlp.down_proj", (width, mlp)),
        ):
            yield Weight(f"{layer}{name}.weight", shape, is_linear=True)
    merged = 4 * config.vision_config.hidden_size
    yield Weight("projector.glb_GN", (1, 1, merged))
    yield Weight("projector.sub_GN", (1, 1, 1, merged))
    for place, inputs in ((0, merged), (2, width)):
        yield Weight(f"projector.img_projection.{place}.weight", (width, inputs), is_linear=True)
        yield Weight(f"projector.img_projection.{place}.bias", (width,), beside_linear=True)
    yield from _tower_weights(config.vision_config)


def _tower_weights(config: Any) -> Iterator[Weight]:
    width, mlp, patch = config.hidden_size, config.intermediate_size, config.patch_size
    patches = (config.image_size // patch) ** 2
    tower = "vision.vision_model."
    yield Weight(f"{tower}embeddings.class_embedding", (width,))
    yield Weight(f"{tower}embeddings.patch_embedding.weight", (width, 3, patch, patch))
    yield Weight(f"{tower}embeddings.position_embedding.weight", (patches + 1, width))
    for name in ("pre_layrnorm", "post_layernorm"):
        for kind in ("weight", "bias"):
            used = name == "pre_layrnorm"
            yield Weight(f"{tower}{name}.{kind}", (width,), is_used=used)
    for number in range(config.num_hidden_layers):
        layer = f"{tower}encoder.layers.{number}."
        used = number < config.num_hidden_layers - UNUSED_LAYERS
        for name in ("layer_norm1", "layer_norm2"):
            for kind in ("weight", "bias"):
                yield Weight(f"{layer}{name}.{kind}", (width,), is_used=used)
        for name, shape in (
            *((f"self_attn.{one}_proj", (width, width)) for one in ("q", "k", "v", "out")),
            ("mlp.fc1", (mlp, width)),
            ("mlp.fc2", (width, mlp)),
        ):
            yield Weight(f"{layer}{name}.weight", shape, is_linear=True, is_used=used)
            yield Weight(f"{layer}{name}.bias", shape[:1], is_used=used, beside_linear=True)


def fates_of(
    config: Any, rules: Sequence[Rule], rank: int, whole: Collection[tuple[int, ...]] = ()
) -> tuple[Fate, ...]:
    """Decide for every weight as `adapt.strategy.assign` does, without a model.

    Args:
        config: of the model.
        rules: of the strategy; the first that matches decides.
        rank: of adapters.
        whole: shapes that are never held in 4 bits, whatever the rules say.
    """
    return tuple(_fate(weight, rules, rank, whole) for weight in list_weights(config))


def _fate(
    weight: Weight, rules: Sequence[Rule], rank: int, whole: Collection[tuple[int, ...]]
) -> Fate:
    rule = first_match(weight.name, rules)
    if rule is None:
        return Fate(weight, learns=False)
    small = rule.quantize and may_be_packed(weight) and weight.shape not in whole
    if not weight.is_used:
        return Fate(weight, learns=False, four_bits=small)
    if rule.adapter and weight.is_linear:
        return Fate(weight, learns=False, adapter_rank=rule.rank or rank, four_bits=small)
    if small:
        return Fate(weight, learns=False, four_bits=True)
    return Fate(weight, learns=rule.learn and not (rule.adapter and weight.beside_linear))


def may_be_packed(weight: Weight) -> bool:
    """Tell whether a rule may hold a weight in 4 bits: in a linear layer, but not the head."""
    return weight.is_linear and weight.name != "language.lm_head.weight"


@dataclass(frozen=True)
class Holdings:
    """Numbers that a process has to hold, by what is done with them."""

    whole: int
    """In the run's own width, adapters not counted."""

    four_bit: int
    learnt: int
    """With a gradient and an optimizer's two moments: weights, or adapters."""

    learnt_tensors: int
    adapters: int
    learnt_linear: int
    """Of linear layers, that autocast copies to 16 bits once a pass."""

    frozen_linear: int
    """Of linear layers, that autocast copies to 16 bits at each use."""

    largest_block: int
    """Numbers of the largest repeated layer, adapters included."""

    outside_blocks: int
    """Numbers that stand in no repeated layer: embedding, head, projector."""


def count_holdings(fates: Sequence[Fate]) -> Holdings:
    """Add up the fates of all weights."""
    blocks: dict[str | None, int] = {}
    for fate in fates:
        block = fate.weight.block
        blocks[block] = blocks.get(block, 0) + fate.weight.elements + fate.adapter_elements
    outside = blocks.pop(None, 0)
    linear = [fate for fate in fates if fate.weight.is_linear and fate.weight.is_used]
    return Holdings(
        whole=sum(fate.weight.elements for fate in fates if not fate.four_bits),
        four_bit=sum(fate.weight.elements for fate in fates if fate.four_bits),
        learnt=sum(fate.learnt_elements for fate in fates),
        learnt_tensors=sum(2 if fate.adapter_rank else fate.learns for fate in fates),
        adapters=sum(fate.adapter_elements for fate in fates),
        learnt_linear=sum(fate.learnt_elements for fate in linear),
        frozen_linear=sum(
            fate.weight.elements for fate in linear if not (fate.learns or fate.four_bits)
        ),
        largest_block=max(blocks.values(), default=0),
        outside_blocks=outside,
    )
