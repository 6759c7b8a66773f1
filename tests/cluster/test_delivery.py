"""--apply on a real cluster, with a pod that starts at once in the server's place."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from loraline.delivery import cluster as delivery_cluster
from loraline.errors import UserError

pytestmark = pytest.mark.cluster

NAMESPACE = "loraline-delivery"
NAME = "lora-none"
IMAGE = "localhost/loraline:dev"
PROGRAM = """
import click
from pathlib import Path
from loraline.delivery import cluster
from loraline.step import PipelineCommand

@click.command(cls=PipelineCommand)
@click.argument("manifest", type=Path)
def deploy(manifest):
    cluster.apply(manifest, click.echo)

deploy()
"""


def objects(version: str, *, image: str = IMAGE, ready: bool = True) -> list[dict[str, Any]]:
    """A claim, a ConfigMap and a Deployment, as deploy_vllm renders them in little."""
    annotations = {"loraline/registered-version": f"models:/none/{version}"}
    labels = {"app.kubernetes.io/name": NAME}
    container = {
        "name": "vllm",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python", "-c", "import time; time.sleep(600)"],
        "readinessProbe": {
            "exec": {"command": ["python", "-c", "" if ready else "raise SystemExit(1)"]},
            "timeoutSeconds": 10,
        },
    }
    spec = {"terminationGracePeriodSeconds": 0, "containers": [container]}
    claim = {
        "accessModes": ["ReadWriteOnce"],
        "storageClassName": "none",
        "resources": {"requests": {"storage": "1Mi"}},
    }
    deployment = {
        "replicas": 1,
        "progressDeadlineSeconds": 300,
        "strategy": {"type": "Recreate"},
        "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels, "annotations": annotations}, "spec": spec},
    }
    result: list[dict[str, Any]] = [
        {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "spec": claim},
        {"apiVersion": "v1", "kind": "ConfigMap", "data": {"version": version}},
        {"apiVersion": "apps/v1", "kind": "Deployment", "spec": deployment},
    ]
    metadata = {"name": NAME, "namespace": NAMESPACE, "annotations": annotations}
    return [entry | {"metadata": metadata} for entry in result]


def write(place: Path, entries: list[dict[str, Any]]) -> Path:
    file = place / "vllm.yaml"
    file.write_text(yaml.safe_dump_all(entries))
    return file


@pytest.fixture(scope="module", autouse=True)
def namespace(cluster: Any, images: None) -> Iterator[None]:
    made = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
    cluster.kubectl("apply", "--filename", "-", stdin=yaml.safe_dump(made))
    yield
    cluster.kubectl("delete", "namespace", NAMESPACE, "--wait=false")


def there(cluster: Any, kind: str, path: str = "{.metadata.name}") -> str:
    """What is there under the name of the test's objects; empty when there is none."""
    query = ("get", kind, NAME, "--ignore-not-found", "-o", f"jsonpath={path}")
    return str(cluster.kubectl("--namespace", NAMESPACE, *query))


def test_a_namespace_that_is_not_there_is_named(tmp_path: Path) -> None:
    entries = objects("1")
    entries[0]["metadata"]["namespace"] = "nobody"
    with pytest.raises(UserError) as error:
        delivery_cluster.apply(write(tmp_path, entries), print)
    assert str(error.value) == (
        f'{NAME} was not deployed: namespaces "nobody" not found; nothing was changed'
    )


def test_an_image_that_is_not_there_is_told_and_ends_the_first_deployment(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery_cluster, "PULL_SECONDS", 5)
    message: list[str] = []
    with pytest.raises(
        UserError, match=r"vllm: (ErrImagePull|ImagePullBackOff): .*nope:v1"
    ) as error:
        delivery_cluster.apply(
            write(tmp_path, objects("1", image="127.0.0.1:9/nope:v1")), message.append
        )
    assert any("waiting: vllm: ErrImagePull" in line for line in message)
    assert str(error.value).endswith(
        "; what was made is deleted, the claim with what was downloaded is kept"
    )
    assert there(cluster, "deployment") == there(cluster, "configmap") == ""
    assert there(cluster, "pvc") == NAME


def test_stopped_or_refused_the_version_before_comes_back(
    cluster: Any, tmp_path: Path, until: Any
) -> None:
    delivery_cluster.apply(write(tmp_path, objects("1")), print)
    image = "{.spec.template.metadata.annotations}"

    file = write(tmp_path, objects("2", ready=False))
    stopped = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, file], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    until(lambda: "models:/none/2" in there(cluster, "deployment", image), 60, "version 2")
    stopped.send_signal(signal.SIGTERM)
    out, err = stopped.communicate(timeout=60)
    assert (stopped.returncode, b"deploy: stopped by SIGTERM" in err) == (75, True), err
    assert b"what was there is put back" in out
    assert "models:/none/1" in there(cluster, "deployment", image)
    assert there(cluster, "configmap", "{.data.version}") == "1"

    changed = objects("2")
    changed[2]["spec"]["selector"]["matchLabels"]["other"] = "label"
    with pytest.raises(UserError, match="field is immutable; what was there is put back"):
        delivery_cluster.apply(write(tmp_path, changed), print)
    assert there(cluster, "configmap", "{.data.version}") == "1"

    wider = objects("2")
    wider[0]["spec"]["accessModes"] = ["ReadWriteMany"]
    with pytest.raises(UserError, match=f"claim {NAME} is ReadWriteOnce, this number of replicas"):
        delivery_cluster.apply(write(tmp_path, wider), print)
    assert there(cluster, "configmap", "{.data.version}") == "1", "nothing was changed"
