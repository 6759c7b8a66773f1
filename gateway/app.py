"""The gateway as an ASGI application: routes, errors, and its life."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from gateway import errors, images, logs
from gateway import exchange as exchanges
from gateway.core import Gateway
from gateway.errors import Problem
from gateway.intake import Intake
from gateway.jobs import Jobs
from gateway.routes import chat, compare, docs, jobs, predict, sessions, state, tasks
from gateway.settings import Settings


def create_app(settings: Settings) -> FastAPI:
    """The application; its models' servers are asked when it starts. UserError for bad settings."""
    gateway = Gateway(settings)
    kept_jobs = Jobs(gateway, jobs.read)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        import asyncio

        from gateway import uploads

        images.forbid_bombs(settings.max_pixels)
        uploads.use_folder(settings)
        logs.silence_tasks(asyncio.get_running_loop())
        await gateway.start()
        await kept_jobs.start()
        try:
            yield
        finally:
            await kept_jobs.close()
            await gateway.close()

    app = FastAPI(
        title="loraline gateway",
        version=state.package_version(),
        description=__doc__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json" if settings.docs else None,
        separate_input_output_schemas=False,
    )
    app.state.gateway = gateway
    app.state.jobs = kept_jobs
    # Addresses are tried in this order: first the one that is asked for most.
    for part in (chat, state, predict, tasks, compare, jobs, sessions):
        app.include_router(part.router)
    if settings.docs:
        app.include_router(docs.router)
    app.add_exception_handler(Problem, on_problem)  # type: ignore[arg-type]
    app.add_exception_handler(RequestValidationError, on_parameter)  # type: ignore[arg-type]
    app.add_exception_handler(HTTPException, on_http)  # type: ignore[arg-type]
    app.add_middleware(Intake, settings=settings, metrics=gateway.metrics, tracer=gateway.tracer)
    return app


async def on_problem(request: Request, problem: Problem) -> Response:
    exchange = exchanges.of(request)
    exchange.code = problem.code
    return problem.response(exchange.id, openai=request.url.path.startswith("/v1/"))


async def on_parameter(request: Request, error: RequestValidationError) -> Response:
    """The problem of an invalid parameter in the address; it does not repeat what was sent."""
    first = error.errors()[0]
    name = str(first["loc"][-1])
    return await on_problem(request, Problem(422, "field", f"{name}: {first['msg']}."))


async def on_http(request: Request, error: HTTPException) -> Response:
    """What the router itself refuses: an unknown address or method."""
    problem = errors.of_status(error.status_code)
    problem.headers |= dict(error.headers or {})
    return await on_problem(request, problem)
