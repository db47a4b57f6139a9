"""Groups of a packed row -> who sees whom: one rule, in the form that each attention wants.

A token sees what stands before it in its own prefix and its own branch. Where a layer sees no
further than a window, that is measured in places of the separate samples: in the row, a branch
stands far behind its prefix. Where the tokens of an image see each other, an image sees itself.

A row travels to the attention as one keyword argument, through transformers' own modelling code;
what a layer needs besides (`sliding_window`, `softcap`, `s_aux`) it says by its own arguments.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
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

from foveal.data.layout import GroupSpan
from foveal.models.generation.tree import Growth, ImageSight, attend_in_trees

FASTEST: dict[str, Literal["blocks", "flex"]] = {"cuda": "flex", "cpu": "blocks"}
"""Kind of device -> what `attention: auto` takes there. That of CUDA has not been measured yet:
`python benchmarks/on_gpu choice` measures it and names the word that belongs here."""


@dataclass(eq=False)
class RowView:
    """Who sees whom in one row; each mask is made once and serves all layers that want it."""

    groups: tuple[GroupSpan, ...]
    """Cover the row from its first to its last token."""

    device: torch.device
    images: Tensor | None = None
    """(length,), number of the image whose feature a token takes, -1 for words; none: images are
    read as words are."""

    image_sight: ImageSight = "causal"
    _made: dict[Any, Any] = field(default_factory=dict)

    @cached_property
    def places(self) -> tuple[Tensor, Tensor, Tensor]:
        """Owner, branch and place of each token, (length,), int32; see `token_places`."""
        return token_places(self.groups, self.device)

    def sees(self, window: int | None) -> Callable[[Any, Any], Any]:
        """Make the rule of a layer: (query, key), places in the row -> whether it sees it."""
        owner, branch, place = self.places
        images = self.images if self._is_mutual(window) else None

        def rule(query: Any, key: Any) -> Any:
            before = place[key] <= place[query]
            if images is not None:
                before = before | ((images[key] == images[query]) & (images[key] >= 0))
            if window is not None:
                before = before & (place[query] - place[key] < window)
            in_branch = (branch[key] == 0) | (branch[key] == branch[query])
            return before & (owner[key] == owner[query]) & in_branch

        return rule

    def _is_mutual(self, window: int | None) -> bool:
        if self.images is None or self.image_sight == "causal":
            return False
        return self.image_sight == "mutual" or window is not None

    def square(
        self, window: int | None, queries: slice = slice(None), keys: slice = slice(None)
    ) -> Tensor:
        """Write a part of the rule out, (1, 1, queries, keys), bool."""
        part = queries.start, queries.stop, keys.start, keys.stop
        made: Tensor = self._once(
            ("square", window, part), lambda: self._square(window, queries, keys)
        )
        return made

    def _square(self, window: int | None, queries: slice, keys: slice) -> Tensor:
        row = torch.arange(self.groups[-1].end, device=self.device)
        seen: Tensor = self.sees(window)(row[queries, None], row[None, keys])
        return seen[None, None]

    def block_mask(self, window: int | None) -> Any:
        """Write the rule down for flex attention."""
        from torch.nn.attention.flex_attention import create_block_mask

        rule, length = self.sees(window), self.groups[-1].end

        def sees(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            seen: Tensor = rule(query, key)
            return seen

        return self._once(
            ("flex", window),
            lambda: create_block_mask(sees, None, None, length, length, self.device.type),
        )

    def lengths(self) -> dict[str, Any]:
        """Name the samples of a row without sharing for variable-length attention.

        Raises:
            ValueError: it shares, or images see themselves.
        """
        if any(group.branch_starts for group in self.groups):
            raise ValueError("flash attention 2 has no form for shared rows; use blocks or flex")
        if self.images is not None and self.image_sight != "causal":
            raise ValueError("flash attention 2 has no form for images that see themselves")
        ends = [0, *(group.end for group in self.groups)]
        longest = max(end - start for start, end in pairwise(ends))
        cut = torch.tensor(ends, dtype=torch.int32, device=self.device)
        return {
            "cu_seq_lens_q": cut,
            "cu_seq_lens_k": cut,
            "max_length_q": longest,
            "max_length_k": longest,
        }

    def prefix_mask(self, group: GroupSpan, window: int | None) -> Tensor | None:
        """Who a prefix sees in itself; none: what came before, and nothing else is to be said."""
        size = group.prefix_end - group.start
        if not self._is_mutual(window) and (window is None or window >= size):
            return None
        prefix = slice(group.start, group.prefix_end)
        return self.square(window, prefix, prefix)

    def branch_mask(self, group: GroupSpan, window: int | None) -> Tensor:
        """Who the branches of a group see, (1, 1, branch tokens, group tokens), bool."""
        farthest = max(end - start for start, end in group.branches)
        if window is not None and window >= group.prefix_end - group.start + farthest:
            window = None if self.image_sight != "mutual_in_windows" else window
        return self.square(
            window, slice(group.prefix_end, group.end), slice(group.start, group.end)
        )

    def _once(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]


def token_places(
    groups: tuple[GroupSpan, ...], device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Name the group and the branch of each token, and its place in its separate sample.

    Returns:
        owner, branch (0: the prefix), place: (length,), int32 each.
    """
    owners, branches, firsts, sizes = [], [], [], []
    for number, group in enumerate(groups):
        cuts = (group.start, group.prefix_end, *(end for _, end in group.branches))
        prefix = group.prefix_end - group.start
        for branch, (start, end) in enumerate(pairwise(cuts)):
            owners.append(number)
            branches.append(branch)
            firsts.append(start - (prefix if branch else 0))
            sizes.append(end - start)
    repeats = torch.tensor(sizes, device=device)
    whole = torch.tensor([owners, branches, firsts], dtype=torch.int32, device=device)
    owner, branch, first = whole.repeat_interleave(repeats, dim=1)
    row = torch.arange(groups[-1].end, dtype=torch.int32, device=device)
    return owner, branch, row - first


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
    pieces = []
    # Split, not sliced: the gradient of a slice is as long as the row, that of a split is not.
    sizes = [group.end - group.start for group in row.groups]
    per_group = zip(*(tensor.split(sizes, dim=2) for tensor in (query, key, value)), strict=True)
    for group, (queries, keys, values) in zip(row.groups, per_group, strict=True):
        prefix = group.prefix_end - group.start
        heads, tails = queries.split([prefix, queries.shape[2] - prefix], dim=2)
        seen = (keys[:, :, :prefix], values[:, :, :prefix])
        mask = row.prefix_mask(group, window)
        pieces.append(_attend_with_mask(module, heads, *seen, mask=mask, **arguments))
        if group.branch_starts:
            mask = row.branch_mask(group, window)
            pieces.append(_attend_with_mask(module, tails, keys, values, mask=mask, **arguments))
    return torch.cat(pieces, dim=1)


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
