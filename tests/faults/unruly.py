"""MLflow's own server and moto's S3, which do with one request, or with all, what they are told.

They are told by a file, so that one that was killed and started again knows as much as before.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Environ = dict[str, Any]
Start = Callable[..., Any]
Application = Callable[[Environ, Start], Iterable[bytes]]


DENIED = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
"""What S3 answers with status 403."""


@dataclass(frozen=True)
class Fault:
    """What to do with a request."""

    action: str
    """
    lost: do what was asked and close the connection without an answer
    reset: close the connection at once
    kill: die at once, and be started again
    kill for good: die at once, and stay away while the file is there
    late: answer after two seconds
    a number: answer with this status
    page: answer 200 with an HTML page
    """

    method: str = ""
    path: str = ""
    """A part of the request's path."""

    number: int = 1
    """The how-manieth request of this kind; 0 for each of them."""


class Unruly:
    """A WSGI application around another one."""

    def __init__(self, application: Application, control: Path) -> None:
        self.application = application
        self.control = control
        self.asked = 0
        self.seen = ""

    def fault(self, environ: Environ) -> str:
        """What to do with this request; nothing for most."""
        try:
            text = self.control.read_text()
        except FileNotFoundError:
            return ""
        if text != self.seen:
            self.seen, self.asked = text, 0
        fault = Fault(**json.loads(text))
        if fault.method not in ("", environ["REQUEST_METHOD"]):
            return ""
        if fault.path not in environ["PATH_INFO"]:
            return ""
        self.asked += 1
        if fault.number not in (0, self.asked):
            return ""
        if fault.number and fault.action != "kill for good":
            self.control.unlink()
        return fault.action

    def __call__(self, environ: Environ, start: Start) -> Iterable[bytes]:
        action = self.fault(environ)
        if action.startswith("kill"):
            os.kill(os.getpid(), signal.SIGKILL)
        if action == "late":
            time.sleep(2)
        if action == "lost":
            b"".join(self.application(environ, lambda *_, **__: None))
        if action in ("lost", "reset"):
            connection: socket.socket = environ["werkzeug.socket"]
            connection.shutdown(socket.SHUT_RDWR)
            return []
        if action.isdigit() or action == "page":
            length = int(environ.get("CONTENT_LENGTH") or 0)
            environ["wsgi.input"].read(length)
            body = DENIED if action == "403" else b"<html><body>no</body></html>"
            status = f"{action} Unwell" if action.isdigit() else "200 OK"
            start(status, [("Content-Type", "text/html"), ("Content-Length", str(len(body)))])
            return [body]
        return self.application(environ, start)


def mlflow(store: str, artifacts: str) -> Application:
    """MLflow's server over a store, with artifacts under a folder here or an address of S3."""
    from mlflow.server import app, handlers

    local = not artifacts.startswith("s3:")
    root = "mlflow-artifacts:/" if local else artifacts
    os.environ |= {
        "_MLFLOW_SERVER_FILE_STORE": store,
        "_MLFLOW_SERVER_REGISTRY_STORE": store,
        "_MLFLOW_SERVER_ARTIFACT_ROOT": root,
        "_MLFLOW_SERVER_ARTIFACT_DESTINATION": artifacts or str(Path("mlruns/artifacts").resolve()),
        "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true" if local else "false",
    }
    handlers.initialize_backend_stores(store, store, root)
    application: Application = app.wsgi_app
    return application


def s3() -> Application:
    """An S3 that holds nothing."""
    from moto.server import DomainDispatcherApplication, create_backend_app

    application: Application = DomainDispatcherApplication(create_backend_app)
    return application


SERVERS: dict[str, Callable[..., Application]] = {"mlflow": mlflow, "s3": s3}


def serve(program: str, port: str, control: str, *arguments: str) -> None:
    """Serve, and start the server again whenever it is killed."""
    from werkzeug.serving import make_server

    file = Path(control)
    while True:
        pid = os.fork()
        if pid == 0:
            application = Unruly(SERVERS[program](*arguments), file)
            make_server("127.0.0.1", int(port), application, threaded=True).serve_forever()
        if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != -signal.SIGKILL:
            return
        while file.exists():
            time.sleep(0.02)
