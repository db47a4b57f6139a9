"""One request from its arrival to its end: tokens in; a whole answer, or events of it, out."""

import asyncio
import json
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, TypeVar
from uuid import uuid4

from fastapi import Request
from fastapi.responses import StreamingResponse
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
from openai.types.completion_usage import PromptTokensDetails
from starlette.types import Receive, Scope, Send

from foveal.data.images.boxes import BoxMap
from foveal.models.generation.generator import Token
from foveal.serve.gate import Slot
from foveal.serve.logprobs import name_logprobs
from foveal.serve.moved_boxes import MovedBoxes
from foveal.serve.problems import RequestError
from foveal.serve.requests.limits import ServerLimits
from foveal.serve.requests.messages import ChatRequest
from foveal.serve.scheduler import Failed, Grown, Job, Scheduler
from foveal.serve.served import Served
from foveal.serve.telemetry import Telemetry
from foveal.serve.text import AnswerText

CLIENT_LEFT = 499
"""Status, in our own measures alone, of a request whose client did not wait."""

Result = TypeVar("Result")

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Piece:
    """What one answer has grown by."""

    choice: int
    text: str
    logprobs: tuple[ChatCompletionTokenLogprob, ...]
    finish: FinishReason | None


class Exchange:
    """One request's answers as they come.

    Args:
        job: not yet submitted.
        served: the model asked.
        asked: by the client.
        scheduler: runs the job.
        place: given back at the end.
        limits: of the endpoint.
        measures: told of what happens.
        arrived: monotonic seconds.
        boxes: what moves boxes of the answers into the asker's numbers; none: they hold none.
    """

    def __init__(
        self,
        job: Job,
        served: Served,
        asked: ChatRequest,
        scheduler: Scheduler,
        place: Slot,
        limits: ServerLimits,
        measures: Telemetry,
        arrived: float,
        boxes: BoxMap | None = None,
    ) -> None:
        self.job = job
        self.served = served
        self.asked = asked
        self.answer_tokens = 0
        self._scheduler = scheduler
        self._place = place
        self._limits = limits
        self._measures = measures
        self._arrived = arrived
        self._closed = False
        self._unnamed: list[deque[Token]] = [deque() for _ in job.requests]
        self._moved = [MovedBoxes(boxes) for _ in job.requests]

    @property
    def prompt_tokens(self) -> int:
        """Length of the prompt, pictures written out."""
        return self.job.requests[0].prompt.tokens

    @property
    def image_tokens(self) -> int:
        """Of them, the pictures'."""
        prompt = self.job.requests[0].prompt
        return sum(prompt.images[-1 - one].shape.tokens for one in prompt.entries if one < 0)

    async def pieces(self) -> AsyncIterator[Piece]:
        """Run the job and yield what its answers grow by.

        Raises:
            RequestError: the model failed, or took too long.
        """
        texts = [AnswerText(self.served.tokenizer, self.asked.stop) for _ in self.job.requests]
        unfinished = set(range(len(texts)))
        self._scheduler.submit(self.job)
        try:
            async with asyncio.timeout(self._limits.answer_seconds) as limit:
                event = await self.job.events.get()
            deadline = limit.when()
            self._measures.first_token_seconds.labels(self.served.name).observe(self._age())
            while True:
                if isinstance(event, Failed):
                    raise event.problem
                if event.choice in unfinished:  # else a stop was met while this one was on its way
                    piece = self._piece(event, texts[event.choice])
                    if piece.finish:
                        unfinished.discard(piece.choice)
                    yield piece
                if not unfinished:
                    return
                async with asyncio.timeout_at(deadline):
                    event = await self.job.events.get()
        except TimeoutError:
            seconds = self._limits.answer_seconds
            raise RequestError(
                503, f"no whole answer within {seconds:g} seconds", "too_slow"
            ) from None

    def _piece(self, event: Grown, text: AnswerText) -> Piece:
        token, choice = event.token, event.choice
        self.answer_tokens += 1
        grown = ""
        if token.finish != "stop":
            grown = text.add(token.id)
            self._unnamed[choice].append(token)
        finish: FinishReason | None = token.finish
        if text.stopped and finish is None:
            finish = "stop"
            self._scheduler.cancel(self.job, choice)
        if finish:
            grown += text.finish()
            finish = "stop" if text.stopped else finish
        # Numbers come with the text of their tokens, never before it is certain.
        logprobs = [
            one
            for share in text.settled()
            for one in name_logprobs(self._unnamed[choice].popleft(), self.served.tokenizer, share)
        ]
        grown = self._moved[choice].add(grown, is_last=finish is not None)
        return Piece(choice, grown, tuple(logprobs), finish)

    def close(self, status: int) -> None:
        """End it: what still runs is given up. The first call counts, others are passed over."""
        if self._closed:
            return
        self._closed = True
        self._scheduler.cancel(self.job)
        self._place.give_back()
        name, measures = self.served.name, self._measures
        measures.requests.labels(name, status).inc()
        measures.prompt_tokens.labels(name).inc(self.prompt_tokens)
        measures.answer_tokens.labels(name).inc(self.answer_tokens)
        measures.request_seconds.labels(name).observe(self._age())

    def _age(self) -> float:
        return time.monotonic() - self._arrived


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


async def complete(exchange: Exchange) -> ChatCompletion:
    """Wait for the whole answer; what it leaves unset is not said."""
    count = len(exchange.job.requests)
    texts = [""] * count
    finishes: list[FinishReason] = ["length"] * count
    numbers: list[list[ChatCompletionTokenLogprob]] = [[] for _ in range(count)]
    async for piece in exchange.pieces():
        texts[piece.choice] += piece.text
        numbers[piece.choice] += piece.logprobs
        finishes[piece.choice] = piece.finish or "length"
    choices = [
        Choice(
            index=index,
            message=ChatCompletionMessage(role="assistant", content=texts[index], refusal=None),
            logprobs=_named(numbers[index]) if exchange.asked.logprobs else None,
            finish_reason=finishes[index],
        )
        for index in range(count)
    ]
    return ChatCompletion(
        object="chat.completion",
        id=new_id(),
        created=int(time.time()),
        model=exchange.served.name,
        choices=choices,
        usage=usage_of(exchange),
        system_fingerprint=None,
    )


async def events(exchange: Exchange) -> AsyncIterator[str]:
    """Write the answers as server-sent events while they grow."""
    name, identity, created = exchange.served.name, new_id(), int(time.time())
    options = exchange.asked.stream_options
    with_usage = options is not None and options.include_usage

    def event(choices: list[ChunkChoice], usage: CompletionUsage | None = None) -> str:
        chunk = ChatCompletionChunk(
            object="chat.completion.chunk",
            id=identity,
            created=created,
            model=name,
            choices=choices,
            system_fingerprint=None,
            **({"usage": usage} if with_usage else {}),
        )
        return f"data: {json.dumps(chunk.model_dump(exclude_unset=True))}\n\n"

    for index in range(len(exchange.job.requests)):
        yield event([_grown(index, ChoiceDelta(role="assistant", content=""))])
    try:
        async for piece in exchange.pieces():
            if piece.text or piece.logprobs or piece.finish:
                said = ChoiceDelta(content=piece.text) if piece.text or piece.logprobs else None
                yield event([_grown(piece.choice, said or ChoiceDelta(), piece)])
    except RequestError as problem:
        exchange.close(problem.status)
        yield f"data: {json.dumps(problem.body())}\n\n"
        return
    exchange.close(200)
    if with_usage:
        yield event([], usage_of(exchange))
    yield "data: [DONE]\n\n"


def _grown(index: int, delta: ChoiceDelta, piece: Piece | None = None) -> ChunkChoice:
    return ChunkChoice(
        index=index,
        delta=delta,
        logprobs=_named(piece.logprobs) if piece and piece.logprobs else None,
        finish_reason=piece.finish if piece else None,
    )


def _named(numbers: Sequence[ChatCompletionTokenLogprob]) -> Any:
    # As a mapping: a choice and a piece of one have a class of their own for the same fields.
    return {"content": list(numbers), "refusal": None}


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


def usage_of(exchange: Exchange) -> CompletionUsage:
    """Count the tokens of an exchange."""
    return CompletionUsage(
        prompt_tokens=exchange.prompt_tokens,
        completion_tokens=exchange.answer_tokens,
        total_tokens=exchange.prompt_tokens + exchange.answer_tokens,
        prompt_tokens_details=PromptTokensDetails(image_tokens=exchange.image_tokens),
    )


def new_id() -> str:
    """Name an answer."""
    return f"chatcmpl-{uuid4().hex}"
