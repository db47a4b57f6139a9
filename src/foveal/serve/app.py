"""The endpoint: routes, who may use them, and how one request goes through."""

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import anyio
from fastapi import Depends, FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from openai.types import Model
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from foveal.data.images.boxes import BoxMap
from foveal.models.generation.generator import Request as Asked
from foveal.serve.exchange import (
    CLIENT_LEFT,
    ClientLeftError,
    EventStream,
    Exchange,
    complete,
    while_waited_for,
)
from foveal.serve.gate import Gate
from foveal.serve.guard import Guard
from foveal.serve.headers import SafeHeaders, read_page
from foveal.serve.problems import RequestError
from foveal.serve.requests.body import Body, discard, read_body
from foveal.serve.requests.conversation import read_conversation
from foveal.serve.requests.fetch import fetch
from foveal.serve.requests.limits import ServerLimits
from foveal.serve.requests.messages import ChatRequest, parse_request
from foveal.serve.requests.sent_images import read_address
from foveal.serve.scheduler import Job, Scheduler
from foveal.serve.served import Served
from foveal.serve.telemetry import Telemetry

READERS = 2
"""Threads that read requests: decode pictures, cut them, write out prompts."""


@dataclass(frozen=True)
class ServerSettings:
    """How an endpoint is to behave."""

    token: str | None = None
    """That requests must bear; none: no one but this machine may ask."""

    allow_urls: bool = False
    """Whether pictures are fetched from web addresses."""

    limits: ServerLimits = field(default_factory=ServerLimits)


class Endpoint:
    """What the routes share."""

    def __init__(
        self, served: Sequence[Served], scheduler: Scheduler, settings: ServerSettings
    ) -> None:
        self.served = {one.name: one for one in served}
        self.scheduler = scheduler
        self.settings = settings
        self.limits = settings.limits
        self.gate = Gate(settings.limits.places)
        self.measures = Telemetry()
        self.readers = anyio.CapacityLimiter(READERS)
        watch = self.measures.watch
        watch("foveal_answers_running", "Answers being written.", lambda: scheduler.num_active)
        watch("foveal_answers_waiting", "Answers not begun.", lambda: scheduler.num_waiting)
        watch("foveal_places_taken", "Requests read, waiting or running.", lambda: self.gate.taken)

    async def chat(self, request: Request) -> Response:
        """Answer one request.

        Raises:
            RequestError: it cannot be answered.
        """
        try:
            exchange = await self._admit(request)
        except RequestError as refusal:
            self.measures.refused.labels(refusal.status).inc()
            raise
        if exchange.asked.stream:
            return EventStream(exchange, self.limits.answer_seconds)
        return await self._whole(request, exchange)

    async def _admit(self, request: Request) -> Exchange:
        """Find a request a place, before its body is read, and read it."""
        arrived = time.monotonic()
        try:
            place = self.gate.enter()
        except RequestError:
            await discard(request, self.limits)
            raise
        try:
            body = await read_body(request, self.limits)
            reading = anyio.to_thread.run_sync(self._read, body, limiter=self.readers)
            asked, served, (requests, boxes) = await while_waited_for(request, reading)
        except BaseException:
            place.give_back()
            raise
        job = Job(served.name, requests)
        return Exchange(
            job, served, asked, self.scheduler, place, self.limits, self.measures, arrived, boxes
        )

    async def _whole(self, request: Request, exchange: Exchange) -> Response:
        try:
            completion = await while_waited_for(request, complete(exchange))
        except RequestError as problem:
            exchange.close(problem.status)
            raise
        else:
            exchange.close(200)
            return JSONResponse(completion.model_dump(exclude_unset=True))
        finally:
            exchange.close(CLIENT_LEFT)

    def _read(self, body: Body) -> tuple[ChatRequest, Served, tuple[list[Asked], BoxMap | None]]:
        """Turn a body into what the model takes; on a thread of its own, since it may be slow."""
        asked = parse_request(body.request)
        served = self.find(asked.model)
        fetcher = partial(fetch, limits=self.limits) if self.settings.allow_urls else None
        conversation = read_conversation(
            asked.messages,
            lambda url, name: read_address(url, name, self.limits, fetcher),
            body.uploads,
            body.clips,
        )
        return asked, served, served.requests(asked, conversation, self.limits)

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


def make_app(served: Sequence[Served], scheduler: Scheduler, settings: ServerSettings) -> FastAPI:
    """Build the web application.

    Args:
        served: models; the first is asked where a request names none.
        scheduler: of the same models; started and stopped with the application.
        settings: of the endpoint.
    """
    endpoint = Endpoint(served, scheduler, settings)
    guard = Guard(settings.token)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        scheduler.start()
        yield
        await anyio.to_thread.run_sync(scheduler.stop)

    # No pages that describe the interface: they would load scripts from elsewhere.
    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.endpoint = endpoint
    _add_routes(app, endpoint, guard)
    _add_handlers(app, endpoint)
    app.add_middleware(SafeHeaders)
    return app


def _add_routes(app: FastAPI, endpoint: Endpoint, guard: Guard) -> None:
    page, policy = read_page()
    guarded = [Depends(guard)]

    @app.get("/", response_class=HTMLResponse)
    async def show_page() -> HTMLResponse:
        return HTMLResponse(page, headers={"Content-Security-Policy": policy})

    @app.get("/health")
    async def health() -> dict[str, str]:
        if not endpoint.scheduler.is_alive:
            raise RequestError(503, "the models' thread has ended; start the server anew")
        return {"status": "ok"}

    @app.get("/metrics", dependencies=guarded)
    async def metrics() -> Response:
        return Response(endpoint.measures.text(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/v1/models", dependencies=guarded)
    async def models() -> Response:
        cards = [_card(one) for one in endpoint.served.values()]
        return JSONResponse({"object": "list", "data": cards})

    @app.get("/v1/models/{name:path}", dependencies=guarded)
    async def model(name: str) -> Response:
        return JSONResponse(_card(endpoint.find(name)))

    @app.post("/v1/chat/completions", dependencies=guarded)
    async def chat(request: Request) -> Response:
        return await endpoint.chat(request)


def _card(served: Served) -> dict[str, Any]:
    card = Model(id=served.name, created=served.created, object="model", owned_by="foveal")
    return card.model_dump(exclude_unset=True)


def _add_handlers(app: FastAPI, endpoint: Endpoint) -> None:
    """Give every error OpenAI's shape."""

    def answer(problem: RequestError) -> JSONResponse:
        return JSONResponse(problem.body(), problem.status, problem.headers())

    @app.exception_handler(RequestError)
    async def known(request: Request, problem: RequestError) -> Response:
        return answer(problem)

    @app.exception_handler(HTTPException)
    async def of_http(request: Request, error: HTTPException) -> Response:
        return answer(RequestError(error.status_code, f"{request.url.path}: {error.detail}"))

    @app.exception_handler(ClientDisconnect)
    @app.exception_handler(ClientLeftError)
    async def nobody(request: Request, error: Exception) -> Response:
        return Response(status_code=CLIENT_LEFT)  # not sent: there is nobody to read it

    @app.exception_handler(Exception)
    async def unknown(request: Request, error: Exception) -> Response:
        return answer(RequestError(500, "the server failed on this request; its log says how"))
