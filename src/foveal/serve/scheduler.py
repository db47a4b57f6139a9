"""Requests -> tokens: one thread owns the models, and every step serves all who are waiting.

Requests join between two steps and leave when they end, so a short answer never waits for a long
one. The thread hands tokens to each request's own queue and waits for no client: a slow one only
fills its queue, which its longest answer bounds.
"""

import asyncio
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from queue import SimpleQueue

from foveal.models.generation.generator import Generator, NoAnswer, Request, Token
from foveal.models.generation.passes import NotFiniteError
from foveal.serve.limits import RequestError

logger = logging.getLogger(__name__)


Event = tuple[int, Token] | RequestError
"""What becomes of a job: which of its answers grows by which token; a problem ends them all."""


@dataclass(eq=False)
class Job:
    """What one client waits for: one answer or several, on one model."""

    model: str
    requests: Sequence[Request]
    """One for each answer."""

    events: "asyncio.Queue[Event]" = field(default_factory=asyncio.Queue)
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)


class Scheduler:
    """Runs jobs on models.

    Args:
        makers: model name -> how to begin a decoding loop; done again when one has failed.
    """

    def __init__(self, makers: Mapping[str, Callable[[], Generator]]) -> None:
        self._makers = dict(makers)
        self._decoders = {model: make() for model, make in makers.items()}
        self._commands: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        """For the thread to do between two steps; none: to end."""

        self._running: dict[tuple[str, int], tuple[Job, int]] = {}
        """(model, its handle) -> job, and which of its answers."""

        self._thread = threading.Thread(target=self._run, name="models", daemon=True)

    def start(self) -> None:
        """Begin to take jobs."""
        self._thread.start()

    def stop(self, seconds: float = 10) -> None:
        """End the thread after its present step; whatever is unanswered is dropped."""
        self._commands.put(None)
        self._thread.join(seconds)

    @property
    def is_alive(self) -> bool:
        """Whether jobs are taken."""
        return self._thread.is_alive()

    @property
    def num_active(self) -> int:
        """Answers that are being written."""
        return sum(one.num_active for one in self._decoders.values())

    @property
    def num_waiting(self) -> int:
        """Answers that have not begun."""
        return sum(one.num_waiting for one in self._decoders.values())

    def submit(self, job: Job) -> None:
        """Take a job; its events come in its own queue."""
        self._commands.put(partial(self._add, job))

    def cancel(self, job: Job, choice: int | None = None) -> None:
        """Give a job up, or one answer of it; what has ended is passed over."""
        self._commands.put(partial(self._forget, job, choice))

    # -- on the thread ---------------------------------------------------------------------------

    def _run(self) -> None:
        while self._do_commands():
            for model, decoder in list(self._decoders.items()):
                if not decoder.is_idle:
                    self._step(model, decoder)

    def _do_commands(self) -> bool:
        """Do what was asked since the last step; waits where there is nothing else to do."""
        while not self._commands.empty() or all(one.is_idle for one in self._decoders.values()):
            command = self._commands.get()
            if command is None:
                return False
            command()
        return True

    def _add(self, job: Job) -> None:
        try:
            for choice, request in enumerate(job.requests):
                handle = self._decoders[job.model].add(request)
                self._running[job.model, handle] = job, choice
        except Exception as error:
            self._forget(job, None)
            _tell(job, _problem_of(error))

    def _forget(self, job: Job, choice: int | None) -> None:
        for (model, handle), running in list(self._running.items()):
            if running[0] is job and choice in (None, running[1]):
                self._decoders[model].cancel(handle)
                del self._running[model, handle]

    def _step(self, model: str, decoder: Generator) -> None:
        try:
            tokens = decoder.step()
        except Exception as error:
            self._start_over(model, error)
            return
        for token in tokens:  # those without an answer come first
            running = self._running.get((model, token.handle))
            if running is None:
                continue  # another answer of its job has failed
            job, choice = running
            if isinstance(token, NoAnswer):
                self._forget(job, None)
                _tell(job, _problem_of(token.problem))
                continue
            _tell(job, (choice, token))
            if token.finish:
                del self._running[model, token.handle]

    def _start_over(self, model: str, error: Exception) -> None:
        """Drop all answers of a model: what a broken step has left behind cannot be trusted."""
        keys = [key for key in self._running if key[0] == model]
        jobs = {self._running.pop(key)[0] for key in keys}
        self._decoders[model] = self._makers[model]()
        problem = _problem_of(error)
        for job in jobs:
            _tell(job, problem)


def _tell(job: Job, event: Event) -> None:
    try:
        job.loop.call_soon_threadsafe(job.events.put_nowait, event)
    except RuntimeError:  # the loop has closed: nobody listens any more
        logger.debug("an event of a closed loop dropped")


def _problem_of(error: Exception) -> RequestError:
    logger.error("an answer failed", exc_info=error)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return RequestError(503, "no memory left for this request; send less, or come back")
    if isinstance(error, NotFiniteError):
        return RequestError(500, f"no answer: {error}")
    return RequestError(500, "the model failed on this request; the server's log says how")
