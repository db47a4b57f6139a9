"""Tokens one at a time -> text that can be sent: never half a character, never past a stop."""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

ANCHOR = "a"
"""Text before a piece when it is decoded: decoders drop the space in front of a first token."""

BYTE = re.compile(r"<0x[0-9A-F]{2}>")
"""A token that stands for one byte."""

HALF_A_CHARACTER = "\N{REPLACEMENT CHARACTER}"


class AnswerText:
    """The text of one answer as it grows; all pieces joined are the whole answer, stripped.

    Not the library's own DecodeStream: it raises where a byte makes the bytes before it invalid,
    as a model may well write.

    Args:
        tokenizer: of the `tokenizers` library.
        stops: texts that end an answer and do not belong to it.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stops = tuple(stops)
        self._anchor = tuple(tokenizer.encode(ANCHOR, add_special_tokens=False).ids)
        self._special = special_ids(tokenizer)
        self._pending: list[int] = []
        self._text = ""
        self._sent = 0
        self.stopped = False
        """Whether a stop has been met."""

    def add(self, token: int) -> str:
        """Take a token; returns the text that is certain by now and was not returned before."""
        if self.stopped or token in self._special:
            return ""
        self._pending.append(token)
        # Bytes are read together: whether they are characters shows once they have ended.
        if BYTE.fullmatch(self._tokenizer.id_to_token(token)):
            return ""
        piece = self._decode()
        if piece.endswith(HALF_A_CHARACTER):
            return ""
        self._grow(piece)
        return self._take(len(self._text) - (0 if self.stopped else self._half_a_stop()))

    def finish(self) -> str:
        """Return what is left once the answer has ended."""
        if not self.stopped:
            self._grow(self._decode())
        return self._take(len(self._text))

    def _decode(self) -> str:
        text: str = self._tokenizer.decode([*self._anchor, *self._pending])
        return text.removeprefix(ANCHOR)

    def _grow(self, piece: str) -> None:
        """Add a piece, and cut the text at the first stop that ends within it."""
        self._pending.clear()
        longest = max(map(len, self._stops), default=0)
        start = max(0, len(self._text) - longest + 1)
        self._text += piece
        found = [place for stop in self._stops if (place := self._text.find(stop, start)) >= 0]
        if found:
            self._text = self._text[: min(found)]
            self.stopped = True

    def _half_a_stop(self) -> int:
        """Count the characters at the end that may be the beginning of a stop."""
        longest = max(map(len, self._stops), default=1) - 1
        for length in range(min(longest, len(self._text)), 0, -1):
            if any(
                self._text.endswith(stop[:length]) for stop in self._stops if length < len(stop)
            ):
                return length
        return 0

    def _take(self, end: int) -> str:
        """Return the unsent text up to a place, space at the answer's own ends left out."""
        end = len(self._text[:end].rstrip())
        start = self._sent or len(self._text) - len(self._text.lstrip())
        if end <= start:
            return ""
        self._sent = end
        return self._text[start:end]


@lru_cache(maxsize=8)
def special_ids(tokenizer: Any) -> frozenset[int]:
    """Find the ids of tokens that are no text."""
    return frozenset(
        one for one, added in tokenizer.get_added_tokens_decoder().items() if added.special
    )
