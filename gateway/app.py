"""The gateway as an ASGI application: routes, errors, and its life."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version

import orjson
from fastapi import APIRouter, FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from gateway import chat, core, docs_page, documented, errors, images, logs, metrics, predict
from gateway import exchange as exchanges
from gateway.core import Gateway, Known
from gateway.errors import Problem
from gateway.intake import Intake
from gateway.settings import Settings

router = APIRouter(tags=["State"])


def create_app(settings: Settings) -> FastAPI:
    """The application; its models' servers are asked when it starts. UserError for bad settings."""
    gateway = Gateway(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        import asyncio

        from gateway import uploads

        images.forbid_bombs()
        uploads.use_folder(settings)
        logs.silence_tasks(asyncio.get_running_loop())
        await gateway.start()
        try:
            yield
        finally:
            await gateway.close()

    app = FastAPI(
        title="loraline gateway",
        version=own_version(),
        description=__doc__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json" if settings.docs else None,
        separate_input_output_schemas=False,
    )
    app.state.gateway = gateway
    for part in (router, predict.router, chat.router):
        app.include_router(part)
    if settings.docs:
        app.include_router(docs_page.router)
    app.add_exception_handler(Problem, on_problem)  # type: ignore[arg-type]
    app.add_exception_handler(HTTPException, on_http)  # type: ignore[arg-type]
    app.add_middleware(Intake, settings=settings, metrics=gateway.metrics, tracer=gateway.tracer)
    return app


async def on_problem(request: Request, problem: Problem) -> Response:
    exchange = exchanges.of(request)
    exchange.code = problem.code
    return problem.response(exchange.id, openai=request.url.path.startswith("/v1/"))


async def on_http(request: Request, error: HTTPException) -> Response:
    """What the router itself refuses: no such address, no such method."""
    problem = errors.of_status(error.status_code)
    problem.headers |= dict(error.headers or {})
    return await on_problem(request, problem)


def own_version() -> str:
    try:
        return version("loraline")
    except PackageNotFoundError:
        return "0"


def as_json(content: object, status: int = 200) -> Response:
    return Response(orjson.dumps(content), status, None, "application/json")


@router.get("/")
async def root(request: Request) -> Response:
    """What this is, and where to go on."""
    links = ["/health", "/ready", "/info", "/predict", "/tasks", "/v1/chat/completions"]
    if core.of(request).settings.docs:
        links += ["/docs", "/openapi.json"]
    return as_json({"name": "loraline gateway", "version": own_version(), "see": links})


@router.get("/health")
async def health() -> Response:
    """200 while the gateway is alive, whatever its servers do."""
    return as_json({"status": "alive"})


@router.get("/ready", responses=documented.problems(503))
async def ready(request: Request) -> Response:
    """200 when a server lists its models."""
    gateway = core.of(request)
    if not gateway.upstreams.models:
        raise Problem(
            503,
            "not_ready",
            "No model's server is up.",
            retry_after=gateway.settings.refresh_s,
        )
    down = len(gateway.settings.servers) - len(gateway.upstreams.listed)
    return as_json({"status": "ready", "servers_down": down})


@router.get("/info", responses=documented.problems(401))
async def info(request: Request, caller: Known) -> Response:
    """Models, what they were trained and measured with, limits and tasks."""
    gateway = core.of(request)
    settings = gateway.settings
    return as_json(
        {
            "name": "loraline gateway",
            "version": own_version(),
            "models": [
                model.card() for model in gateway.upstreams.models if caller.may_ask(model.name)
            ],
            "tasks": [],
            "limits": {
                "max_image_mb": settings.max_image_mb,
                "max_video_mb": settings.max_video_mb,
                "max_body_mb": settings.max_body_mb,
                "max_json_mb": settings.max_json_mb,
                "max_files": settings.max_files,
                "max_pixels": settings.max_pixels,
                "max_seconds": settings.max_seconds,
                "max_tokens": settings.max_tokens,
                "rate": caller.rate,
                "tokens_per_minute": caller.tokens_per_minute,
                "streams": caller.streams,
            },
        }
    )


@router.get("/metrics", responses=documented.problems(401))
async def metrics_text(request: Request, _: Known) -> Response:
    """Prometheus metrics; GATEWAY_METRICS_PORT serves them without a key on a port of its own."""
    return Response(core.of(request).metrics.text(), 200, None, metrics.CONTENT_TYPE)
