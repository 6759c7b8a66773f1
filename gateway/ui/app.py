"""The page as an ASGI application: sign-in, and Gradio behind it, once a language."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response

from gateway.ui import visitors
from gateway.ui.settings import Settings
from gateway.ui.visitors import Guard

MIB = 2**20

for name, value in {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_SHARE": "False",
    "GRADIO_MCP_SERVER": "False",
    "GRADIO_SSR_MODE": "False",
    "GRADIO_RUN_HISTORY": "False",
    "HF_HUB_OFFLINE": "1",
}.items():
    # Gradio reads them when it is imported, and none of them may be on.
    os.environ[name] = value


def create_app(settings: Settings) -> FastAPI:
    """The application; nothing is asked of the gateway before a visitor comes."""
    import gradio as gr

    from gateway.ui import page, texts
    from gateway.ui.connections import Connections

    connections = Connections(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await connections.close()

    app = FastAPI(
        title="loraline page", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None
    )
    app.state.http = connections.http
    app.state.asks_for_keys = None
    app.add_middleware(Guard, visitors=connections.visitors)

    @app.get("/health")
    async def health() -> Response:
        return PlainTextResponse("alive\n")

    @app.get("/favicon.ico")
    async def icon() -> Response:
        return Response(status_code=204)

    @app.get("/manifest.json")
    async def manifest() -> Response:
        return JSONResponse({"name": "loraline"})

    @app.get("/login")
    async def sign_in_form() -> Response:
        return visitors.sign_in_form()

    @app.post("/login")
    async def sign_in(request: Request) -> Response:
        return await connections.visitors.sign_in(request)

    @app.post("/logout")
    async def sign_out() -> Response:
        return visitors.sign_out()

    async def to_folder(request: Request) -> Response:
        return RedirectResponse(f"{request.url.path}/", 308)

    for language, path in texts.PATHS.items():
        if path != "/":
            # Gradio's own addresses are relative to the page's.
            app.add_route(path.rstrip("/"), to_folder)
        gr.mount_gradio_app(
            app,
            page.build(connections, language),
            path.rstrip("/") or "/",
            footer_links=[],
            run_history=False,
            allowed_paths=[],
            show_error=False,
            max_file_size=int(settings.max_file_mb * MIB),
            ssr_mode=False,
            enable_monitoring=False,
            pwa=False,
            mcp_server=False,
            theme=page.theme(),
            css_paths=[Path(page.FOLDER / "page.css")],
            head=page.head(),
        )
    return app
