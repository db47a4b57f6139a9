"""Text of an answer as it grows -> the same with its boxes in the numbers of the asker's image."""

import re

from foveal.data.images.boxes import BoxMap

_MAY_BE_BOX = re.compile(r"[\[(][-\d\s.,()]{0,120}$")
"""The end of a text that may grow into a box; what is longer is none."""


class MovedBoxes:
    """Moves the boxes of one answer; what may yet become a box is held back until it is known."""

    def __init__(self, boxes: BoxMap | None) -> None:
        """Begin an answer; none: it can hold no box, and passes as it is."""
        self._boxes = boxes
        self._held = ""

    def add(self, piece: str, is_last: bool) -> str:
        """Take what the model's text has grown by; returns what is certain by now."""
        if self._boxes is None:
            return piece
        text = self._held + piece
        found = None if is_last else _MAY_BE_BOX.search(text)
        certain = found.start() if found else len(text)
        self._held = text[certain:]
        return self._boxes.to_person(text[:certain])
