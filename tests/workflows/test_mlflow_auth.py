"""MLflow with the cluster's settings asks who is there, as a real server."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from loraline.errors import UserError
from loraline.tracking import store

SERVER = Path(__file__).parents[2] / "workflows/cluster/mlflow/server.yaml"
ADMIN, READER = ("loraline", "of-the-steps-1234"), ("reader", "of-a-reader-1234")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of the Deployment's command, in which the container's folders are others."""
    pytest.importorskip("flask_wtf", reason="the extra mlflow-server is not installed")
    folder = tmp_path_factory.mktemp("auth")
    settings, _, deployment = yaml.safe_load_all(SERVER.read_text())
    (folder / "basic-auth.ini").write_text(settings["data"]["basic-auth.ini"])
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shell, flag, program, name = container["command"]
    written = folder / "written.ini"
    program = program.replace("/etc/mlflow", str(folder)).replace(
        "/tmp/basic-auth.ini", str(written)
    )
    changed = {"--host": "127.0.0.1", "--port": str(port), "--artifacts-destination": str(folder)}
    args = [
        f"{option}={changed.get(option, value)}"
        for option, _, value in (each.partition("=") for each in container["args"])
        if option != "--allowed-hosts"
    ]
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "AUTH_STORE_URI": f"sqlite:///{folder}/auth.db",
        "MLFLOW_BACKEND_STORE_URI": f"sqlite:///{folder}/mlflow.db",
        "MLFLOW_AUTH_ADMIN_USERNAME": ADMIN[0],
        "MLFLOW_AUTH_ADMIN_PASSWORD": ADMIN[1],
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "for-a-test",
        "MLFLOW_AUTH_CONFIG_PATH": str(written),
    }
    command = [shell, flag, program, name, *args]
    with (folder / "log").open("w") as log:
        started = subprocess.Popen(
            command, env=environment, cwd=folder, stdout=log, stderr=log, start_new_session=True
        )
    try:
        for _ in range(600):
            if started.poll() is not None:
                pytest.fail((folder / "log").read_text())
            with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health"):
                break
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(started.pid, signal.SIGTERM)
        started.wait(30)


def become(user: tuple[str, str] | None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in zip(("USERNAME", "PASSWORD"), user or (None, None), strict=True):
        variable = f"MLFLOW_TRACKING_{name}"
        if value is None:
            monkeypatch.delenv(variable, raising=False)
        else:
            monkeypatch.setenv(variable, value)


def test_only_the_administrator_moves_an_alias(
    server: str, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.server import get_app_client

    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    become(None, monkeypatch)
    with pytest.raises(UserError, match="asks who is there: set MLFLOW_TRACKING_USERNAME"):
        store.connect()

    become((ADMIN[0], "another"), monkeypatch)
    with pytest.raises(UserError, match="asks who is there"):
        store.connect()

    become(ADMIN, monkeypatch)
    client = store.connect()
    run = client.create_run(client.get_experiment_by_name("vllm-lora-training").experiment_id)
    client.create_registered_model("shop")
    client.create_model_version("shop", run.info.artifact_uri, run.info.run_id)
    client.set_registered_model_alias("shop", "champion", "1")
    get_app_client("basic-auth", tracking_uri=server).create_user(*READER)

    become(READER, monkeypatch)
    assert client.get_model_version_by_alias("shop", "champion").version == "1"
    with pytest.raises(MlflowException) as refused:
        client.set_registered_model_alias("shop", "candidate", "1")
    sentence = store.refusal(refused.value)
    assert sentence is not None and "does not let reader do that" in sentence
