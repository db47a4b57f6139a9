"""Models and settings -> a server on a port, until it is asked to stop."""

import asyncio
import logging
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from foveal.errors import UserError
from foveal.models.generation.generator import Generator
from foveal.serve.app import ServerSettings, make_app
from foveal.serve.guard import is_loopback
from foveal.serve.requests.limits import ServerLimits
from foveal.serve.scheduler import Scheduler
from foveal.serve.served import Served
from foveal.serve.startup import FreeMemory, decoding_limits, open_models


class ServeError(UserError):
    """A server cannot start."""


def serve(
    place: str,
    host: str,
    port: int,
    settings: ServerSettings,
    *,
    name: str | None,
    with_before: bool,
    free_memory: FreeMemory,
    tell: Callable[[str], None],
) -> bool:
    """Open a model and serve it until somebody says stop.

    Args:
        place: run folder, model folder or hub name.
        host: to listen on.
        port: to listen on; 0: any that is free.
        settings: of the endpoint.
        name: that clients ask for; none: from the place.
        with_before: also serve the model that a run started from, if it is on this machine.
        free_memory: measures a device.
        tell: shows a line to whoever started it.

    Returns:
        Whether it was stopped by Ctrl-C.

    Raises:
        ServeError: the port is taken, or others could reach it and there is no token.
        ModelError: the model cannot be read.
    """
    if settings.token is None and not is_loopback(host):
        raise ServeError(
            f"--host {host} lets other machines in; give --token, or FOVEAL_TOKEN in the "
            "environment, for them to bear"
        )
    with listen(host, port) as listener:
        served, remark = open_models(place, name, with_before, free_memory)
        if remark:
            tell(remark)
        server = make_server(build_app(served, settings, free_memory), settings.limits)
        tell(f"{', '.join(one.name for one in served)}: {address_of(listener)}  (Ctrl-C stops)")
        return run_until_stopped(server, listener)


def build_app(
    served: Sequence[Served], settings: ServerSettings, free_memory: FreeMemory
) -> FastAPI:
    """Put models behind the endpoint; they share what memory is free now."""
    makers = {}
    for one in served:
        left = free_memory(one.loaded.model.device) / len(served)
        limits = decoding_limits(one, settings.limits, left)
        makers[one.name] = partial(Generator, one.loaded, limits)
    return make_app(served, Scheduler(makers), settings)


class PromptProtocol(H11Protocol):
    """HTTP that hangs up on a client whose headers do not come; uvicorn alone waits for ever."""

    header_seconds: float = ServerLimits.header_seconds

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._patience: asyncio.TimerHandle | None = None
        self._wait_for_headers()

    def data_received(self, data: bytes) -> None:
        """Go on to wait, unless the headers are complete."""
        super().data_received(data)
        self._wait_for_headers()

    def on_response_complete(self) -> None:
        """Let the clock of the present request go; uvicorn has its own between two of them."""
        super().on_response_complete()
        self._stop_waiting()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop to wait."""
        self._stop_waiting()
        super().connection_lost(exc)

    def _wait_for_headers(self) -> None:
        if self.conn.their_state is not h11.IDLE:
            self._stop_waiting()
        elif self._patience is None:
            self._patience = self.loop.call_later(self.header_seconds, self._hang_up)

    def _stop_waiting(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _hang_up(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()


def listen(host: str, port: int) -> socket.socket:
    """Take a port.

    Raises:
        ServeError: it is taken, or the host is none of this machine's.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, place = found[0]
        return socket.create_server(place[:2], family=family, backlog=512)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ServeError(f"cannot listen on {host}:{port}: {reason}; choose another") from error


def address_of(listener: socket.socket) -> str:
    """Write where a server listens, as a browser takes it."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def make_server(app: FastAPI, limits: ServerLimits) -> uvicorn.Server:
    """Set uvicorn up: quiet, within limits, deaf to what proxies say of their clients."""
    protocol = type("Protocol", (PromptProtocol,), {"header_seconds": limits.header_seconds})
    return uvicorn.Server(
        uvicorn.Config(
            app,
            http=protocol,
            ws="none",
            loop="asyncio",
            lifespan="on",
            log_config=None,
            log_level=logging.WARNING,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=limits.connections,
            h11_max_incomplete_event_size=limits.header_bytes,
            timeout_graceful_shutdown=limits.grace_seconds,
        )
    )


def run_until_stopped(server: uvicorn.Server, listener: socket.socket) -> bool:
    """Serve until SIGTERM or Ctrl-C; running answers get time to end.

    Returns:
        Whether it was Ctrl-C.
    """
    with _noted_signals() as received:
        server.run(sockets=[listener])
    return signal.SIGINT in received


@contextmanager
def _noted_signals() -> Iterator[list[int]]:
    """Write signals down instead of dying of them: uvicorn raises them again once it has ended."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)

    former: dict[signal.Signals, Callable[..., Any] | int | None] = {
        one: signal.signal(one, note) for one in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield received
    finally:
        for one, handler in former.items():
            signal.signal(one, handler)
