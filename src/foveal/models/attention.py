"""Groups of a packed row -> who sees whom, in the form that each kind of attention wants.

One rule, four forms: a token sees what stands before it in its own prefix and its own branch.
`blocks` never builds the square of the whole row: it calls attention once for each prefix (causal)
and once for the branches behind it, whose mask is small.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from foveal.data.layout import GroupSpan

BLOCKS = "foveal_blocks"
"""Name under which `blocks` is registered with transformers."""

FASTEST: dict[str, Literal["blocks", "flex"]] = {"cuda": "flex", "cpu": "blocks"}
"""Kind of device -> what `attention: auto` takes there. That of CUDA has not been measured yet:
`python benchmarks/on_gpu choice` measures it and names the word that belongs here."""


@dataclass(frozen=True)
class RowAttention:
    """What the decoder layers are handed for one row."""

    mask: Any = None
    """(1, 1, length, length) tensor, a flex block mask, or none."""

    arguments: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the attention call."""


def row_attention(
    groups: tuple[GroupSpan, ...], implementation: str, dtype: torch.dtype, device: torch.device
) -> RowAttention:
    """Say who sees whom in a row, for one kind of attention.

    Args:
        groups: cover the row from its first to its last token.
        implementation: transformers' name of the attention, or `BLOCKS`.
        dtype: of the hidden states.
        device: of the hidden states.

    Raises:
        ValueError: the kind cannot express this row.
    """
    if implementation == BLOCKS:
        masks = tuple(
            branch_mask(group, device) if group.branch_starts else None for group in groups
        )
        return RowAttention(arguments={"groups": groups, "branch_masks": masks})
    if implementation == "flash_attention_2":
        return _variable_lengths(groups, device)
    owner, branch = token_places(groups, device)
    if implementation == "flex_attention":
        from torch.nn.attention.flex_attention import create_block_mask

        length = len(owner)

        def sees(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            in_branch = (branch[key] == 0) | (branch[key] == branch[query])
            return (query >= key) & (owner[key] == owner[query]) & in_branch

        return RowAttention(create_block_mask(sees, None, None, length, length, device.type))
    mask = visible(owner, branch)[None, None]
    if implementation == "eager":  # adds its mask to the scores
        hidden = torch.zeros(mask.shape, dtype=dtype, device=device)
        return RowAttention(hidden.masked_fill(~mask, torch.finfo(dtype).min))
    if implementation == "sdpa":
        return RowAttention(mask)
    raise ValueError(f"no packed rows with attention {implementation!r}")


def token_places(groups: tuple[GroupSpan, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Name the group and the branch of each token; branch 0 is the prefix.

    Returns:
        owner, branch: (length,), int32 each.
    """
    owners, branches, sizes = [], [], []
    for number, group in enumerate(groups):
        cuts = (group.start, group.prefix_end, *(end for _, end in group.branches))
        for branch, (start, end) in enumerate(pairwise(cuts)):
            owners.append(number)
            branches.append(branch)
            sizes.append(end - start)
    repeats = torch.tensor(sizes, device=device)
    whole = torch.tensor([owners, branches], dtype=torch.int32, device=device)
    owner_of_token, branch_of_token = whole.repeat_interleave(repeats, dim=1)
    return owner_of_token, branch_of_token


def visible(owner: Tensor, branch: Tensor) -> Tensor:
    """Whole square of who (row) sees whom (column), (length, length), bool."""
    same_group = owner[:, None] == owner[None, :]
    same_branch = (branch[None, :] == 0) | (branch[:, None] == branch[None, :])
    return (same_group & same_branch).tril()


def branch_mask(group: GroupSpan, device: torch.device) -> Tensor:
    """Who the branches of one group see: (1, 1, branch tokens, group tokens), bool."""
    moved = GroupSpan(
        0, tuple(s - group.start for s in group.branch_starts), group.end - group.start
    )
    owner, branch = token_places((moved,), device)
    return visible(owner, branch)[moved.prefix_end :][None, None]


def _variable_lengths(groups: tuple[GroupSpan, ...], device: torch.device) -> RowAttention:
    if any(group.branch_starts for group in groups):
        raise ValueError("flash attention 2 has no form for shared rows; use blocks or flex")
    ends = torch.tensor([0, *(g.end for g in groups)], dtype=torch.int32, device=device)
    longest = max(group.end - group.start for group in groups)
    lengths = {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends}
    return RowAttention(arguments={**lengths, "max_length_q": longest, "max_length_k": longest})


def blocks_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    groups: tuple[GroupSpan, ...] | None = None,
    branch_masks: tuple[Tensor | None, ...] = (),
    **arguments: Any,
) -> tuple[Tensor, None]:
    """Attend within each group of a row; a batch without groups goes to plain SDPA.

    Args:
        module: the attention layer, as transformers hands it over.
        query: (1, heads, length, head size).
        key: (1, key heads, length, head size).
        value: (1, key heads, length, head size).
        attention_mask: of a batch without groups.
        groups: cover the row; none: an ordinary batch.
        branch_masks: of each group, see `branch_mask`.
        arguments: dropout and scaling, handed on.

    Returns:
        (1, length, heads, head size), and no weights.
    """
    attend: Callable[..., tuple[Tensor, None]] = sdpa_attention_forward
    if groups is None:
        return attend(module, query, key, value, attention_mask, **arguments)
    pieces = []
    # Split, not sliced: the gradient of a slice is as long as the row, that of a split is not.
    sizes = [group.end - group.start for group in groups]
    per_group = zip(*(tensor.split(sizes, dim=2) for tensor in (query, key, value)), strict=True)
    for group, mask, (queries, keys, values) in zip(groups, branch_masks, per_group, strict=True):
        prefix = group.prefix_end - group.start
        heads, tails = queries.split([prefix, queries.shape[2] - prefix], dim=2)
        seen = (keys[:, :, :prefix], values[:, :, :prefix])
        pieces.append(attend(module, heads, *seen, None, is_causal=True, **arguments)[0])
        if mask is not None:
            pieces.append(attend(module, tails, keys, values, mask, **arguments)[0])
    return torch.cat(pieces, dim=1), None


AttentionInterface.register(BLOCKS, blocks_attention_forward)
AttentionMaskInterface.register(BLOCKS, sdpa_mask)


def choose_attention(name: str) -> dict[str, str]:
    """Name the attention of the decoder and of the towers below it, as transformers takes them.

    Args:
        name: the recipe's setting; "auto" is the `FASTEST` of this machine.
    """
    if name == "auto":
        name = FASTEST["cuda" if torch.cuda.is_available() else "cpu"]
    own = {"blocks": BLOCKS, "flex": "flex_attention"}.get(name, name)
    tower = "eager" if name == "eager" else "sdpa"
    return {"": own, "vision_config": tower}
