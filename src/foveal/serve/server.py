"""Models -> a server on a port: its routes, who may take them, and how it starts and ends."""

import asyncio
import base64
import hmac
import ipaddress
import logging
import re
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from hashlib import sha256
from importlib.resources import files
from typing import Any

import anyio.to_thread
import h11
import uvicorn
from openai.types import Model
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from foveal.errors import UserError
from foveal.models.generation.generator import Generator
from foveal.serve.exchange import CLIENT_LEFT, EventStream, Exchange, answer_whole
from foveal.serve.limits import RequestError, ServerLimits, ServerSettings
from foveal.serve.scheduler import Scheduler
from foveal.serve.served import Endpoint, FreeMemory, Served, decoding_limits, open_models

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


def make_app(served: Sequence[Served], scheduler: Scheduler, settings: ServerSettings) -> Starlette:
    """Build the web application.

    Args:
        served: models; the first is asked where a request names none.
        scheduler: of the same models; started and stopped with the application.
        settings: of the endpoint.
    """
    endpoint = Endpoint(served, scheduler, settings)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        scheduler.start()
        yield
        await anyio.to_thread.run_sync(scheduler.stop)

    app = Starlette(
        routes=_routes(endpoint, settings.token),
        exception_handlers={
            RequestError: _known,
            HTTPException: _of_http,
            ClientDisconnect: _nobody,
            Exception: _unknown,
        },
        lifespan=lifespan,
    )
    app.state.endpoint = endpoint
    return app


def _routes(endpoint: Endpoint, token: str | None) -> list[Route]:
    page, policy = read_page()

    async def show_page(_: Request) -> Response:
        return HTMLResponse(page, headers={"Content-Security-Policy": policy})

    async def health(_: Request) -> Response:
        if not endpoint.scheduler.is_alive:
            raise RequestError(503, "the models' thread has ended; start the server anew")
        return JSONResponse({"status": "ok"})

    async def metrics(_: Request) -> Response:
        measured = generate_latest(endpoint.measures.registry)
        return Response(measured, media_type=CONTENT_TYPE_LATEST)

    async def models(_: Request) -> Response:
        cards = [_card(one) for one in endpoint.served.values()]
        return JSONResponse({"object": "list", "data": cards})

    async def model(request: Request) -> Response:
        return JSONResponse(_card(endpoint.find(request.path_params["name"])))

    async def chat(request: Request) -> Response:
        exchange = Exchange(endpoint, await endpoint.admit(request))
        if exchange.asked.stream:
            return EventStream(exchange)
        return await answer_whole(request, exchange)

    def guarded(answer: Callable[[Request], Awaitable[Response]]) -> Any:
        async def check_and_answer(request: Request) -> Response:
            check_auth(request, token)
            return await answer(request)

        return check_and_answer

    return [
        Route("/", show_page),
        Route("/health", health),
        Route("/metrics", guarded(metrics)),
        Route("/v1/models", guarded(models)),
        Route("/v1/models/{name:path}", guarded(model)),
        Route("/v1/chat/completions", guarded(chat), methods=["POST"]),
    ]


def is_loopback(host: str) -> bool:
    """Tell whether a host name or address is this machine's own, reached by nobody else."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def check_auth(request: Request, token: str | None) -> None:
    """Let a request through or not.

    A page of any other site that is open in somebody's browser can send requests to this machine.
    It names its own site as the origin, or has let its name point here and is found out by that.

    Args:
        request: its headers.
        token: that it must bear; none: it must come from this machine.

    Raises:
        RequestError: it may not ask.
    """
    headers = request.headers
    origin, host = headers.get("origin"), headers.get("host", "")
    if origin is not None and origin.partition("://")[2] != host:
        raise RequestError(403, "pages of other sites may not ask here", "foreign_origin")
    if token is None:
        if not is_loopback(re.sub(r":\d*$", "", host)):
            raise RequestError(
                403, "without a token this server answers to localhost alone", "foreign_name"
            )
        return
    kind, _, given = headers.get("authorization", "").partition(" ")
    # Headers are bytes, which the web framework shows as latin-1.
    is_right = hmac.compare_digest(given.strip().encode("latin-1"), token.encode())
    if kind.lower() != "bearer" or not is_right:
        raise RequestError(
            401, "give the server's token: Authorization: Bearer TOKEN", "invalid_api_key"
        )


def _card(served: Served) -> dict[str, Any]:
    card = Model(id=served.name, created=served.created, object="model", owned_by="foveal")
    return card.model_dump(exclude_unset=True)


def read_page() -> tuple[str, str]:
    """Read the page, and the policy under which a browser runs its own script and no other."""
    page = files("foveal.serve").joinpath("page.html").read_text(encoding="utf-8")
    policy = (
        f"default-src 'none'; script-src {_hashes('script', page)}; "
        f"style-src {_hashes('style', page)}; img-src blob: data:; media-src blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return page, policy


def _hashes(tag: str, page: str) -> str:
    found = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
    digests = [base64.b64encode(sha256(text.encode()).digest()).decode() for text in found]
    return " ".join(f"'sha256-{digest}'" for digest in digests)


async def _known(_: Request, problem: Any) -> Response:
    return JSONResponse(problem.body(), problem.status, problem.headers)


async def _of_http(request: Request, error: Any) -> Response:
    said = f"{request.url.path}: {error.detail}"
    return await _known(request, RequestError(error.status_code, said))


async def _nobody(_: Request, error: Exception) -> Response:
    return Response(status_code=CLIENT_LEFT)  # not sent: there is nobody to read it


async def _unknown(request: Request, error: Exception) -> Response:
    said = "the server failed on this request; its log says how"
    return await _known(request, RequestError(500, said))


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
    # Once it has ended, uvicorn raises again what has ended it.
    handlers: dict[signal.Signals, Any] = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGTERM: signal.SIG_IGN,
    }
    former = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        server.run(sockets=[listener])
    except KeyboardInterrupt:
        return True
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
    return False
