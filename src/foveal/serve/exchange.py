"""One request from its arrival to its end: tokens in, pieces of answers out, its place freed."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass

from foveal.models.generation.generator import Token
from foveal.serve.gate import Place
from foveal.serve.limits import Limits
from foveal.serve.logprobs import name_logprobs
from foveal.serve.measures import Measures
from foveal.serve.messages import ChatRequest, FinishReason, TokenLogprob
from foveal.serve.problems import RequestError
from foveal.serve.scheduler import Failed, Grown, Job, Scheduler
from foveal.serve.served import Served
from foveal.serve.text import AnswerText


@dataclass(frozen=True)
class Piece:
    """What one answer has grown by."""

    choice: int
    text: str
    logprobs: tuple[TokenLogprob, ...]
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
    """

    def __init__(
        self,
        job: Job,
        served: Served,
        asked: ChatRequest,
        scheduler: Scheduler,
        place: Place,
        limits: Limits,
        measures: Measures,
        arrived: float,
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
