"""Sizes + what is in a row -> bytes that the forward pass keeps for the backward pass (pure).

Counted term by term from what transformers' CLIP and Phi-3 layers save; a test counts the storages
that autograd saves and compares. In 16 bits, weights stay float32 and autocast computes: the
residual, the norms and the rotation stay float32, and every linear layer saves a 16-bit copy of its
input and of its weight.
"""

from dataclasses import dataclass
from typing import Any, Literal

from foveal.models.likelihood import POSITIONS_PER_CHUNK
from foveal.models.phi3_vision.vision import UNUSED_LAYERS
from foveal.plan.arithmetic import Learning, Strategy
from foveal.plan.epoch import RowCounts
from foveal.train.recompute import Recompute

Attention = Literal["blocks", "sdpa", "eager", "flex", "flash_attention_2"]
FULL_BYTES = 4
"""Of a float32 number."""


@dataclass(frozen=True)
class Layer:
    """What one repeated layer keeps, and what it is given."""

    kept_bytes: int
    light_bytes: int
    """Of the residual, matrix products and attention, which a layer keeps where the rest is made
    again."""

    input_bytes: int
    """Of the residual, which a recomputed layer keeps in place of all else."""

    def held_bytes(self, recompute: Recompute) -> int:
        """What it keeps from its forward to its backward pass."""
        held = {"none": self.kept_bytes, "light": self.light_bytes, "blocks": self.input_bytes}
        return held[recompute]


@dataclass(frozen=True)
class Kept:
    """What a forward pass keeps, by part, without recomputing."""

    tower_layer: Layer
    tower_layers: int
    tower_rest_bytes: int
    projector_bytes: int
    decoder_layer: Layer
    decoder_layers: int
    decoder_rest_bytes: int
    rotation_bytes: int
    """Cosines and sines of all places: one copy for all layers."""

    logits_bytes: int
    """Of the head: its input, logits in float32, and their logarithms."""

    logits_work_bytes: int
    """Beside them while the loss goes back: gradients of the logits."""

    def tower_bytes(self, recompute: Recompute) -> int:
        """All that the tower keeps."""
        return self.tower_layer.held_bytes(recompute) * self.tower_layers + self.tower_rest_bytes

    def decoder_bytes(self, recompute: Recompute) -> int:
        """All that the decoder keeps."""
        layers = self.decoder_layer.held_bytes(recompute) * self.decoder_layers
        return layers + self.decoder_rest_bytes

    def held_bytes(self, recompute: Recompute) -> int:
        """All parts; the rotation is there whatever is run again."""
        parts = self.tower_bytes(recompute) + self.projector_bytes + self.decoder_bytes(recompute)
        return parts + self.rotation_bytes + self.logits_bytes

    @property
    def total_bytes(self) -> int:
        """All parts where nothing is run again."""
        return self.held_bytes("none")

    def largest_layer_bytes(self, recompute: Recompute) -> int:
        """What the largest layer keeps beside it while it is run again."""
        layers = self.tower_layer, self.decoder_layer
        return max(one.kept_bytes - one.held_bytes(recompute) for one in layers)


def kept_for_backward(
    config: Any,
    strategy: Strategy,
    row: RowCounts,
    number_bytes: int,
    attention: Attention,
    dropout: bool = False,
) -> Kept:
    """Count what a forward pass over a row keeps.

    Args:
        config: of a Phi-3.5-vision model.
        strategy: what of each part learns.
        row: what is in it.
        number_bytes: 4 in float32, 2 in bf16 and fp16.
        attention: of the decoder; the tower's is eager with it, else sdpa.
        dropout: whether adapters drop inputs.
    """
    parts = _Widths(number_bytes, attention, dropout)
    return Kept(
        tower_layer=parts.tower_layer(config.vision_config, strategy.tower, row),
        tower_layers=config.vision_config.num_hidden_layers - UNUSED_LAYERS,
        tower_rest_bytes=parts.tower_rest(config.vision_config, strategy.tower, row),
        projector_bytes=parts.projector(config, strategy.projector, row),
        decoder_layer=parts.decoder_layer(config, strategy.language, row),
        decoder_layers=config.num_hidden_layers,
        decoder_rest_bytes=parts.decoder_rest(config, strategy.language, row),
        rotation_bytes=row.tokens
        * 2
        * config.hidden_size
        // config.num_attention_heads
        * FULL_BYTES
        if strategy.language.learns
        else 0,
        logits_bytes=parts.logits(config, strategy.language, row),
        logits_work_bytes=2 * FULL_BYTES * min(row.targets, POSITIONS_PER_CHUNK) * config.vocab_size
        if strategy.language.learns
        else 0,
    )


@dataclass(frozen=True)
class _Widths:
    """The same count for each part."""

    number_bytes: int
    attention: Attention
    dropout: bool

    @property
    def mixed(self) -> bool:
        return self.number_bytes < FULL_BYTES

    def adapters(self, learning: Learning, inputs: int, layers: int, rows: int) -> int:
        """Count what `layers` adapters keep beside their base layers, whose inputs sum up."""
        if not learning.adapter_rank:
            return 0
        dropped = inputs * (self.number_bytes + 1) if self.dropout else 0
        return int(rows * (learning.adapter_rank * layers * self.number_bytes + dropped))

    def tower_layer(self, config: Any, learning: Learning, row: RowCounts) -> Layer:
        """Two norms, four projections, attention, and two layers around an activation."""
        if not learning.learns:
            return Layer(0, 0, 0)
        width, mlp, heads = (
            config.hidden_size,
            config.intermediate_size,
            config.num_attention_heads,
        )
        patches = (config.image_size // config.patch_size) ** 2 + 1
        rows = row.crops * patches
        residuals = 2 * width * FULL_BYTES + 4 * FULL_BYTES  # and mean and deviation of each norm
        # In 16 bits each projection makes a copy of its input of its own.
        inputs = (3 if self.mixed else 1) * width
        attended = (3 + 1) * width
        inner = width + 2 * mlp  # behind the norm; before the activation, and behind it
        kept = rows * (residuals + (inputs + attended + inner) * self.number_bytes)
        if self.attention == "eager":
            kept += row.crops * heads * patches**2 * self.eager_bytes
        else:
            kept += rows * heads * FULL_BYTES
        kept += self.adapters(learning, 5 * width + mlp, 6, rows)
        products = 3 * width + width + mlp  # queries, keys, values; output; first of the two
        light = self._light(learning, width, products, 6) + width * self.number_bytes
        if self.attention != "eager":
            light += heads * FULL_BYTES
        return Layer(kept, int(rows * light), rows * width * FULL_BYTES)

    def _light(self, learning: Learning, width: int, products: int, layers: int) -> float:
        """Count, a token, the residual and products that are kept where the rest is made again.

        The last product goes into a sum, which needs it no more. With adapters it is made before
        what its adapter keeps, and is kept.
        """
        numbers: float = products
        if learning.adapter_rank:
            numbers += width + learning.adapter_rank * layers
        return width * FULL_BYTES + numbers * self.number_bytes

    @property
    def eager_bytes(self) -> int:
        """Of each pair that eager attention looks at: probabilities in float32, then rounded."""
        return FULL_BYTES + (self.number_bytes if self.mixed else 0)

    def tower_rest(self, config: Any, learning: Learning, row: RowCounts) -> int:
        """Pixels and the norm before the layers, where weights so far down learn."""
        if not learning.weights:
            return 0
        patches = (config.image_size // config.patch_size) ** 2 + 1
        pixels = 3 * config.image_size**2 * self.number_bytes
        norm = patches * (config.hidden_size + 2) * FULL_BYTES
        return int(row.crops * (pixels + norm))

    def projector(self, config: Any, learning: Learning, row: RowCounts) -> int:
        """Merged patches, and what stands before and behind the activation."""
        if not learning.learns:
            return 0
        merged, width = 4 * config.vision_config.hidden_size, config.hidden_size
        kept = int(row.image_tokens * (merged + 2 * width) * self.number_bytes)
        return kept + self.adapters(learning, merged + width, 2, row.image_tokens)

    def decoder_layer(self, config: Any, learning: Learning, row: RowCounts) -> Layer:
        """Two norms, attention, and a gated layer."""
        if not learning.learns:
            return Layer(0, 0, 0)
        width, mlp = config.hidden_size, config.intermediate_size
        head = width // config.num_attention_heads
        keys = config.num_key_value_heads * head
        # A norm keeps its input, and for its own weights what it made of it; their product goes on.
        norms = 2 * (width * (2 if learning.weights else 1) + 1) * FULL_BYTES
        numbers = 2 * width  # inputs of the projection and of the gated layer
        numbers += width + keys + (width + 2 * keys)  # rotated, and the whole that values view
        numbers += width  # the output projection's input
        numbers += 2 * mlp + mlp + mlp  # gate and up, the activation, their product
        kept = row.tokens * (norms + numbers * self.number_bytes)
        kept += self._attention(config, row)
        kept += self.adapters(learning, 3 * width + mlp, 4, row.tokens)
        products = (width + 2 * keys) + width + 2 * mlp  # attention's four, gate and up
        light = self._light(learning, width, products, 4) + width * self.number_bytes
        if self.attention != "eager":
            light += config.num_attention_heads * FULL_BYTES
        return Layer(kept, int(row.tokens * light), row.tokens * width * FULL_BYTES)

    def _attention(self, config: Any, row: RowCounts) -> int:
        """What the kind of attention keeps beside queries, keys and values."""
        width, heads = config.hidden_size, config.num_attention_heads
        if self.attention == "eager":
            return int(heads * row.tokens**2 * self.eager_bytes)
        kept = row.tokens * (width * self.number_bytes + heads * FULL_BYTES)  # output, logarithms
        if self.attention == "blocks":
            # Masks become numbers; in 16 bits the keys behind a prefix are rounded once more.
            kept += row.branch_cells * self.number_bytes
            if self.mixed:
                kept += row.branch_keys * width * self.number_bytes
        if self.attention == "sdpa":
            kept += row.tokens**2 * self.number_bytes
            kept -= row.tokens * width * self.number_bytes  # its output is the projection's input
        if self.attention in ("flex", "flash_attention_2"):
            kept -= row.tokens * width * self.number_bytes
        return int(kept)

    def decoder_rest(self, config: Any, learning: Learning, row: RowCounts) -> int:
        """The last norm, and where pictures stand."""
        if not learning.learns:
            return 0
        norm = config.hidden_size * (2 if learning.weights else 1) + 1
        return int(row.tokens * (norm * FULL_BYTES + 1))

    def logits(self, config: Any, learning: Learning, row: RowCounts) -> int:
        """Inputs of the head and logarithms of what it says; of several chunks, the inputs."""
        if not learning.learns:
            return 0
        inputs = row.targets * config.hidden_size
        chunks = -(-row.targets // POSITIONS_PER_CHUNK)
        if chunks > 1:
            return int(inputs * FULL_BYTES)
        kept = int(inputs * self.number_bytes + row.targets * config.vocab_size * FULL_BYTES)
        return kept + self.adapters(learning, config.hidden_size, 1, row.targets)
