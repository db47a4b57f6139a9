"""Boxes written in a text -> the numbers that a model speaks of an image in, and back (pure)."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

BoxUnit = Literal["pixels", "thousandths"]
"""What the numbers of a data set's boxes count: pixels of the upright image, or thousandths of its
width and height."""

Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""

_NUMBER = r"(-?\d+(?:\.\d+)?)"
_COMMA = r"(\s*,\s*)"
BOX = re.compile(
    rf"(\[\s*){_NUMBER}{_COMMA}{_NUMBER}{_COMMA}{_NUMBER}{_COMMA}{_NUMBER}(\s*\])"
    rf"|(\(\s*){_NUMBER}{_COMMA}{_NUMBER}(\s*\)\s*,\s*\(\s*){_NUMBER}{_COMMA}{_NUMBER}(\s*\))"
)
"""`[x1, y1, x2, y2]`, also within JSON or other tags, and `(x1,y1),(x2,y2)`."""

SLACK = 1.0
"""By how much a box may lie outside its image, in its own unit: annotations are rounded."""


@dataclass(frozen=True)
class BoxFrame:
    """The numbers in which a model speaks of places in one image."""

    size: tuple[int, int]
    """Numbers from the image's left to its right edge, and from its top to its bottom."""

    corner: tuple[int, int] = (0, 0)
    """Numbers of its left and its top edge: of a border that is put around it."""

    canvas: tuple[int, int] | None = None
    """Numbers from edge to edge with such a border; none: there is none."""

    y_first: bool = False
    """Whether top and bottom stand before left and right."""

    @property
    def shown(self) -> tuple[int, int]:
        """Numbers from edge to edge of all that the model sees."""
        return self.canvas or self.size

    def shares(self, text: str) -> list[Box]:
        """Say at which share of what the model sees the boxes of its own text have their edges."""
        return box_shares([_ordered(box, self.y_first) for box in read_boxes(text)], self.shown)


THOUSANDTHS = BoxFrame((1000, 1000))
"""Thousandths of the image, whatever its size."""


@dataclass(frozen=True)
class BoxMap:
    """Moves the boxes of a text between what a person wrote and what a model speaks of."""

    frame: BoxFrame
    edges: tuple[float, float]
    """A person's numbers of the right and the bottom edge."""

    def to_model(self, text: str) -> str:
        """Write the boxes of a text as the model is to learn them; all else stays as it is.

        Raises:
            ValueError: a box is none, or does not lie in the image.
        """
        return _rewritten(text, self._to_model)

    def to_person(self, text: str) -> str:
        """Write the boxes of a model's text in a person's numbers, wherever they lie."""
        return _rewritten(text, self._to_person)

    def _to_model(self, written: Box) -> Box:
        self._check(written)
        values = [
            self.frame.corner[axis]
            + min(max(written[axis + end], 0), self.edges[axis])
            / self.edges[axis]
            * self.frame.size[axis]
            for end in (0, 2)
            for axis in (0, 1)
        ]
        return _ordered(values, self.frame.y_first)

    def _to_person(self, spoken: Box) -> Box:
        values = _ordered(spoken, self.frame.y_first)
        left, top, right, bottom = (
            (values[axis + end] - self.frame.corner[axis])
            / self.frame.size[axis]
            * self.edges[axis]
            for end in (0, 2)
            for axis in (0, 1)
        )
        return left, top, right, bottom

    def _check(self, written: Box) -> None:
        left, top, right, bottom = written
        width, height = self.edges
        inside = min(left, top) >= -SLACK and right <= width + SLACK and bottom <= height + SLACK
        if left < right and top < bottom and inside:
            return
        raise ValueError(
            f"box {list(map(_plain_number, written))} is none in an image of {width:g} x "
            f"{height:g}: write left, top, right, bottom, in the unit that data.boxes names"
        )


def _ordered(values: Sequence[float], y_first: bool) -> Box:
    one, two, three, four = values
    return (two, one, four, three) if y_first else (one, two, three, four)


def _rewritten(text: str, move: Callable[[Box], Box]) -> str:
    def moved(found: re.Match[str]) -> str:
        parts = [one for one in found.groups() if one is not None]
        numbers = move(_values(parts))
        parts[1::2] = [str(math.floor(number + 0.5)) for number in numbers]
        return "".join(parts)

    return BOX.sub(moved, text)


def _values(parts: Sequence[str]) -> Box:
    first, second, third, fourth = map(float, parts[1::2])
    return first, second, third, fourth


def _plain_number(value: float) -> int | float:
    return int(value) if value.is_integer() else value


def read_boxes(text: str) -> list[Box]:
    """Read the boxes of a text, in its order and its numbers."""
    found = ([one for one in each.groups() if one is not None] for each in BOX.finditer(text))
    return [_values(parts) for parts in found]


def box_edges(unit: BoxUnit, size: tuple[int, int]) -> tuple[float, float]:
    """Say what a person's numbers of the right and the bottom edge of an image are.

    Args:
        unit: that they count in.
        size: width and height of the upright image, pixels.
    """
    return (1000.0, 1000.0) if unit == "thousandths" else (float(size[0]), float(size[1]))


def box_shares(boxes: Sequence[Box], edges: tuple[float, float]) -> list[Box]:
    """Say at which share of width and height the edges of boxes stand; what lies outside is cut."""

    def share(value: float, axis: int) -> float:
        return min(max(value / edges[axis], 0.0), 1.0)

    return [
        (share(left, 0), share(top, 1), share(right, 0), share(bottom, 1))
        for left, top, right, bottom in boxes
    ]
