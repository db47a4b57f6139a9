"""Groups of a packed row -> who sees whom: one rule, in the form that each attention wants.

A token sees what stands before it in its own prefix and its own branch. Where a layer sees no
further than a window, that is measured in places of the separate samples: in the row, a branch
stands far behind its prefix. Where the tokens of an image see each other, an image sees itself.

A row travels to the attention as one keyword argument, through transformers' own modelling code;
what a layer needs besides (`sliding_window`, `softcap`, `s_aux`) it says by its own arguments.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.flash_attention import flash_attention_forward
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import (
    eager_mask,
    flash_attention_mask,
    flex_attention_mask,
    sdpa_mask,
)
from transformers.utils import is_flash_attn_2_available

from foveal.models.generation.tree import Growth, attend_in_trees
from foveal.models.row_view import RowView

FASTEST: dict[str, Literal["blocks", "flex"]] = {"cuda": "flex", "cpu": "blocks"}
"""Kind of device -> what `attention: auto` takes there. That of CUDA has not been measured yet:
`python benchmarks/on_gpu choice` measures it and names the word that belongs here."""


Attend = Callable[..., tuple[Tensor, Any]]


def _attend_with_mask(
    module: nn.Module, *states: Tensor, mask: Tensor | None, **arguments: Any
) -> Tensor:
    """Attend by SDPA; where a layer caps scores or has sinks, by the model's own plain attention.

    Args:
        module: the attention layer.
        states: query, key and value, (1, heads, length, head size) each.
        mask: (1, 1, queries, keys), bool; none: causal.
        arguments: of the layer.

    Returns:
        (1, queries, heads, head size).
    """
    if arguments.get("softcap") is None and arguments.get("s_aux") is None:
        made: Tensor = sdpa_attention_forward(
            module, *states, mask, is_causal=mask is None, **arguments
        )[0]
        return made
    queries, keys = states[0].shape[2], states[1].shape[2]
    if mask is None:
        mask = torch.ones(queries, keys, dtype=torch.bool, device=states[0].device)
        mask = mask.tril(keys - queries)
    own: Tensor = _own_attention(module)(module, *states, _added(mask, states[0]), **arguments)[0]
    return own


def _added(mask: Tensor, like: Tensor) -> Tensor:
    """Turn a mask of what is seen into one that is added to the scores."""
    hidden = torch.zeros(mask.shape, dtype=like.dtype, device=like.device)
    return hidden.masked_fill(~mask, torch.finfo(like.dtype).min)


def _own_attention(module: nn.Module) -> Attend:
    """Find the plain attention that stands beside a layer in its modelling file."""
    attend: Attend = vars(sys.modules[type(module).__module__])["eager_attention_forward"]
    return attend


def _in_blocks(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, row: RowView, **arguments: Any
) -> Tensor:
    """Attend within each group: its prefix by itself, and the branches behind it.

    The square of the whole row is never built.
    """
    window = arguments.get("sliding_window")
    chunks = []
    # Split, not sliced: the gradient of a slice is as long as the row, that of a split is not.
    sizes = [group.end - group.start for group in row.groups]
    per_group = zip(*(tensor.split(sizes, dim=2) for tensor in (query, key, value)), strict=True)
    for group, (queries, keys, values) in zip(row.groups, per_group, strict=True):
        prefix = group.prefix_end - group.start
        heads, tails = queries.split([prefix, queries.shape[2] - prefix], dim=2)
        seen = (keys[:, :, :prefix], values[:, :, :prefix])
        mask = row.prefix_mask(group, window)
        chunks.append(_attend_with_mask(module, heads, *seen, mask=mask, **arguments))
        if group.branch_starts:
            mask = row.branch_mask(group, window)
            chunks.append(_attend_with_mask(module, tails, keys, values, mask=mask, **arguments))
    return torch.cat(chunks, dim=1)


def _in_a_square(module: nn.Module, *states: Tensor, row: RowView, **arguments: Any) -> Tensor:
    mask = row.square(arguments.get("sliding_window"))
    return _attend_with_mask(module, *states, mask=mask, **arguments)


def _plainly(module: nn.Module, *states: Tensor, row: RowView, **arguments: Any) -> Tensor:
    mask = _added(row.square(arguments.get("sliding_window")), states[0])
    made: Tensor = _own_attention(module)(module, *states, mask, **arguments)[0]
    return made


def _by_flex(module: nn.Module, *states: Tensor, row: RowView, **arguments: Any) -> Tensor:
    mask = row.block_mask(arguments.get("sliding_window"))
    made: Tensor = flex_attention_forward(module, *states, mask, **arguments)[0]
    return made


def _by_lengths(module: nn.Module, *states: Tensor, row: RowView, **arguments: Any) -> Tensor:
    made: Tensor = flash_attention_forward(
        module, *states, None, is_causal=True, **arguments, **row.lengths()
    )[0]
    return made


@dataclass(frozen=True)
class Form:
    """One kind of attention: how it reads rows, and how ordinary batches."""

    read_row: Callable[..., Tensor]
    plain: Attend | None
    """For a batch that is no row; none: the model's own."""

    def __call__(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Any,
        row: RowView | None = None,
        trees: tuple[Growth, ...] | None = None,
        **arguments: Any,
    ) -> tuple[Tensor, Any]:
        """Attend, as transformers calls it.

        Args:
            module: the attention layer.
            query: (batch, heads, length, head size).
            key: (batch, key heads, length, head size).
            value: (batch, key heads, length, head size).
            attention_mask: of an ordinary batch; a row brings its own.
            row: who sees whom, batch 1.
            trees: while decoding, the new tokens of each tree, batch 1.
            arguments: of the layer, handed on.

        Returns:
            (batch, length, heads, head size), and no weights.
        """
        if trees is not None:
            return attend_in_trees(module, query, key, value, trees, _attend_with_mask, **arguments)
        if row is not None:
            return self.read_row(module, query, key, value, row=row, **arguments), None
        attend = self.plain or _own_attention(module)
        return attend(module, query, key, value, attention_mask, **arguments)


FORMS: dict[str, tuple[Form, Callable[..., Any]]] = {
    "blocks": (Form(_in_blocks, sdpa_attention_forward), sdpa_mask),
    "sdpa": (Form(_in_a_square, sdpa_attention_forward), sdpa_mask),
    "eager": (Form(_plainly, None), eager_mask),
    "flex": (Form(_by_flex, flex_attention_forward), flex_attention_mask),
    "flash_attention_2": (Form(_by_lengths, flash_attention_forward), flash_attention_mask),
}
"""The recipe's name of an attention -> its form, and how an ordinary batch is masked for it."""

PREFIX = "foveal_"
for _name, (_form, _mask) in FORMS.items():
    AttentionInterface.register(PREFIX + _name, _form)
    AttentionMaskInterface.register(PREFIX + _name, _mask)


def choose_attention(name: str, towers: tuple[str, ...] = ("vision_config",)) -> dict[str, str]:
    """Name the attention of the decoder and of the towers below it, as transformers takes them.

    Args:
        name: the recipe's setting; "auto" is the `FASTEST` of this machine.
        towers: names of the configurations that hold no decoder.

    Raises:
        ImportError: it needs a library that is not there.
    """
    if name == "auto":
        name = FASTEST["cuda" if torch.cuda.is_available() else "cpu"]
    if name == "flash_attention_2" and not is_flash_attn_2_available():
        raise ImportError("attention=flash_attention_2 needs the package flash_attn on a GPU")
    tower = "eager" if name == "eager" else "sdpa"
    return {"": PREFIX + name, **dict.fromkeys(towers, tower)}


def attention_of(config: Any) -> str:
    """Tell the recipe's name of the attention that a model was loaded with."""
    chosen: str = config.get_text_config()._attn_implementation
    return chosen.removeprefix(PREFIX)
