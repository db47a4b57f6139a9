"""Groups of a packed row -> who sees whom: one rule, and the masks that it makes."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor

from foveal.data.forward_inputs import GroupSpan

ImageSight = Literal["causal", "mutual", "mutual_in_windows"]
"""What the tokens of an image see of it: what came before, all of it, or all of it in those layers
that have a window."""


def is_mutual(sight: ImageSight, window: int | None) -> bool:
    """Tell whether the tokens of an image see each other in a layer with a window, or without."""
    return sight == "mutual" or (sight == "mutual_in_windows" and window is not None)


def are_near(places: Any, images: Any, window: int | None, query: Any, key: Any) -> Any:
    """Tell whether tokens of one sequence see each other: the rule of training and of decoding.

    Args:
        places: (tokens,), of each in its own sequence; a tensor or an array.
        images: (tokens,), number of the image whose feature each takes, -1 for words; none: images
            are read as words are.
        window: farthest place that is seen, counted back; none: all.
        query: which tokens look.
        key: which are looked at.
    """
    distance = places[query] - places[key]
    near = distance >= 0
    if images is not None:
        near = near | ((images[query] == images[key]) & (images[key] >= 0))
    return near if window is None else near & (distance < window)


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
            in_branch = (branch[key] == 0) | (branch[key] == branch[query])
            near = are_near(place, images, window, query, key)
            return near & (owner[key] == owner[query]) & in_branch

        return rule

    def _is_mutual(self, window: int | None) -> bool:
        return self.images is not None and is_mutual(self.image_sight, window)

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
