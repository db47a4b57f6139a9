"""A run or a model -> a server on a port, until it is asked to stop."""

import asyncio
import logging
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import h11
import torch
import uvicorn
from huggingface_hub import snapshot_download
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from foveal.config import load_recipe
from foveal.deliver.open import ADAPTER_CONFIG, find_image_budget, open_to_answer, read_base_name
from foveal.deliver.tensors import find_tensors
from foveal.errors import ModelError, UserError
from foveal.models.generation.generator import Generator
from foveal.models.generation.generator import Limits as DecodingLimits
from foveal.serve.app import is_loopback, make_app
from foveal.serve.limits import ServerLimits, ServerSettings
from foveal.serve.scheduler import Scheduler
from foveal.serve.served import Served

FreeMemory = Callable[[torch.device], int]
"""Device -> bytes that it still has."""

BEFORE = "-before"
"""Ends the name of the model that a run started from."""

FREE_SHARE = 0.6
"""Of the free memory, taken for keys and values."""

MOST_CACHE_TOKENS = 2**18

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""Of every answer: they keep browsers from doing more than our page needs."""


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
) -> Starlette:
    """Put models behind the endpoint; they share what memory is free now."""
    makers = {}
    for one in served:
        left = free_memory(one.loaded.model.device) / len(served)
        limits = decoding_limits(one, settings.limits, left)
        makers[one.name] = partial(Generator, one.loaded, limits)
    return make_app(served, Scheduler(makers), settings)


def find_before(place: str) -> str | None:
    """Find the model that a run or an adapter started from, here; nothing is fetched."""
    recipe = Path(place) / "recipe.yaml"
    if recipe.is_file():
        name = load_recipe(recipe).model
    elif (Path(place) / ADAPTER_CONFIG).is_file():
        name = read_base_name(Path(place))
    else:
        return None
    folders = [Path(name), Path(place) / "model"]  # a tiny model is made in the run's folder
    with suppress(OSError, ValueError):
        folders.append(Path(snapshot_download(name, local_files_only=True)))
    return next((str(folder) for folder in folders if _has_weights(folder)), None)


def _has_weights(folder: Path) -> bool:
    """Tell a whole model from what a plan, or a download broken off, left of one."""
    try:
        return bool(find_tensors(folder))
    except ModelError:
        return False


def served_name(place: str) -> str:
    """Name a model for clients: a hub name as it is, a folder by its last part."""
    folder = Path(place)
    return folder.resolve().name if folder.exists() else place


def open_models(
    place: str, name: str | None, with_before: bool, free_memory: FreeMemory
) -> tuple[list[Served], str]:
    """Load a run's or folder's model, and the one before it.

    Args:
        place: run folder, model folder, adapter folder or hub name.
        name: that clients ask for; none: from the place.
        with_before: also the model that it started from, if that is on this machine.
        free_memory: measures a device.

    Returns:
        The models, and a sentence on the one before.

    Raises:
        ModelError: one cannot be read.
    """
    name = name or served_name(place)
    image_budget = find_image_budget(place)
    tuned = Served(name, open_to_answer(place, image_budget))
    before = find_before(place)
    if before is None:
        return [tuned], ""
    if not with_before:
        return [tuned], "the model before tuning is left out"
    model = tuned.loaded.model
    needed = sum(weight.nbytes for weight in model.parameters())
    free = free_memory(model.device)
    if needed > FREE_SHARE * free:
        gib = 2**30
        return [tuned], (
            f"no room for the model before tuning: it needs {needed / gib:.1f} GiB and "
            f"{free / gib:.1f} GiB are free"
        )
    untuned = Served(name + BEFORE, open_to_answer(before, image_budget, as_of=place))
    return [tuned, untuned], "before and after tuning"


def decoding_limits(served: Served, limits: ServerLimits, free_bytes: float) -> DecodingLimits:
    """Say how much one model may hold, given the memory that is left for it."""
    config = served.loaded.model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    number_bytes = served.loaded.model.dtype.itemsize
    token_bytes = 2 * config.num_hidden_layers * heads * width * number_bytes
    room = FREE_SHARE * free_bytes / token_bytes
    return DecodingLimits(
        sequences=limits.running,
        tokens=max(1, min(int(room), MOST_CACHE_TOKENS)),
        kept_prefixes=limits.kept_pictures,
    )


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

    def _wait_for_headers(self) -> None:
        is_waiting = self.conn.their_state is h11.IDLE
        if is_waiting and self._patience is None:
            self._patience = self.loop.call_later(self.header_seconds, self.transport.close)
        elif not is_waiting and self._patience is not None:
            self._patience.cancel()
            self._patience = None


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


def make_server(app: Starlette, limits: ServerLimits) -> uvicorn.Server:
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
            headers=list(HEADERS.items()),
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
