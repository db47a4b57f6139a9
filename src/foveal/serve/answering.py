"""The pieces of an exchange -> one whole answer, or a stream of server-sent events."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import suppress
from typing import TypeVar
from uuid import uuid4

from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from foveal.serve.exchange import Exchange, Piece
from foveal.serve.messages import (
    Answer,
    Choice,
    Chunk,
    ChunkChoice,
    Completion,
    Delta,
    FinishReason,
    Logprobs,
    PromptDetails,
    TokenLogprob,
    Usage,
)
from foveal.serve.problems import RequestError

CLIENT_LEFT = 499
"""Status, in our own measures alone, of a request whose client did not wait."""

Result = TypeVar("Result")


class ClientLeftError(Exception):
    """Nobody waits for the answer any more."""


async def while_waited_for(request: Request, work: Awaitable[Result]) -> Result:
    """Do work for a client, whose body is read, as long as it stays.

    Raises:
        ClientLeftError: it has gone; the work was cancelled.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_until_gone(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientLeftError
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task


async def _until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def complete(exchange: Exchange) -> Completion:
    """Wait for the whole answer."""
    count = len(exchange.job.requests)
    texts, finishes = [""] * count, ["length"] * count
    numbers: list[list[TokenLogprob]] = [[] for _ in range(count)]
    async for piece in exchange.pieces():
        texts[piece.choice] += piece.text
        numbers[piece.choice] += piece.logprobs
        finishes[piece.choice] = piece.finish or "length"
    reasons: list[FinishReason] = ["stop" if one == "stop" else "length" for one in finishes]
    choices = [
        Choice(
            index=index,
            message=Answer(content=texts[index]),
            logprobs=Logprobs(content=numbers[index]) if exchange.asked.logprobs else None,
            finish_reason=reasons[index],
        )
        for index in range(count)
    ]
    return Completion(
        id=new_id(),
        created=int(time.time()),
        model=exchange.served.name,
        choices=choices,
        usage=usage_of(exchange),
    )


async def events(exchange: Exchange) -> AsyncIterator[str]:
    """Write the answers as server-sent events while they grow."""
    name, identity, created = exchange.served.name, new_id(), int(time.time())
    options = exchange.asked.stream_options
    with_usage = options is not None and options.include_usage

    def event(choices: list[ChunkChoice], usage: Usage | None = None) -> str:
        chunk = Chunk(id=identity, created=created, model=name, choices=choices, usage=usage)
        unsaid = {"usage"} if not with_usage else set()
        fields = chunk.model_dump(exclude=unsaid)
        for choice in fields["choices"]:
            choice["delta"] = {key: one for key, one in choice["delta"].items() if one is not None}
        return f"data: {json.dumps(fields)}\n\n"

    for index in range(len(exchange.job.requests)):
        yield event([ChunkChoice(index=index, delta=Delta(role="assistant", content=""))])
    try:
        async for piece in exchange.pieces():
            if piece.text or piece.logprobs or piece.finish:
                yield event([_grown(piece)])
    except RequestError as problem:
        exchange.close(problem.status)
        yield f"data: {json.dumps(problem.body())}\n\n"
        return
    exchange.close(200)
    if with_usage:
        yield event([], usage_of(exchange))
    yield "data: [DONE]\n\n"


def _grown(piece: Piece) -> ChunkChoice:
    return ChunkChoice(
        index=piece.choice,
        delta=Delta(content=piece.text) if piece.text or piece.logprobs else Delta(),
        logprobs=Logprobs(content=list(piece.logprobs)) if piece.logprobs else None,
        finish_reason=piece.finish,
    )


class EventStream(StreamingResponse):
    """Sends the events of an exchange, and ends it however the sending ends.

    Args:
        exchange: to be streamed.
        seconds: for the whole of it; a client that does not read gets no more.
    """

    media_type = "text/event-stream"

    def __init__(self, exchange: Exchange, seconds: float) -> None:
        super().__init__(events(exchange), headers={"Cache-Control": "no-store"})
        self._exchange = exchange
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        try:
            async with asyncio.timeout(self._seconds):
                await super().__call__(scope, receive, send)
        except TimeoutError:
            pass  # the connection is cut, which is all that can still be said
        finally:
            self._exchange.close(CLIENT_LEFT)


def usage_of(exchange: Exchange) -> Usage:
    """Count the tokens of an exchange."""
    return Usage(
        prompt_tokens=exchange.prompt_tokens,
        completion_tokens=exchange.answer_tokens,
        total_tokens=exchange.prompt_tokens + exchange.answer_tokens,
        prompt_tokens_details=PromptDetails(image_tokens=exchange.image_tokens),
    )


def new_id() -> str:
    """Name an answer."""
    return f"chatcmpl-{uuid4().hex}"
