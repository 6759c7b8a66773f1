"""What the gateway is, its health, and the models behind it."""

from __future__ import annotations

import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from gateway import core, documented, metrics
from gateway.bodies import as_json
from gateway.core import Authenticated
from gateway.errors import Problem

router = APIRouter(tags=["State"])

PROJECT = Path(__file__).parents[2] / "pyproject.toml"
"""Lies beside the sources in a checkout and in the gateway's image, where nothing is installed."""


def package_version() -> str:
    """The project's version, three numbers."""
    try:
        return version("loraline-pipeline")
    except PackageNotFoundError:
        return str(tomllib.loads(PROJECT.read_text())["project"]["version"])


@router.get("/")
async def root(request: Request) -> Response:
    """What this is, and links to the rest."""
    links = ["/health", "/ready", "/info", "/predict", "/tasks", "/v1/chat/completions"]
    if core.of(request).settings.docs:
        links += ["/docs", "/openapi.json"]
    return as_json({"name": "loraline gateway", "version": package_version(), "see": links})


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
    down = len(gateway.upstreams.entries) - len(gateway.upstreams.listed)
    return as_json({"status": "ready", "servers_down": down})


@router.get("/info", responses=documented.problems(401))
async def info(request: Request, caller: Authenticated) -> Response:
    """Models, what they were trained and measured with, limits and tasks."""
    gateway = core.of(request)
    settings = gateway.settings
    return as_json(
        {
            "name": "loraline gateway",
            "version": package_version(),
            "models": [
                model.card() for model in gateway.upstreams.models if caller.may_ask(*model.names)
            ],
            "tasks": sorted(gateway.tasks),
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


@router.get(
    "/metrics",
    response_class=Response,
    responses=documented.problems(401) | documented.answer("text/plain"),
)
async def metrics_text(request: Request, _: Authenticated) -> Response:
    """Prometheus metrics; GATEWAY_METRICS_PORT serves them without a key on a separate port."""
    return Response(core.of(request).metrics.text(), 200, None, metrics.CONTENT_TYPE)
