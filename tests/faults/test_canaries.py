"""No secret of the environment is seen by a cluster, by Argo or in what the runner writes.

What each step leaves behind, with or without a fault, is searched by the fault matrix itself.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import after
import pytest
import yaml
from line import Line
from stage import CANARIES, MODEL, ROOT
from table import MOMENTS

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
    assert not [body for body in bodies if after.has_secret(body)]
    assert not after.shown_secrets(stage, ended)


@pytest.fixture
def echoing() -> Iterator[str]:
    """The address of a server that refuses each request, and repeats its key."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            body = f"no: {self.headers.get('Authorization')} {self.path}".encode()
            self.send_response(200 if self.path.endswith("/health") else 400)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


BESIDE = {
    "notify": (75, "--workflow w --status Failed"),
    "select_best": (2, "--run-ids [] --metric bleu"),
    "verify_serving": (2, "--run-id {deploy_vllm} --url {url}"),
    "benchmark_serving": (2, "--run-id {deploy_vllm} --url {url}"),
    "follow_alias": (
        2,
        "--model {model} --alias candidate --once --url {url} --contract {contract} --adapters a",
    ),
    "fetch_adapter": (2, "--model models:/{model}/1 --sha256 wrong --out-dir fetched"),
    "serve_local": (2, "--model {model} --alias nobody"),
}
"""How each step beside the line is run here, and how it ends."""


@pytest.mark.parametrize("step", BESIDE)
def test_a_step_beside_the_line_shows_no_secret(line: Line, echoing: str, step: str) -> None:
    stage = line.stage
    stage.restore("before promote")
    (folder,) = (stage.place / "mlruns").rglob("artifacts/artifacts/adapter")
    code, options = BESIDE[step]
    arguments = options.format(
        url=echoing.replace("//", "//somebody:canary8inaddress@"),
        model=MODEL,
        deploy_vllm=stage.run_id("deploy_vllm"),
        contract=folder / "contract.json",
    )
    ended = stage.run(step, *arguments.split())
    assert ended.code == code, ended.stderr
    assert not after.shown_secrets(stage, ended)


def test_every_step_is_run_with_secrets() -> None:
    steps = {file.stem for file in (ROOT / "steps").glob("*.py")}
    assert steps == {*BESIDE, *MOMENTS}


ARGO = """#!/bin/sh
for word in "$@"; do echo "$word"; done >> "$0.asked"
case $1 in
    submit) echo workflow/pipeline-x ;;
    get) echo '{"status": {"phase": "Succeeded"}}' ;;
esac
"""


def test_a_workflow_is_submitted_without_a_secret(tmp_path: Path) -> None:
    """Neither in Argo's parameters nor in the workflow that is rendered for a new recipe."""
    argo = tmp_path / "bin" / "argo"
    argo.parent.mkdir()
    argo.write_text(ARGO)
    argo.chmod(0o755)
    (tmp_path / "mine.yaml").write_text("extends: smoke-text\nregistered_model: mine-lora\n")
    ended = subprocess.run(
        [
            *(sys.executable, ROOT / "workflows" / "submit.py", ROOT / "workflows/pipeline.yaml"),
            *("-p", "profile=mine.yaml", "-p", "set=r=4"),
        ],
        cwd=tmp_path,
        env=os.environ | CANARIES | {"PATH": f"{argo.parent}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert b"set=r=4" in argo.with_name("argo.asked").read_bytes()
    assert not after.has_secret(ended.stdout + ended.stderr)
    assert with_a_secret(tmp_path) == []


def test_the_runner_writes_no_secret(tmp_path: Path) -> None:
    """The whole line, its status files and parameters, and the notice at its end."""
    for part in ("steps", "workflows", "lora_profiles", "test_data"):
        (tmp_path / part).symlink_to(ROOT / part)
    line = ("-m", "runner.run_local", "workflows/pipeline.yaml", "-p", "profile=smoke-text")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW")}
    ended = subprocess.run(
        [sys.executable, *line],
        cwd=tmp_path,
        env=environment | CANARIES | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=False,
    )
    assert (tmp_path / "outputs" / "latest" / "deploy-vllm" / "vllm.yaml").is_file(), ended.stderr
    assert not after.has_secret(ended.stdout + ended.stderr)
    assert with_a_secret(tmp_path) == []


def with_a_secret(folder: Path) -> list[str]:
    """The files under a folder in whose bytes a canary is."""
    return [
        file.relative_to(folder).as_posix()
        for file in folder.rglob("*")
        if file.is_file() and after.has_secret(file.read_bytes())
    ]
