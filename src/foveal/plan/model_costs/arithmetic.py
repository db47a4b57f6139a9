"""Sizes, strategy and the groups of a row -> useful multiplications and additions of a step (pure).

A product of (m, k) and (k, n) is 2 m k n. Counted is what the step's result needs: nothing twice
(no recomputing), of causal attention the pairs that see each other, the head where a label stands,
the tower up to the layer that is read. Norms, activations and the optimizer are not counted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from foveal.data.forward_inputs import GroupSpan
from foveal.models.phi3_vision.image import num_image_tokens
from foveal.models.phi3_vision.vision import UNUSED_LAYERS
from foveal.plan.epoch import seen_pairs


@dataclass(frozen=True)
class Work:
    """Floating-point operations by part; forward and backward together unless said otherwise."""

    tower: float
    projector: float
    decoder: float
    head: float

    decoder_attention: float
    """Part of the decoder's: scores and what is made of them."""

    @property
    def total(self) -> float:
        """Operations of all parts."""
        return self.tower + self.projector + self.decoder + self.head


@dataclass(frozen=True)
class Learning:
    """What of a part learns, which decides what its backward pass has to multiply."""

    weights: bool
    adapter_rank: float = 0
    """Width of its adapters; a fraction where they are not all alike."""
    passes_back: bool = True
    """Whether what stands before the part learns too and waits for a gradient."""

    def linear(self, rows: float, inputs: int, outputs: int, passes_back: bool = True) -> float:
        """One layer's forward pass, its weights' gradient, and its inputs' gradient."""
        back = passes_back and self.passes_back
        layer = 2.0 * rows * inputs * outputs * (1 + self.weights + back)
        if not self.adapter_rank:
            return layer
        # The first matrix hands a gradient on only where somebody waits for it.
        first = 2.0 * rows * inputs * self.adapter_rank * (2 + back)
        return layer + first + 2.0 * rows * self.adapter_rank * outputs * 3

    @property
    def learns(self) -> bool:
        """Whether anything in the part does."""
        return self.weights or bool(self.adapter_rank)


@dataclass(frozen=True)
class Strategy:
    """How the parts learn."""

    tower: Learning
    projector: Learning
    language: Learning


NOTHING = Learning(weights=False, passes_back=False)


def strategy_of(name: str, adapter_rank: float) -> Strategy:
    """Describe a named strategy; `forward` is a pass without any backward."""
    whole, adapter = Learning(weights=True), Learning(weights=False, adapter_rank=adapter_rank)
    return {
        "full": Strategy(whole, whole, whole),
        # The projector's separators learn, so its first layer hands a gradient back as well.
        "frozen_vision": Strategy(NOTHING, whole, whole),
        "lora": Strategy(adapter, adapter, adapter),
        "forward": Strategy(NOTHING, NOTHING, NOTHING),
    }[name]


def useful_work(
    config: Any,
    strategy: Strategy,
    groups: Sequence[GroupSpan],
    image_tokens: int,
    crops: int,
    targets: int,
) -> Work:
    """Count the work of one row.

    Args:
        config: of a Phi-3.5-vision model.
        strategy: see `strategy_of`.
        groups: cover the row.
        image_tokens: of its distinct pictures.
        crops: that the tower sees, global views included.
        targets: labels.
    """
    tokens = sum(group.end - group.start for group in groups)
    return work_of_counts(
        config, strategy, tokens, seen_pairs(groups), image_tokens, crops, targets
    )


def work_of_counts(
    config: Any,
    strategy: Strategy,
    tokens: float,
    pairs: float,
    image_tokens: float,
    crops: float,
    targets: float,
) -> Work:
    """Count the work of a row, or of many, from what is in it; see `useful_work`."""
    attention = config.num_hidden_layers * _attention(pairs, config.hidden_size, strategy.language)
    return Work(
        _tower(config.vision_config, strategy.tower, crops),
        _projector(config, strategy.projector, image_tokens),
        _decoder(config, strategy.language, tokens) + attention,
        strategy.language.linear(targets, config.hidden_size, config.vocab_size),
        attention,
    )


def proportions(config: Any, text_tokens: int = 45) -> Work:
    """Count the forward pass of one page of 4 x 4 crops and one question, a label everywhere.

    Where fewer positions have labels, the head's part shrinks alike for any model.
    """
    image = num_image_tokens(4, 4, config.crop_tokens_side)
    group = GroupSpan(0, (), image + text_tokens)
    return useful_work(config, strategy_of("forward", 0), (group,), image, 17, group.end)


def _tower(config: Any, learning: Learning, crops: float) -> float:
    width, mlp = config.hidden_size, config.intermediate_size
    patches = (config.image_size // config.patch_size) ** 2
    rows = crops * (patches + 1)
    embedding = 2.0 * crops * patches * 3 * config.patch_size**2 * width * (1 + learning.weights)
    total: float = embedding
    for layer in range(config.num_hidden_layers - UNUSED_LAYERS):
        # Nothing before the first layer waits for a gradient if there are only adapters.
        into_layer = layer > 0 or learning.weights
        total += 3 * learning.linear(rows, width, width, into_layer)
        total += learning.linear(rows, width, width)
        total += learning.linear(rows, width, mlp) + learning.linear(rows, mlp, width)
        total += _attention(rows * (patches + 1), width, learning)
    return total


def _projector(config: Any, learning: Learning, tokens: float) -> float:
    merged, width = 4 * config.vision_config.hidden_size, config.hidden_size
    return learning.linear(tokens, merged, width) + learning.linear(tokens, width, width)


def _decoder(config: Any, learning: Learning, tokens: float) -> float:
    width, mlp = config.hidden_size, config.intermediate_size
    linear = (
        learning.linear(tokens, width, 3 * width)
        + learning.linear(tokens, width, width)
        + learning.linear(tokens, width, 2 * mlp)
        + learning.linear(tokens, mlp, width)
    )
    return float(config.num_hidden_layers) * linear


def _attention(pairs: float, width: int, learning: Learning) -> float:
    """Scores and their use, and two products for the gradient of each."""
    return 4.0 * pairs * width * (3 if learning.learns else 1)
