"""Tokens one at a time -> text that can be sent: never half a character, never past a stop."""

import re
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from openai.types.chat import ChatCompletionTokenLogprob
from openai.types.chat.chat_completion_token_logprob import TopLogprob

from foveal.data.images.boxes import BoxMap
from foveal.models.generation.characters import (
    BYTE,
    HALF_A_CHARACTER,
    token_bytes,
    whole_characters,
)
from foveal.models.generation.generator import Token

ANCHOR = "a"
"""Text before a piece when it is decoded: decoders drop the space in front of a first token."""

LEAST = -9999.0
"""Stands for minus infinity, which JSON does not know."""

_MAY_BE_BOX = re.compile(r"[\[(][-\d\s.,()]{0,120}$")
"""The end of a text that may grow into a box; what is longer is none."""


@dataclass(frozen=True)
class TokenText:
    """What one token has brought to the text that is sent."""

    bytes: bytes

    begins: bool
    """Whether nothing of the text stands before it."""


@dataclass
class _Part:
    raw: bytes
    width: int | None = None
    """Bytes of the text that it fills; none: not yet known."""


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
        self._dropped = 0
        """Spaces in front that belong to the first token, not to the text."""

        self._sent = 0
        self._shown = 0, 0
        """From which byte to which the text was sent."""

        self._unsettled: deque[_Part] = deque()
        self._settled = 0
        """Bytes of the text before the first unsettled token."""

        self._ended = False
        self.stopped = False
        """Whether a stop has been met."""

    def add(self, token: int) -> str:
        """Take a token; returns the text that is certain by now and was not returned before."""
        if self.stopped or token in self._special:
            self._unsettled.append(_Part(b"", 0))
            return ""
        self._pending.append(token)
        self._unsettled.append(_Part(token_bytes(self._tokenizer, token)))
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
            piece = self._decode()
            if piece.endswith(HALF_A_CHARACTER):
                self._pending, piece = whole_characters(self._pending, self._decode_behind)
            self._grow(piece)
        self._ended = True
        return self._take(len(self._text))

    def settled(self) -> list[TokenText]:
        """Say of the next tokens what each has brought, as soon as its text is sent."""
        shares = []
        start, end = self._shown
        while self._unsettled:
            part = self._unsettled[0]
            width = part.width or 0
            is_sent = part.width is not None and self._settled + width <= end
            if not is_sent and not self._ended:
                break
            self._unsettled.popleft()
            first, last = (max(0, min(width, edge - self._settled)) for edge in (start, end))
            # Bytes that are no characters fill another width: they are sent whole or not at all.
            whole = width != len(part.raw) and last > first
            shares.append(
                TokenText(part.raw if whole else part.raw[first:last], self._settled <= start)
            )
            self._settled += width
        return shares

    def _decode(self) -> str:
        return self._decode_behind(self._pending)

    def _decode_behind(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode([*self._anchor, *ids])
        return text.removeprefix(ANCHOR)

    def _grow(self, piece: str) -> None:
        """Add a piece, and cut the text at the first stop that ends within it."""
        if not self._text:
            self._dropped = len(piece) - len(self._tokenizer.decode(self._pending))
        self._measure(piece)
        self._pending = []
        longest = max(map(len, self._stops), default=0)
        start = max(self._dropped, len(self._text) - longest + 1)
        self._text += piece
        found = [place for stop in self._stops if (place := self._text.find(stop, start)) >= 0]
        if found:
            self._text = self._text[: min(found)]
            self.stopped = True

    def _measure(self, piece: str) -> None:
        """Find which part of a piece each of its tokens fills."""
        parts = [part for part in self._unsettled if part.width is None][: len(self._pending)]
        for part in parts:
            part.width = len(part.raw)
        length = len(piece.encode())
        if parts and sum(len(part.raw) for part in parts) != length:  # bytes without a meaning
            for part in parts:
                one = len(HALF_A_CHARACTER.encode()) if len(part.raw) == 1 else len(part.raw)
                part.width = min(one, length)
                length -= part.width
            parts[-1].width = (parts[-1].width or 0) + length

    def _half_a_stop(self) -> int:
        """Count the characters at the end that may be the beginning of a stop."""
        longest = max(map(len, self._stops), default=1) - 1
        for length in range(min(longest, len(self._text) - self._dropped), 0, -1):
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
        piece = self._text[start:end]
        first, last = self._shown if self._sent else (len(self._text[:start].encode()),) * 2
        self._shown = first, last + len(piece.encode())
        self._sent = end
        return piece


@lru_cache(maxsize=8)
def special_ids(tokenizer: Any) -> frozenset[int]:
    """Find the ids of tokens that are no text."""
    return frozenset(
        one for one, added in tokenizer.get_added_tokens_decoder().items() if added.special
    )


class MovedBoxes:
    """Moves the boxes of one answer's text; what may yet become one is held back until it is known.

    Args:
        boxes: into the numbers of the asker's image; none: it can hold no box, and passes as it is.
    """

    def __init__(self, boxes: BoxMap | None) -> None:
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


def name_logprobs(token: Token, text: TokenText, tokenizer: Any) -> ChatCompletionTokenLogprob:
    """Name a token that has a log-probability, and the likeliest ones in its place, as OpenAI does.

    Args:
        token: with its numbers.
        text: that it brought, whose bytes are its own.
        tokenizer: of the `tokenizers` library.
    """
    ranked = ((token.id, token.logprob or 0.0), *token.likeliest)
    own, *likeliest = (_named(tokenizer, *one, begins=text.begins) for one in ranked)
    named = own.model_dump() | {"bytes": list(text.bytes)}
    return ChatCompletionTokenLogprob(**named, top_logprobs=likeliest)


def _named(tokenizer: Any, token: int, logprob: float, begins: bool) -> TopLogprob:
    """Name a token; where the text begins, the space before its first word is not said."""
    written, name = token_bytes(tokenizer, token), str(tokenizer.id_to_token(token))
    if not BYTE.fullmatch(name):
        name = written.decode(errors="replace")
        if begins:
            name, written = name.lstrip(), written.lstrip()
    return TopLogprob(token=name, logprob=max(logprob, LEAST), bytes=list(written))
