"""Group -> which stretches of a packed row are prefixes and which are branches (pure)."""

from dataclasses import dataclass


@dataclass(frozen=True)
class GroupSpan:
    """Where one group stands in a row: a prefix, then its branches.

    A branch sees the prefix and itself, never a sibling; nothing sees another group.
    """

    start: int
    """First token of the prefix."""

    branch_starts: tuple[int, ...]
    """First token of each branch; empty: a single example, all of it prefix."""

    end: int
    """One past the last token of the group."""

    @property
    def prefix_end(self) -> int:
        """One past the last token of the prefix."""
        return self.branch_starts[0] if self.branch_starts else self.end

    @property
    def branches(self) -> tuple[tuple[int, int], ...]:
        """(start, end) of each branch."""
        return tuple(zip(self.branch_starts, (*self.branch_starts[1:], self.end), strict=False))
