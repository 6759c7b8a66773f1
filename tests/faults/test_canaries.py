"""No secret of the environment is seen where a step applies to a cluster."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import after
import pytest
import yaml
from line import Line
from stage import CANARY

pytestmark = pytest.mark.slow

TOKEN = "canary6cluster"


@pytest.fixture
def refusing() -> Iterator[tuple[str, list[bytes]]]:
    """The address of a Kubernetes that lets nobody in, and the bodies that it was sent."""
    bodies: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            bodies.append(self.rfile.read(int(self.headers.get("Content-Length") or 0)))
            body = json.dumps({"message": "forbidden: nobody is let in", "code": 403}).encode()
            self.send_response(403)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = answer

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", bodies
    server.shutdown()


def test_applying_shows_no_secret(line: Line, refusing: tuple[str, list[bytes]]) -> None:
    address, bodies = refusing
    stage = line.stage
    stage.restore("before deploy_vllm")
    kubeconfig = stage.states / "kubeconfig"
    kubeconfig.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "one",
                "clusters": [{"name": "one", "cluster": {"server": address}}],
                "users": [{"name": "one", "user": {"token": TOKEN}}],
                "contexts": [{"name": "one", "context": {"cluster": "one", "user": "one"}}],
            }
        )
    )
    server = stage.server()
    try:
        address = server.address.replace("//", "//somebody:canary7inaddress@")
        environment = {"KUBECONFIG": str(kubeconfig), "MLFLOW_TRACKING_URI": address}
        ended = stage.step("deploy_vllm", "--apply", environment=environment)
    finally:
        server.stop()
    assert ended.code == 2, ended.stderr
    assert "forbidden" in ended.sentence
    assert bodies
    assert not [body for body in bodies if CANARY in body]
    assert not after.shown_secrets(stage, ended)
