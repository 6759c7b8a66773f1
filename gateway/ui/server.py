"""The page's process."""

from __future__ import annotations

import errno
import socket

import uvicorn

from gateway.ui.app import create_app
from gateway.ui.settings import BadSetting, Settings

DRAIN_S = 10


def run(settings: Settings) -> None:
    """Serve until SIGTERM or Ctrl-C; BadSetting when the port cannot be used."""
    listening = bind(settings.host, settings.port)
    app = create_app(settings)
    address, port = listening.getsockname()[:2]
    print(f"page: http://{address}:{port}", flush=True)
    uvicorn.Server(config(app)).run(sockets=[listening])


def config(app: object) -> uvicorn.Config:
    return uvicorn.Config(
        app,  # type: ignore[arg-type]
        ws="none",
        lifespan="on",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=DRAIN_S,
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
        raise BadSetting(f"port {port} of {host} {why}; set UI_PORT") from error
    return listening
