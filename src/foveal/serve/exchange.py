"""One request from its arrival to its end: a place, what it asks, and its answers as they come."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TypeVar
from uuid import uuid4

import anyio
import anyio.to_thread
from openai.types import CompletionUsage
from openai.types.chat import (
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionMessage,
    chat_completion,
)
from openai.types.chat.chat_completion_chunk import Choice, ChoiceDelta
from openai.types.completion_usage import PromptTokensDetails
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from foveal.data.images.boxes import BoxMap
from foveal.models.generation.generator import Request as Asked
from foveal.serve.answers import GrowingAnswer, as_logprobs
from foveal.serve.fetch import fetch
from foveal.serve.limits import Gate, RequestError, ServerSettings
from foveal.serve.messages import ChatRequest, parse_request, read_conversation
from foveal.serve.scheduler import Job, Scheduler
from foveal.serve.sent_files import Body, discard, read_address, read_body
from foveal.serve.served import Served

READERS = 2
"""Threads that read requests: decode pictures, cut them, write out prompts."""

CLIENT_LEFT = 499
"""Status, in our own measures alone, of a request whose client did not wait."""

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
"""Ends of the ranges that times are counted in."""

Result = TypeVar("Result")


class Telemetry:
    """The measures of one endpoint, apart from those of any other in the process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        counter = partial(Counter, registry=self.registry)
        times = partial(Histogram, buckets=SECONDS, registry=self.registry)
        self.requests = counter(
            "foveal_requests",
            "Requests for an answer, by how they ended; 499: the client left.",
            ["model", "status"],
        )
        self.refused = counter(
            "foveal_refused_requests", "Requests that no model was asked, by status.", ["status"]
        )
        self.prompt_tokens = counter(
            "foveal_prompt_tokens", "Tokens of prompts, pictures included.", ["model"]
        )
        self.answer_tokens = counter("foveal_answer_tokens", "Tokens written.", ["model"])
        self.first_token_seconds = times(
            "foveal_first_token_seconds", "From a request's arrival to its first token.", ["model"]
        )
        self.request_seconds = times(
            "foveal_request_seconds", "From a request's arrival to its end.", ["model"]
        )

    def watch(self, name: str, about: str, read: Callable[[], float]) -> None:
        """Show a number that is read when asked for."""
        Gauge(name, about, registry=self.registry).set_function(read)

    def text(self) -> bytes:
        """Write all of them in Prometheus' own form."""
        return generate_latest(self.registry)


class Endpoint:
    """What all requests share.

    Args:
        served: models; the first is asked where a request names none.
        scheduler: of the same models.
        settings: of the endpoint.
    """

    def __init__(
        self, served: Sequence[Served], scheduler: Scheduler, settings: ServerSettings
    ) -> None:
        self.served = {one.name: one for one in served}
        self.scheduler = scheduler
        self.limits = settings.limits
        self.gate = Gate(settings.limits.places)
        self.measures = Telemetry()
        self._fetch = partial(fetch, limits=self.limits) if settings.allow_urls else None
        self._readers = anyio.CapacityLimiter(READERS)
        watch = self.measures.watch
        watch("foveal_answers_running", "Answers being written.", lambda: scheduler.num_active)
        watch("foveal_answers_waiting", "Answers not begun.", lambda: scheduler.num_waiting)
        watch("foveal_places_taken", "Requests read, waiting or running.", lambda: self.gate.taken)

    async def admit(self, request: Request) -> "Exchange":
        """Find a request a place, before its body is read, and read it.

        Raises:
            RequestError: it cannot be answered.
        """
        try:
            return await self._admit(request)
        except RequestError as refusal:
            self.measures.refused.labels(refusal.status).inc()
            raise

    async def _admit(self, request: Request) -> "Exchange":
        arrived = time.monotonic()
        try:
            self.gate.enter()
        except RequestError:
            await discard(request, self.limits)
            raise
        try:
            body = await read_body(request, self.limits)
            # No thread can be stopped: who has left until then is not read, all others to the end.
            async with self._readers:
                if await request.is_disconnected():
                    raise ClientDisconnect
                served, asked, for_model, boxes = await anyio.to_thread.run_sync(self._read, body)
        except BaseException:
            self.gate.leave(time.monotonic() - arrived)
            raise
        answers = [
            GrowingAnswer(served.tokenizer, asked.stop, boxes, index)
            for index in range(len(for_model))
        ]
        return Exchange(self, served, asked, Job(served.name, for_model), answers, arrived)

    def _read(self, body: Body) -> tuple[Served, ChatRequest, list[Asked], BoxMap | None]:
        """Turn a body into what the model takes; on a thread of its own, since it may be slow."""
        asked = parse_request(body.request)
        served = self.find(asked.model)
        limits, number = self.limits, len(body.files) + asked.num_files
        # Before the first picture is fetched.
        if number > limits.pictures:
            reason = f"{number} pictures are more than {limits.pictures}; send fewer"
            raise RequestError(413, reason, "too_many_pictures")
        if asked.n > limits.choices:
            raise RequestError(400, f"n: at most {limits.choices} answers", "invalid_value", "n")
        read = partial(read_address, limits=limits, fetch=self._fetch)
        conversation = read_conversation(asked.messages, read, body.files)
        return served, asked, *served.requests(asked, conversation, limits)

    def find(self, name: str) -> Served:
        """Find a model; the first one where none is named.

        Raises:
            RequestError: there is none of that name.
        """
        if name and name not in self.served:
            known = ", ".join(self.served)
            raise RequestError(
                404, f"no model {name[:80]!r} here; there is {known}", "model_not_found", "model"
            )
        return self.served[name or next(iter(self.served))]


@dataclass(eq=False)
class Exchange:
    """One request that was read: its answers as they come."""

    endpoint: Endpoint
    """That it came to, and has a place of."""

    served: Served
    asked: ChatRequest
    job: Job
    """Not yet submitted."""

    answers: Sequence[GrowingAnswer]
    arrived: float
    """Monotonic seconds."""

    answer_tokens: int = 0
    _closed: bool = False

    @property
    def usage(self) -> CompletionUsage:
        """Count its tokens so far."""
        prompt = self.job.requests[0].prompt
        images = (prompt.images[-1 - one] for one in prompt.entries if one < 0)
        return CompletionUsage(
            prompt_tokens=prompt.tokens,
            completion_tokens=self.answer_tokens,
            total_tokens=prompt.tokens + self.answer_tokens,
            prompt_tokens_details=PromptTokensDetails(
                image_tokens=sum(image.shape.tokens for image in images)
            ),
        )

    async def pieces(self) -> AsyncIterator[Choice]:
        """Run the job and yield what its answers grow by.

        Raises:
            RequestError: the model failed, or took too long.
        """
        self.endpoint.scheduler.submit(self.job)
        deadline = asyncio.get_running_loop().time() + self.endpoint.limits.answer_seconds
        while not all(answer.has_ended for answer in self.answers):
            try:
                async with asyncio.timeout_at(deadline):
                    event = await self.job.events.get()
            except TimeoutError:
                seconds = self.endpoint.limits.answer_seconds
                raise RequestError(
                    503, f"no whole answer within {seconds:g} seconds", "too_slow"
                ) from None
            if isinstance(event, RequestError):
                raise event
            if not self.answer_tokens:
                first = self.endpoint.measures.first_token_seconds.labels(self.served.name)
                first.observe(self._age())
            answer = self.answers[event.choice]
            if answer.has_ended:
                continue  # a stop was met while this token was on its way
            self.answer_tokens += 1
            piece = answer.grow(event.token)
            if answer.has_ended and not event.token.finish:
                self.endpoint.scheduler.cancel(self.job, event.choice)
            if piece.delta.content or piece.logprobs or piece.finish_reason:
                yield piece

    def close(self, status: int) -> None:
        """End it: what still runs is given up. The first call counts, others are passed over."""
        if self._closed:
            return
        self._closed = True
        self.endpoint.scheduler.cancel(self.job)
        self.endpoint.gate.leave(self._age())
        name, measures, usage = self.served.name, self.endpoint.measures, self.usage
        measures.requests.labels(name, status).inc()
        measures.prompt_tokens.labels(name).inc(usage.prompt_tokens)
        measures.answer_tokens.labels(name).inc(usage.completion_tokens)
        measures.request_seconds.labels(name).observe(self._age())

    def _age(self) -> float:
        return time.monotonic() - self.arrived


async def while_waited_for(request: Request, work: Awaitable[Result]) -> Result:
    """Do work for a client, whose body is read, as long as it stays.

    What runs on a thread would go on there: it is none for this.

    Raises:
        ClientDisconnect: it has gone; the work was cancelled.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_until_gone(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task


async def _until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


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
    choices = []
    pieces = [piece async for piece in exchange.pieces()]
    for index in range(len(exchange.answers)):
        mine = [piece for piece in pieces if piece.index == index]
        text = "".join(piece.delta.content or "" for piece in mine)
        named = [one for piece in mine if piece.logprobs for one in piece.logprobs.content or ()]
        choices.append(
            chat_completion.Choice(
                index=index,
                message=ChatCompletionMessage(role="assistant", content=text, refusal=None),
                logprobs=as_logprobs(named) if exchange.asked.logprobs else None,
                finish_reason=mine[-1].finish_reason or "length",
            )
        )
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

    def event(*choices: Choice, usage: CompletionUsage | None = None) -> str:
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

    for index in range(len(exchange.answers)):
        begun = ChoiceDelta(role="assistant", content="")
        yield event(Choice(index=index, delta=begun, logprobs=None, finish_reason=None))
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
