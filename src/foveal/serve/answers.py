"""Tokens one at a time -> what can be sent: never half a character, never past a stop."""

import re
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from openai.types.chat import ChatCompletionTokenLogprob
from openai.types.chat.chat_completion_chunk import Choice, ChoiceDelta
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


@dataclass
class _Said:
    token: Token
    raw: bytes
    """That it stands for."""

    width: int | None = None
    """Bytes of the text that it fills; none: not yet known."""


class GrowingAnswer:
    """One answer as it grows; all pieces of its text joined are the whole, stripped.

    Not the library's own DecodeStream: it raises where a byte makes the bytes before it invalid,
    as a model may well write.

    Args:
        tokenizer: of the `tokenizers` library.
        stops: texts that end an answer and do not belong to it.
        boxes: what moves its boxes into the asker's numbers; none: it can hold none.
        index: its place among the answers to one request.
    """

    def __init__(
        self,
        tokenizer: Any,
        stops: Sequence[str] = (),
        boxes: BoxMap | None = None,
        index: int = 0,
    ) -> None:
        self._tokenizer = tokenizer
        self._stops = tuple(stops)
        self._boxes = MovedBoxes(boxes)
        self._index = index
        self._anchor = tuple(tokenizer.encode(ANCHOR, add_special_tokens=False).ids)
        self._special = special_ids(tokenizer)
        self._text = ""
        self._dropped = 0
        """Spaces in front that belong to the first token, not to the text."""

        self._begin = self._sent = 0
        """From which character to which the text was sent."""

        self._unsettled: deque[_Said] = deque()
        """Tokens of which is still to be said what they brought."""

        self._settled = 0
        """Bytes of the text before the first of them."""

        self.stopped = False
        """Whether a stop has been met."""

        self.has_ended = False

    def grow(self, token: Token) -> Choice:
        """Take the next token; returns what is certain by now and was not said before."""
        grown = "" if token.finish == "stop" else self.add(token)
        finish = "stop" if self.stopped else token.finish
        if finish:
            grown += self.finish()
            finish = "stop" if self.stopped else finish
        numbers = self.numbers()
        grown = self._boxes.add(grown, is_last=self.has_ended)
        return Choice(
            index=self._index,
            delta=ChoiceDelta(content=grown) if grown or numbers else ChoiceDelta(),
            logprobs=as_logprobs(numbers) if numbers else None,
            finish_reason=finish,
        )

    def add(self, token: Token) -> str:
        """Take a token; returns the text that is certain by now and was not returned before."""
        if self.stopped or token.id in self._special:
            self._unsettled.append(_Said(token, b"", 0))
            return ""
        self._unsettled.append(_Said(token, token_bytes(self._tokenizer, token.id)))
        # Bytes are read together: whether they are characters shows once they have ended.
        if BYTE.fullmatch(self._tokenizer.id_to_token(token.id)):
            return ""
        pending = self._pending()
        piece = self._decode([one.token.id for one in pending])
        if piece.endswith(HALF_A_CHARACTER):
            return ""
        self._grow(piece, pending)
        return self._take(len(self._text) - (0 if self.stopped else self._half_a_stop()))

    def finish(self) -> str:
        """Return what is left once the answer has ended."""
        if not self.stopped:
            pending = self._pending()
            ids, piece = whole_characters([one.token.id for one in pending], self._decode)
            self._grow(piece, pending[: len(ids)])
        self.has_ended = True
        return self._take(len(self._text))

    def numbers(self) -> list[ChatCompletionTokenLogprob]:
        """Name the next tokens that have numbers, each as soon as its text is sent, not before."""
        named = []
        start, end = (len(self._text[:at].encode()) for at in (self._begin, self._sent))
        while self._unsettled:
            one = self._unsettled[0]
            width = one.width or 0
            is_sent = one.width is not None and self._settled + width <= end
            if not is_sent and not self.has_ended:
                break
            self._unsettled.popleft()
            first, last = (max(0, min(width, edge - self._settled)) for edge in (start, end))
            # Bytes that are no characters fill another width: they are sent whole or not at all.
            whole = width != len(one.raw) and last > first
            brought = one.raw if whole else one.raw[first:last]
            if one.token.logprob is not None:
                begins = self._settled <= start
                named.append(name_logprobs(one.token, brought, begins, self._tokenizer))
            self._settled += width
        return named

    def _pending(self) -> list[_Said]:
        """List the tokens that are not yet text."""
        return [one for one in self._unsettled if one.width is None]

    def _decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode([*self._anchor, *ids])
        return text.removeprefix(ANCHOR)

    def _grow(self, piece: str, said: Sequence[_Said]) -> None:
        """Add what some tokens say, and cut the text at the first stop that ends within it."""
        if not self._text:
            alone = self._tokenizer.decode([one.token.id for one in said])
            self._dropped = len(piece) - len(alone)
        _measure(piece, said)
        longest = max(map(len, self._stops), default=0)
        start = max(self._dropped, len(self._text) - longest + 1)
        self._text += piece
        found = [place for stop in self._stops if (place := self._text.find(stop, start)) >= 0]
        if found:
            self._text = self._text[: min(found)]
            self.stopped = True

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
        self._begin, self._sent = self._begin if self._sent else start, end
        return self._text[start:end]


def _measure(piece: str, said: Sequence[_Said]) -> None:
    """Find which part of a piece each of its tokens fills."""
    for one in said:
        one.width = len(one.raw)
    length = len(piece.encode())
    if said and sum(len(one.raw) for one in said) != length:  # bytes without a meaning
        for one in said:
            usual = len(HALF_A_CHARACTER.encode()) if len(one.raw) == 1 else len(one.raw)
            one.width = min(usual, length)
            length -= one.width
        said[-1].width = (said[-1].width or 0) + length


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


def name_logprobs(
    token: Token, brought: bytes, begins: bool, tokenizer: Any
) -> ChatCompletionTokenLogprob:
    """Name a token that has a log-probability, and the likeliest ones in its place, as OpenAI does.

    Args:
        token: with its numbers.
        brought: its bytes of the text that is sent.
        begins: whether nothing of the text stands before it.
        tokenizer: of the `tokenizers` library.
    """
    ranked = ((token.id, token.logprob or 0.0), *token.likeliest)
    own, *likeliest = (_named(tokenizer, *one, begins=begins) for one in ranked)
    named = own.model_dump() | {"bytes": list(brought)}
    return ChatCompletionTokenLogprob(**named, top_logprobs=likeliest)


def _named(tokenizer: Any, token: int, logprob: float, begins: bool) -> TopLogprob:
    """Name a token; where the text begins, the space before its first word is not said."""
    written, name = token_bytes(tokenizer, token), str(tokenizer.id_to_token(token))
    if not BYTE.fullmatch(name):
        name = written.decode(errors="replace")
        if begins:
            name, written = name.lstrip(), written.lstrip()
    return TopLogprob(token=name, logprob=max(logprob, LEAST), bytes=list(written))


def as_logprobs(numbers: Sequence[Any]) -> Any:
    """Write log-probabilities for a choice or a piece of one, which have classes of their own."""
    return {"content": list(numbers), "refusal": None}
