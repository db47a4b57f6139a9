"""The endpoint: its routes, who may take them, and OpenAI's shape for every error."""

import base64
import hmac
import ipaddress
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from hashlib import sha256
from importlib.resources import files
from typing import Any

import anyio.to_thread
from openai.types import Model
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from foveal.serve.exchange import CLIENT_LEFT, Endpoint, EventStream, answer_whole
from foveal.serve.limits import RequestError, ServerSettings
from foveal.serve.scheduler import Scheduler
from foveal.serve.served import Served


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
        return Response(endpoint.measures.text(), media_type=CONTENT_TYPE_LATEST)

    async def models(_: Request) -> Response:
        cards = [_card(one) for one in endpoint.served.values()]
        return JSONResponse({"object": "list", "data": cards})

    async def model(request: Request) -> Response:
        return JSONResponse(_card(endpoint.find(request.path_params["name"])))

    async def chat(request: Request) -> Response:
        exchange = await endpoint.admit(request)
        if exchange.asked.stream:
            return EventStream(exchange)
        return await answer_whole(request, exchange)

    def guarded(answer: Callable[[Request], Awaitable[Response]]) -> Any:
        async def check_and_answer(request: Request) -> Response:
            check_may_ask(request, token)
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


def check_may_ask(request: Request, token: str | None) -> None:
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
