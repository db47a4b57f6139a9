"""Servers on loopback for tests: of a model, or of an actor that says its lines."""

import asyncio
import base64
import io
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn.server
from openai import OpenAI
from PIL import Image

from foveal.models.family import LoadedModel
from foveal.models.generation.generator import Request, Token
from foveal.serve.limits import ServerLimits
from foveal.serve.served import Endpoint
from foveal.serve.server import address_of, listen, make_server

LINES = (
    "The total is 12.50 dollars.",
    "<script>document.title = 'taken over'</script> <img src=x onerror=alert(1)>",
)
"""Texts that the tiny vocabulary can say word for word."""

ENDLESS = 1000 * LINES[0]
"""It is still being said at the end of any test, however slow, whose actor takes its time."""


class _Hasty:
    """What uvicorn's server sees of asyncio: it looks ten times as often whether it is to end."""

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)

    @staticmethod
    async def sleep(seconds: float) -> None:
        await asyncio.sleep(seconds / 10)


uvicorn.server.asyncio = _Hasty()


class Actor:
    """A decoder that says its lines, one token a step; it can be told to wait, or to fail."""

    def __init__(self, loaded: LoadedModel, lines: tuple[str, ...] = LINES[:1]) -> None:
        self._processor = loaded.processor
        self.lines = lines
        self.asked: list[Request] = []
        self.cancelled: list[int] = []
        self.going = threading.Event()
        self.going.set()
        self.failure: Exception | None = None
        self.step_seconds = 0.0
        self._left: dict[int, list[int]] = {}

    @property
    def is_idle(self) -> bool:
        return not self._left

    @property
    def num_active(self) -> int:
        return len(self._left)

    num_waiting = 0

    def add(self, request: Request) -> int:
        handle = len(self.asked)
        self.asked.append(request)
        line = self.lines[handle % len(self.lines)]
        self._left[handle] = self._processor.encode_answer(line)[: request.max_new_tokens]
        return handle

    def cancel(self, handle: int) -> None:
        self.cancelled.append(handle)
        self._left.pop(handle, None)

    def step(self) -> list[Token]:
        if self.failure:
            raise self.failure
        time.sleep(self.step_seconds)
        self.going.wait(0.01)
        if not self.going.is_set():
            return []
        said = []
        for handle, ids in list(self._left.items()):
            token = ids.pop(0)
            ends = token in self._processor.end_ids
            finish = "stop" if ends else None if ids else "length"
            logprob = None if self.asked[handle].logprobs is None else -0.5
            said.append(Token(handle, token, finish, logprob))
            if finish:
                del self._left[handle]
        return said


@dataclass
class Running:
    """A server that runs on a thread of this process."""

    url: str
    endpoint: Endpoint
    stack: ExitStack = field(default_factory=ExitStack)

    def client(self, token: str = "unused", **more: Any) -> OpenAI:
        made = OpenAI(base_url=f"{self.url}/v1", api_key=token, max_retries=0, timeout=60, **more)
        self.stack.callback(made.close)
        return made

    def connect(self) -> socket.socket:
        host, port = self.url.removeprefix("http://").split(":")
        made = socket.create_connection((host, int(port)), timeout=30)
        self.stack.callback(made.close)
        return made


@contextmanager
def running(app: Any, limits: ServerLimits) -> Iterator[Running]:
    server = make_server(app, limits)
    with listen("127.0.0.1", 0) as listener:
        url = address_of(listener)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            wait_until(lambda: server.started)
            made = Running(url, app.state.endpoint)
            with made.stack:
                yield made
        finally:
            server.should_exit = True
            thread.join()


def wait_until(true: Callable[[], bool], seconds: float = 30) -> None:
    """Wait for what another thread does."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


def image_bytes(seed: int = 0, size: tuple[int, int] = (60, 40)) -> bytes:
    """A small picture as a file, another one for each seed."""
    held = io.BytesIO()
    Image.new("RGB", size, (40 * seed % 256, 90, 160)).save(held, "PNG")
    return held.getvalue()


def data_uri(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


def question(
    text: str = "What is the total?", *images: bytes, role: str = "user"
) -> dict[str, Any]:
    """A message in OpenAI's form."""
    shown = [{"type": "image_url", "image_url": {"url": data_uri(one)}} for one in images]
    return {"role": role, "content": [*shown, {"type": "text", "text": text}]}
