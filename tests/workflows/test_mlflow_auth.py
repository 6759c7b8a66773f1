"""MLflow with the cluster's settings asks who is there, as a real server."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import mlflow_program
import pytest
import requests
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
    shell, flag, program, name = container["command"]
    written = folder / "written.ini"
    program = program.replace("/etc/mlflow", str(folder)).replace(
        "/tmp/basic-auth.ini", str(written)
    )
    placed = ("--host=", "--port=", "--artifacts-destination=", "--allowed-hosts=")
    options = [option for option in container["args"] if not option.startswith(placed)]
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "AUTH_STORE_URI": f"sqlite:///{folder}/auth.db",
        "MLFLOW_AUTH_ADMIN_USERNAME": ADMIN[0],
        "MLFLOW_AUTH_ADMIN_PASSWORD": ADMIN[1],
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "for-a-test",
        "MLFLOW_AUTH_CONFIG_PATH": str(written),
    }
    with mlflow_program.serving(
        folder, *options, command=(shell, flag, program, name), environment=environment
    ) as address:
        yield address


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

    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    become(None, monkeypatch)
    with pytest.raises(UserError, match="requires a user: set MLFLOW_TRACKING_USERNAME"):
        store.connect()

    become((ADMIN[0], "another"), monkeypatch)
    with pytest.raises(UserError, match="requires a user"):
        store.connect()

    become(ADMIN, monkeypatch)
    client = store.connect()
    run = client.create_run(client.get_experiment_by_name("vllm-lora-training").experiment_id)
    client.create_registered_model("shop")
    client.create_model_version("shop", run.info.artifact_uri, run.info.run_id)
    client.set_registered_model_alias("shop", "champion", "1")
    new = dict(zip(("username", "password"), READER, strict=True))
    users = f"{server}/api/2.0/mlflow/users/create"
    requests.post(users, json=new, auth=ADMIN, timeout=60).raise_for_status()

    become(READER, monkeypatch)
    assert client.get_model_version_by_alias("shop", "champion").version == "1"
    with pytest.raises(MlflowException) as refused:
        client.set_registered_model_alias("shop", "candidate", "1")
    sentence = store.refusal(refused.value)
    assert sentence is not None and "does not allow reader to do this" in sentence
