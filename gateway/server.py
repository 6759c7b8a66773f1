"""The gateway's process: uvicorn, protected from clients that never finish a header."""

from __future__ import annotations

import asyncio
import errno
import gc
import resource
import socket
import tempfile
from typing import Any

import uvicorn
import uvloop
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway import logs
from gateway.app import create_app
from gateway.settings import Settings
from loraline.errors import UserError

HEADER_BYTES = 64 * 1024
"""Bytes of a request's line and headers; uvicorn has no limit with httptools."""

HEADER_S = 15

YOUNG = 10_000
"""Objects after which the collector looks at the young ones; Python's 700 are those of a request
or two, which free themselves."""


class Loop(uvloop.Loop):
    """Connects to an address in figures without asking a thread for it.

    uvloop looks up every address that it connects to, and knows one in figures only where it is
    given the type of socket; else a thread asks the resolver, and waits for a processor to do so.
    """

    async def getaddrinfo(self, host: Any, port: Any, *, type: int = 0, **more: Any) -> list[Any]:
        return await super().getaddrinfo(host, port, type=type or socket.SOCK_STREAM, **more)


class Protocol(HttpToolsProtocol):
    """Closes a connection whose request's head is too long or takes too long."""

    head_bytes = 0
    header_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.header_timer = self.loop.call_later(HEADER_S, transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        self.stop_header_timer()
        super().connection_lost(exc)

    def stop_header_timer(self) -> None:
        if self.header_timer is not None:
            self.header_timer.cancel()
            self.header_timer = None

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.head_bytes = 0
        if self.header_timer is None:
            self.header_timer = self.loop.call_later(HEADER_S, self.transport.close)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.header_timer is not None:
            # The head has not ended with this piece.
            self.head_bytes += len(data)
            if self.head_bytes > HEADER_BYTES and not self.transport.is_closing():
                self.send_400_response("Request head too long.")

    def on_headers_complete(self) -> None:
        self.stop_header_timer()
        super().on_headers_complete()


def run(settings: Settings) -> None:
    """Serve until SIGTERM or Ctrl-C; UserError when a port, folder or file cannot be used."""
    check_paths(settings)
    logs.set_up(settings)
    # A job of a thousand files has as many open while it comes in.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 65536), most))
    app = create_app(settings)
    listening = bind(settings.host, settings.port)
    if settings.metrics_port:
        serve_metrics(settings, app.state.gateway.metrics.registry)
    server = uvicorn.Server(config(settings, app))
    # A walk of the collector through all that was loaded takes 45 ms, in which no stream goes on.
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG)
    logs.log.info("listening", extra={"address": "{}:{}".format(*listening.getsockname()[:2])})
    server.run(sockets=[listening])


def check_paths(settings: Settings) -> None:
    """Raise a UserError for a path of the settings that a request would fail at."""
    try:
        path, name = settings.data_dir, "GATEWAY_DATA_DIR"
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
        if settings.audit_file is not None:
            path, name = settings.audit_file, "GATEWAY_AUDIT_FILE"
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab"):
                pass
    except OSError as error:
        raise UserError(f"{name}: {path} cannot be written: {error.strerror}") from error
    font = settings.pdf_font
    if font is not None and not font.is_file():
        raise UserError(f"GATEWAY_PDF_FONT: {font} is no file")


def config(settings: Settings, app: Any) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        loop=f"{__name__}:{Loop.__name__}",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=settings.drain_s,
        backlog=2048,
    )


def bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except (OSError, OverflowError) as error:
        in_use = getattr(error, "errno", None) == errno.EADDRINUSE
        why = "is taken" if in_use else f"cannot be used ({error})"
        raise UserError(f"port {port} of {host} {why}; set GATEWAY_PORT") from error
    listening.set_inheritable(True)
    return listening


def serve_metrics(settings: Settings, registry: Any) -> None:
    from prometheus_client import start_http_server

    try:
        start_http_server(settings.metrics_port, settings.host, registry)
    except (OSError, OverflowError) as error:
        raise UserError(
            f"port {settings.metrics_port} of {settings.host} cannot be used ({error}); set "
            "GATEWAY_METRICS_PORT"
        ) from error
