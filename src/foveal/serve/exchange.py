"""A request that was read -> its answers as text, whole or as they grow, up to its end."""

import asyncio
import json
import re
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar
from uuid import uuid4

from openai.types import CompletionUsage
from openai.types.chat import (
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionMessage,
    ChatCompletionTokenLogprob,
    chat_completion,
)
from openai.types.chat.chat_completion_chunk import Choice, ChoiceDelta, ChoiceLogprobs
from openai.types.chat.chat_completion_token_logprob import TopLogprob
from openai.types.completion_usage import PromptTokensDetails
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from foveal.data.images.boxes import BoxMap
from foveal.models.generation.characters import (
    BYTE,
    HALF_A_CHARACTER,
    token_bytes,
    whole_characters,
)
from foveal.models.generation.generator import Token
from foveal.serve.limits import RequestError
from foveal.serve.scheduler import Event, Job
from foveal.serve.served import Admitted, Endpoint

CLIENT_LEFT = 499
"""Status, in our own measures alone, of a request whose client did not wait."""

ANCHOR = "a"
"""Text before a piece when it is decoded: decoders drop the space in front of a first token."""

LEAST = -9999.0
"""Stands for minus infinity, which JSON does not know."""

Result = TypeVar("Result")

_MAY_BE_BOX = re.compile(r"[\[(][-\d\s.,()]{0,120}$")
"""The end of a text that may grow into a box; what is longer is none."""


class Exchange:
    """One request that has a place and was read: its answers as they come."""

    def __init__(self, endpoint: Endpoint, admitted: Admitted) -> None:
        self.endpoint = endpoint
        self.asked = admitted.asked
        self.answers = [
            GrowingAnswer(admitted.served.tokenizer, self.asked.stop, admitted.boxes, index)
            for index in range(len(admitted.requests))
        ]
        self.head: dict[str, Any] = {
            "id": f"chatcmpl-{uuid4().hex}",
            "created": int(time.time()),
            "model": admitted.served.name,
            "system_fingerprint": None,
        }
        """What stands in front of an answer, and of each of its pieces."""

        self._job = Job(admitted.served.name, admitted.requests)
        self._arrived = admitted.arrived
        self._answer_tokens = 0
        self._is_closed = False

    @property
    def usage(self) -> CompletionUsage:
        """Count its tokens so far."""
        prompt = self._job.requests[0].prompt
        images = (prompt.images[-1 - one] for one in prompt.entries if one < 0)
        return CompletionUsage(
            prompt_tokens=prompt.tokens,
            completion_tokens=self._answer_tokens,
            total_tokens=prompt.tokens + self._answer_tokens,
            prompt_tokens_details=PromptTokensDetails(
                image_tokens=sum(image.shape.tokens for image in images)
            ),
        )

    async def chunks(self) -> AsyncIterator[Choice]:
        """Run the job and yield what its answers grow by; what ends by itself is closed then.

        Raises:
            RequestError: the model failed, or took too long.
        """
        self.endpoint.scheduler.submit(self._job)
        deadline = asyncio.get_running_loop().time() + self.endpoint.limits.answer_seconds
        while not all(answer.has_ended for answer in self.answers):
            event = await self._next(deadline)
            if isinstance(event, RequestError):
                self.close(event.status)
                raise event
            if not self._answer_tokens:
                first = self.endpoint.measures.first_token_seconds.labels(self._job.model)
                first.observe(self._age())
            choice, token = event
            answer = self.answers[choice]
            if answer.has_ended:
                continue  # a stop was met while this token was on its way
            self._answer_tokens += 1
            chunk = answer.grow(token)
            if answer.has_ended and not token.finish:
                self.endpoint.scheduler.cancel(self._job, choice)
            if chunk.delta.content or chunk.logprobs or chunk.finish_reason:
                yield chunk
        self.close(200)

    async def _next(self, deadline: float) -> Event:
        try:
            async with asyncio.timeout_at(deadline):
                return await self._job.events.get()
        except TimeoutError:
            seconds = self.endpoint.limits.answer_seconds
            return RequestError(503, f"no whole answer within {seconds:g} seconds", "too_slow")

    def close(self, status: int) -> None:
        """End it: what still runs is given up. The first call counts, others are passed over."""
        if self._is_closed:
            return
        self._is_closed = True
        self.endpoint.scheduler.cancel(self._job)
        self.endpoint.admission.release(self._age())
        name, measures, usage = self._job.model, self.endpoint.measures, self.usage
        measures.requests.labels(name, status).inc()
        measures.prompt_tokens.labels(name).inc(usage.prompt_tokens)
        measures.answer_tokens.labels(name).inc(usage.completion_tokens)
        measures.request_seconds.labels(name).observe(self._age())

    def _age(self) -> float:
        return time.monotonic() - self._arrived


async def while_waited_for(request: Request, work: Awaitable[Result]) -> Result:
    """Do work for a client, whose body is read, as long as it stays.

    What runs on a thread would go on there: it is none for this.

    Raises:
        ClientDisconnect: it has gone; the work was cancelled.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_until_gone(request))
    leaving.add_done_callback(lambda _: working.cancel())
    try:
        return await working
    except asyncio.CancelledError:
        if leaving.done():
            raise ClientDisconnect from None
        raise
    finally:
        leaving.cancel()


async def _until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def answer_whole(request: Request, exchange: Exchange) -> Response:
    """Answer at once, and end the exchange however that ends.

    Raises:
        RequestError: there is no answer.
        ClientDisconnect: nobody waits for it any more.
    """
    try:
        completion = await while_waited_for(request, _complete(exchange))
    finally:
        exchange.close(CLIENT_LEFT)
    return JSONResponse(completion.model_dump(exclude_unset=True))


async def _complete(exchange: Exchange) -> ChatCompletion:
    """Wait for the whole answer; what it leaves unset is not said."""
    choices = []
    chunks = [chunk async for chunk in exchange.chunks()]
    for index in range(len(exchange.answers)):
        mine = [chunk for chunk in chunks if chunk.index == index]
        text = "".join(chunk.delta.content or "" for chunk in mine)
        named = [one for chunk in mine if chunk.logprobs for one in chunk.logprobs.content or ()]
        numbers = chat_completion.ChoiceLogprobs(content=named, refusal=None)
        choices.append(
            chat_completion.Choice(
                index=index,
                message=ChatCompletionMessage(role="assistant", content=text, refusal=None),
                logprobs=numbers if exchange.asked.logprobs else None,
                finish_reason=mine[-1].finish_reason or "length",
            )
        )
    usage = exchange.usage
    return ChatCompletion(**exchange.head, object="chat.completion", choices=choices, usage=usage)


class EventStream(StreamingResponse):
    """Sends the events of an exchange, and ends it however the sending ends."""

    media_type = "text/event-stream"

    def __init__(self, exchange: Exchange) -> None:
        super().__init__(_events(exchange))
        self._exchange = exchange

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it; from a client that does not read, the connection is cut in the end."""
        try:
            with suppress(TimeoutError):  # nothing can be said any more
                async with asyncio.timeout(self._exchange.endpoint.limits.answer_seconds):
                    await super().__call__(scope, receive, send)
        finally:
            self._exchange.close(CLIENT_LEFT)


async def _events(exchange: Exchange) -> AsyncIterator[str]:
    """Write the answers as server-sent events while they grow."""
    options = exchange.asked.stream_options
    with_usage = options is not None and options.include_usage

    def event(*choices: Choice, usage: CompletionUsage | None = None) -> str:
        head = exchange.head | ({"usage": usage} if with_usage else {})
        chunk = ChatCompletionChunk(**head, object="chat.completion.chunk", choices=list(choices))
        return f"data: {json.dumps(chunk.model_dump(exclude_unset=True))}\n\n"

    for index in range(len(exchange.answers)):
        begun = ChoiceDelta(role="assistant", content="")
        yield event(Choice(index=index, delta=begun, logprobs=None, finish_reason=None))
    try:
        async for chunk in exchange.chunks():
            yield event(chunk)
    except RequestError as problem:
        yield f"data: {json.dumps(problem.body())}\n\n"
        return
    if with_usage:
        yield event(usage=exchange.usage)
    yield "data: [DONE]\n\n"


class _Placed(NamedTuple):
    """A token that was read, the bytes that it stands for, and where they begin in the text."""

    token: Token
    raw: bytes
    at: int


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
        self._stops = stops
        self._boxes = boxes
        self._index = index
        self._anchor = tokenizer.encode(ANCHOR, add_special_tokens=False).ids
        self._unread: list[tuple[Token, bytes]] = []
        """Tokens that are not yet text, and the bytes that they stand for."""

        self._text = self._may_be_box = ""
        """What was read and may be a stop; what is none and may be a box."""

        self._unnamed: deque[_Placed] = deque()
        self._read_bytes = self._begin = self._end = 0
        """Of the text: how much was read; from where to where it is sent."""

        self.has_ended = False

    def grow(self, token: Token) -> Choice:
        """Take the next token; returns what is certain by now and was not said before."""
        has_met_stop, raw = False, self._bytes_of(token.id)
        if token.finish != "stop":  # the token that ends an answer is none of it
            self._unread.append((token, raw))
        # Bytes are read together: whether they are characters shows once they have ended.
        if token.finish or (raw and not BYTE.fullmatch(self._tokenizer.id_to_token(token.id))):
            has_met_stop = self._read(is_last=token.finish is not None)
        self.has_ended = has_met_stop or token.finish is not None
        certain = self._take(0 if self.has_ended else self._half_a_stop())
        grown, self._may_be_box = move_boxes(
            self._may_be_box + certain, self._boxes, self.has_ended
        )
        numbers = self._name()
        return Choice(
            index=self._index,
            delta=ChoiceDelta(content=grown) if grown or numbers else ChoiceDelta(),
            logprobs=ChoiceLogprobs(content=numbers, refusal=None) if numbers else None,
            finish_reason="stop" if has_met_stop else token.finish,
        )

    def _bytes_of(self, token: int) -> bytes:
        """Say which bytes a token stands for: none, where no decoder shows it."""
        is_shown = self._tokenizer.decode([*self._anchor, token]) != ANCHOR
        return token_bytes(self._tokenizer, token) if is_shown else b""

    def _read(self, is_last: bool) -> bool:
        """Turn tokens into text, as far as it is whole characters; tells whether it met a stop."""
        shown = [(token.id, raw) for token, raw in self._unread if raw]
        ids = [one for one, _ in shown]
        if is_last:
            ids, chunk = whole_characters(ids, self._decode)
        else:
            chunk = self._decode(ids)
            if not chunk or chunk.endswith(HALF_A_CHARACTER):
                return False
        self._read_bytes += len(chunk.encode())
        # They end together: a first word has no space before it, and no character is more bytes.
        at = self._read_bytes - sum(len(raw) for _, raw in shown[: len(ids)])
        for token, raw in self._unread:
            if token.logprob is not None:
                self._unnamed.append(_Placed(token, raw, at))
            at += len(raw)
        self._unread = []
        self._text += chunk
        met = [place for stop in self._stops if (place := self._text.find(stop)) >= 0]
        self._text = self._text[: min(met, default=len(self._text))]
        return bool(met)

    def _decode(self, ids: list[int]) -> str:
        anchor = self._anchor if self._read_bytes else []
        text: str = self._tokenizer.decode([*anchor, *ids])
        return text.removeprefix(ANCHOR) if anchor else text

    def _half_a_stop(self) -> int:
        """Count the characters at the end that may be the beginning of a stop."""
        begun = (stop[:length] for stop in self._stops for length in range(1, len(stop)))
        return max((len(one) for one in begun if self._text.endswith(one)), default=0)

    def _take(self, held: int) -> str:
        """Return the text that is certain, space at the answer's own ends left out."""
        certain = self._text[: len(self._text) - held].rstrip()
        self._text = self._text[len(certain) :]
        grown = certain if self._end else certain.lstrip()
        if not self._end:
            self._begin = len(certain.encode()) - len(grown.encode())
        self._end += len(certain.encode())
        return grown

    def _name(self) -> list[ChatCompletionTokenLogprob]:
        """Name the next tokens that have numbers, each as soon as its text is sent, not before."""
        named = []
        while self._unnamed:
            token, raw, at = self._unnamed[0]
            if at + len(raw) > self._end and not self.has_ended:
                break
            self._unnamed.popleft()
            first, last = (max(0, edge - at) for edge in (self._begin, self._end))
            ranked = ((token.id, token.logprob or 0.0), *token.likeliest)
            own, *likeliest = (self._top(*one, begins=at <= self._begin) for one in ranked)
            about = own.model_dump() | {"bytes": list(raw[first:last]), "top_logprobs": likeliest}
            named.append(ChatCompletionTokenLogprob(**about))
        return named

    def _top(self, token: int, logprob: float, begins: bool) -> TopLogprob:
        """Name a token; where the text begins, the space before its first word is not said."""
        name = self._tokenizer.id_to_token(token) or ""
        written = token_bytes(self._tokenizer, token) if name else b""
        if not BYTE.fullmatch(name):
            name = written.decode(errors="replace")
            if begins:
                name, written = name.lstrip(), written.lstrip()
        return TopLogprob(token=name, logprob=max(logprob, LEAST), bytes=list(written))


def move_boxes(text: str, boxes: BoxMap | None, is_last: bool) -> tuple[str, str]:
    """Move the boxes of what a model says; returns what is certain, and what may become a box."""
    if boxes is None:
        return text, ""
    found = None if is_last else _MAY_BE_BOX.search(text)
    certain = found.start() if found else len(text)
    return boxes.to_person(text[:certain]), text[certain:]
