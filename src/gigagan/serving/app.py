"""The routes."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException

from gigagan import __version__
from gigagan.listening import OWN_NAMES
from gigagan.serving import generation, upscale
from gigagan.serving.api_error import BUG, ApiError
from gigagan.serving.gate import Gate
from gigagan.serving.service import Service

NO_MODEL = "is no model here"


def make_app(
    service: Service,
    *,
    hosts: Sequence[str] = OWN_NAMES,
    keys: Sequence[str] = (),
    stopped: Callable[[BaseException | None], None] = lambda error: None,
) -> Gate:
    """The server, ASGI. `hosts`: names it goes by, empty = any; `keys`: empty = none is asked for.

    `stopped` is called where the batcher ends by itself: its model can't be had.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        batcher = asyncio.create_task(service.batcher.run())
        batcher.add_done_callback(lambda task: None if task.cancelled() else stopped(task.exception()))
        yield
        batcher.cancel()
        await asyncio.gather(batcher, return_exceptions=True)
        service.close()

    app = FastAPI(title="open-gigagan", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.router.redirect_slashes = False
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _bug)
    _add_routes(app, service)
    routes = [route.path for route in app.routes if hasattr(route, "path")]
    return Gate(app, hosts=hosts, keys=keys, routes=routes, limits=service.limits, metrics=service.metrics)


def _add_routes(app: FastAPI, service: Service) -> None:
    body = {"requestBody": {"required": True, "content": {"application/json": {"schema": generation.schema()}}}}

    @app.post("/v1/images/generations", response_model=None, openapi_extra=body)
    async def generate(request: Request) -> Response:
        """Pictures of a prompt, as in OpenAI's API."""
        return await service.generate(request)

    form = {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": upscale.schema()}}}}

    @app.post("/v1/images/upscale", response_model=None, openapi_extra=form)
    async def enlarge(request: Request) -> Response:
        """A picture of any size, larger."""
        return await service.upscale(request)

    @app.get("/v1/models", response_model=None)
    async def models() -> dict[str, Any]:
        """The one model."""
        return {"object": "list", "data": [_model(service)]}

    @app.get("/v1/models/{name}", response_model=None)
    async def model(name: str) -> dict[str, Any]:
        """The same by its name."""
        if name != service.name:
            raise ApiError(404, "model_not_found", f"{name[:80]!r} {NO_MODEL}; it is {service.name}", param="model")
        return _model(service)

    @app.get("/health/live", response_model=None)
    async def live() -> Response:
        """The server answers."""
        return PlainTextResponse("live\n")

    @app.get("/health/ready", response_model=None)
    async def ready() -> Response:
        """A picture can be had: 503 while the model is loaded, and once the server is about to end."""
        service.batcher.check_open()
        return PlainTextResponse("ready\n")

    @app.get("/metrics", response_model=None)
    async def metrics() -> Response:
        """For Prometheus."""
        service.metrics.waiting.set(service.batcher.waiting)
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _model(service: Service) -> dict[str, Any]:
    facts = service.batcher.facts
    found: dict[str, Any] = {"id": service.name, "object": "model", "created": service.created, "owned_by": "gigagan"}
    if facts is not None:
        found |= {"sizes": [f"{side}x{side}" for side in facts.resolutions], "sha256": facts.hash}
    return found


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return Response(error.content, error.status, headers=error.headers)


async def _bug(request: Request, error: Exception) -> Response:
    """The gate logs it."""
    return await _api_error(request, ApiError(500, "internal_error", BUG))


async def _http_error(request: Request, error: Exception) -> Response:
    """What the router says, in the form that clients read."""
    assert isinstance(error, HTTPException)
    codes = {404: "not_found", 405: "method_not_allowed"}
    message = f"{request.method} isn't served here" if error.status_code == 405 else "no such route"
    if request.url.path in ("/v1/images/edits", "/v1/images/variations"):
        message = "this model only generates and enlarges: POST /v1/images/generations, /v1/images/upscale"
    told = ApiError(error.status_code, codes.get(error.status_code, "bad_request"), message)
    headers = {**told.headers, **(error.headers or {})}
    return JSONResponse(told.body, error.status_code, headers={k: v for k, v in headers.items() if k != "content-type"})
