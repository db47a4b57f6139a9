"""Answers as they come -> what OpenAI's clients read: all at once, or event by event."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from uuid import uuid4

from openai.types import CompletionUsage
from openai.types.chat import (
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionMessage,
    ChatCompletionTokenLogprob,
)
from openai.types.chat.chat_completion import Choice
from openai.types.chat.chat_completion_chunk import Choice as ChunkChoice
from openai.types.chat.chat_completion_chunk import ChoiceDelta
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from foveal.serve.exchange import Exchange, as_logprobs, while_waited_for
from foveal.serve.limits import RequestError

CLIENT_LEFT = 499
"""Status, in our own measures alone, of a request whose client did not wait."""


async def answer_whole(request: Request, exchange: Exchange) -> Response:
    """Answer at once, and end the exchange however that ends.

    Raises:
        RequestError: there is no answer.
        ClientDisconnect: nobody waits for it any more.
    """
    status = CLIENT_LEFT
    try:
        completion = await while_waited_for(request, _complete(exchange))
        status = 200
    except RequestError as problem:
        status = problem.status
        raise
    finally:
        exchange.close(status)
    return JSONResponse(completion.model_dump(exclude_unset=True))


async def _complete(exchange: Exchange) -> ChatCompletion:
    """Wait for the whole answer; what it leaves unset is not said."""
    numbers: list[list[ChatCompletionTokenLogprob]] = [[] for _ in exchange.job.requests]
    texts, ends = [""] * len(numbers), ["length"] * len(numbers)
    async for piece in exchange.pieces():
        texts[piece.index] += piece.delta.content or ""
        if piece.logprobs:
            numbers[piece.index] += piece.logprobs.content or []
        ends[piece.index] = piece.finish_reason or "length"
    choices = [
        Choice(
            index=index,
            message=ChatCompletionMessage(role="assistant", content=text, refusal=None),
            logprobs=as_logprobs(numbers[index]) if exchange.asked.logprobs else None,
            finish_reason=end or "length",
        )
        for index, (text, end) in enumerate(zip(texts, ends, strict=True))
    ]
    return ChatCompletion(
        object="chat.completion",
        id=_new_id(),
        created=int(time.time()),
        model=exchange.served.name,
        choices=choices,
        usage=exchange.usage,
        system_fingerprint=None,
    )


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
    name, identity, created = exchange.served.name, _new_id(), int(time.time())
    options = exchange.asked.stream_options
    with_usage = options is not None and options.include_usage

    def event(*choices: ChunkChoice, usage: CompletionUsage | None = None) -> str:
        chunk = ChatCompletionChunk(
            object="chat.completion.chunk",
            id=identity,
            created=created,
            model=name,
            choices=list(choices),
            system_fingerprint=None,
            **({"usage": usage} if with_usage else {}),
        )
        return f"data: {json.dumps(chunk.model_dump(exclude_unset=True))}\n\n"

    for index in range(len(exchange.job.requests)):
        begun = ChoiceDelta(role="assistant", content="")
        yield event(ChunkChoice(index=index, delta=begun, logprobs=None, finish_reason=None))
    try:
        async for piece in exchange.pieces():
            yield event(piece)
    except RequestError as problem:
        exchange.close(problem.status)
        yield f"data: {json.dumps(problem.body())}\n\n"
        return
    exchange.close(200)
    if with_usage:
        yield event(usage=exchange.usage)
    yield "data: [DONE]\n\n"


def _new_id() -> str:
    return f"chatcmpl-{uuid4().hex}"
