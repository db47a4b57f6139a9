"""One request from its arrival to its end: a place, what it asks, and what its answers grow by."""

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import suppress
from dataclasses import InitVar, dataclass, field
from functools import partial
from typing import Any, TypeVar

import anyio
import anyio.to_thread
from openai.types import CompletionUsage
from openai.types.chat.chat_completion_chunk import Choice, ChoiceDelta
from openai.types.completion_usage import PromptTokensDetails
from starlette.requests import ClientDisconnect, Request

from foveal.data.images.boxes import BoxMap
from foveal.models.generation.generator import Request as Asked
from foveal.models.generation.generator import Token
from foveal.serve.body import Body, discard, read_body
from foveal.serve.fetch import fetch
from foveal.serve.limits import RequestError, ServerSettings
from foveal.serve.messages import ChatRequest, parse_request, read_conversation
from foveal.serve.scheduler import Event, Job, Scheduler
from foveal.serve.sent_images import read_address
from foveal.serve.served import Served
from foveal.serve.telemetry import Telemetry
from foveal.serve.text import AnswerText, MovedBoxes, name_logprobs

READERS = 2
"""Threads that read requests: decode pictures, cut them, write out prompts."""

REMEMBERED = 32
"""Latest requests that tell how long one takes."""

Result = TypeVar("Result")


class Gate:
    """Counts the requests that are read, wait or run."""

    def __init__(self, places: int) -> None:
        self._places = places
        self._seconds: deque[float] = deque(maxlen=REMEMBERED)
        self.taken = 0

    def enter(self) -> None:
        """Take a place.

        Raises:
            RequestError: there is none; it says when to come back, guessing that all places turn
                over once in the time of one request.
        """
        if self.taken >= self._places:
            usual = sum(self._seconds) / len(self._seconds) if self._seconds else 1.0
            raise RequestError(
                429,
                f"{self._places} requests wait or run already; come back in a moment",
                "queue_full",
                headers={"Retry-After": str(max(1, math.ceil(usual / self._places)))},
            )
        self.taken += 1

    def leave(self, seconds: float) -> None:
        """Count a place as free again, after so many seconds."""
        self.taken -= 1
        self._seconds.append(seconds)


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
            reading = anyio.to_thread.run_sync(self._read, body, limiter=self._readers)
            served, asked, for_model, boxes = await while_waited_for(request, reading)
        except BaseException:
            self.gate.leave(time.monotonic() - arrived)
            raise
        return Exchange(self, served, asked, Job(served.name, for_model), boxes, arrived)

    def _read(self, body: Body) -> tuple[Served, ChatRequest, list[Asked], BoxMap | None]:
        """Turn a body into what the model takes; on a thread of its own, since it may be slow."""
        asked = parse_request(body.request)
        served = self.find(asked.model)
        read = partial(read_address, limits=self.limits, fetch=self._fetch)
        conversation = read_conversation(asked.messages, read, body.pictures, body.clips)
        return served, asked, *served.requests(asked, conversation, self.limits)

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


@dataclass
class _Growing:
    """One of the answers to a request."""

    text: AnswerText
    boxes: MovedBoxes
    unnamed: deque[Token] = field(default_factory=deque)
    """Whose numbers are still to be said."""

    has_ended: bool = False


@dataclass(eq=False)
class Exchange:
    """One request that was read: its answers as they come."""

    endpoint: Endpoint
    """That it came to, and has a place of."""

    served: Served
    asked: ChatRequest
    job: Job
    """Not yet submitted."""

    boxes: InitVar[BoxMap | None]
    """What moves boxes of the answers into the asker's numbers; none: they hold none."""

    arrived: float
    """Monotonic seconds."""

    answer_tokens: int = 0
    _closed: bool = False

    def __post_init__(self, boxes: BoxMap | None) -> None:
        """Begin its answers."""
        self._answers = [
            _Growing(AnswerText(self.served.tokenizer, self.asked.stop), MovedBoxes(boxes))
            for _ in self.job.requests
        ]

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
        while not all(answer.has_ended for answer in self._answers):
            event = await self._next_event(deadline)
            if isinstance(event, RequestError):
                raise event
            if not self.answer_tokens:
                first = self.endpoint.measures.first_token_seconds.labels(self.served.name)
                first.observe(self._age())
            if self._answers[event.choice].has_ended:
                continue  # a stop was met while this token was on its way
            piece = self._grow(event.choice, event.token)
            if piece.delta.content or piece.logprobs or piece.finish_reason:
                yield piece

    async def _next_event(self, deadline: float) -> Event:
        try:
            async with asyncio.timeout_at(deadline):
                return await self.job.events.get()
        except TimeoutError:
            seconds = self.endpoint.limits.answer_seconds
            raise RequestError(
                503, f"no whole answer within {seconds:g} seconds", "too_slow"
            ) from None

    def _grow(self, choice: int, token: Token) -> Choice:
        answer, text = self._answers[choice], self._answers[choice].text
        self.answer_tokens += 1
        grown, finish = "", token.finish
        if finish != "stop":
            grown = text.add(token.id)
            answer.unnamed.append(token)
        if text.stopped and finish is None:
            finish = "stop"
            self.endpoint.scheduler.cancel(self.job, choice)
        if finish:
            answer.has_ended = True
            grown += text.finish()
            finish = "stop" if text.stopped else finish
        # Numbers come with the text of their tokens, never before it is certain.
        said = [(answer.unnamed.popleft(), share) for share in text.settled()]
        numbers = [
            name_logprobs(one, share, self.served.tokenizer)
            for one, share in said
            if one.logprob is not None
        ]
        grown = answer.boxes.add(grown, is_last=answer.has_ended)
        return Choice(
            index=choice,
            delta=ChoiceDelta(content=grown) if grown or numbers else ChoiceDelta(),
            logprobs=as_logprobs(numbers) if numbers else None,
            finish_reason=finish,
        )

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


def as_logprobs(numbers: Sequence[Any]) -> Any:
    """Write log-probabilities for a choice or a piece of one, which have classes of their own."""
    return {"content": list(numbers), "refusal": None}


async def while_waited_for(request: Request, work: Awaitable[Result]) -> Result:
    """Do work for a client, whose body is read, as long as it stays.

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
