"""The manifest with the gateway on a real cluster: ready, serving, killed, and closed to others.

The gateway's image is the real one. A stand-in that answers as vLLM does is in the place of vLLM
and of the init container, whose real ones test_serving has. On a cluster of your own, its nodes
need the images of LORALINE_TEST_GATEWAY_IMAGE and LORALINE_TEST_STAND_IN.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway import keys
from loraline.contract import Contract
from loraline.delivery import cluster as delivery_cluster
from loraline.delivery import kube, manifest
from loraline.delivery.gateway import Gateway, Model
from loraline.delivery.placement import Placement
from loraline.errors import UserError
from tests.cluster import policies
from tests.cluster.conftest import script, until
from tests.gateway.conftest import TEXT

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).parents[2]
GATEWAY_IMAGE = os.environ.get("LORALINE_TEST_GATEWAY_IMAGE", "localhost/loraline-gateway:dev")
STAND_IN = os.environ.get("LORALINE_TEST_STAND_IN", "localhost/loraline-stand-in:dev")
NAMESPACE = "loraline-gateway"
SERVER, FRONT = "lora-tiny-lora", "lora-tiny-lora-gateway"
ASKING = """
import json, sys, time, urllib.error, urllib.request
url, key, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
messages = [{"role": "user", "content": "Who?"}]
body = json.dumps({"model": "tiny-lora", "messages": messages}).encode()
found, last = {}, time.monotonic() + seconds
while True:
    headers = {"Authorization": "Bearer " + key, "Content-Type": "application/json"}
    request = urllib.request.Request(url + "/v1/chat/completions", body, headers)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            status, told = answer.status, ""
    except urllib.error.HTTPError as error:
        status, told = error.code, error.headers.get("Retry-After") or ""
    except OSError as error:
        status, told = type(error).__name__, str(error)
    name = str(status) + (" with Retry-After" if told and status == 503 else "")
    found[name] = found.get(name, 0) + 1
    if time.monotonic() > last:
        break
    time.sleep(0.1)
print(json.dumps(found))
"""
REACHING = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=4).close()
    print("reached")
except OSError as error:
    print(type(error).__name__)
"""


def kubectl(*arguments: str, stdin: str | None = None, check: bool = True) -> str:
    ended = subprocess.run(
        ["kubectl", "--namespace", NAMESPACE, *arguments],
        input=stdin,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0 or not check, ended.stderr
    return ended.stdout


def apply(*objects: dict[str, Any]) -> None:
    kubectl("apply", "--filename", "-", stdin=yaml.safe_dump_all(objects))


def secret(name: str, **values: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name},
        "stringData": values,
    }


def client(name: str, labels: dict[str, str]) -> dict[str, Any]:
    """A pod from which others are asked, and which listens on vLLM's port."""
    container = {
        "name": "client",
        "image": STAND_IN,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python", "-m", "http.server", "8000"],
        "workingDir": "/stand-in",
        "readinessProbe": {"tcpSocket": {"port": 8000}, "periodSeconds": 1},
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": labels},
        "spec": {"terminationGracePeriodSeconds": 0, "containers": [container]},
    }


def rendered(folder: Path, **change: Any) -> Path:
    agreed = Contract.model_validate(TEXT | {"base": "test/base"} | change)
    pod = manifest.server(
        agreed,
        model_name="tiny-lora",
        version=3,
        digest="ab" * 32,
        image=STAND_IN,
        fetch_env={"MLFLOW_TRACKING_URI": "http://mlflow:5000"},
        placement=Placement(
            cpu=True, namespace=NAMESPACE, server_image=STAND_IN, base_volume="bases"
        ),
    )
    # A claim that a node of its own would have to bring is none of this test's.
    text = kube.to_yaml(
        manifest.render(pod, gateway=Gateway(GATEWAY_IMAGE), models=[Model("tiny-lora", agreed)])
    )
    objects = list(yaml.safe_load_all(text))
    for entry in objects:
        if (entry["kind"], entry["metadata"]["name"]) == ("Deployment", SERVER):
            volumes = entry["spec"]["template"]["spec"]["volumes"]
            volumes[:] = [
                {"name": "bases", "emptyDir": {}} if each["name"] == "bases" else each
                for each in volumes
            ]
    file = folder / "vllm.yaml"
    file.write_text(kube.to_yaml(objects))
    return file


@pytest.fixture(scope="module")
def key() -> tuple[str, keys.Key]:
    return keys.new_key("alice")


@pytest.fixture(scope="module")
def place(cluster: Any, key: Any) -> Iterator[None]:
    """A namespace with the Secrets that the documentation asks for, and a pod to ask from."""
    if cluster.builds_images:
        for image, file, context in (
            (GATEWAY_IMAGE, "images/gateway", ROOT),
            (STAND_IN, "tests/cluster/stand_in", ROOT / "tests"),
        ):
            built = script("build", image, ROOT / f"{file}.Dockerfile", context)
            assert built.returncode == 0, f"{image} was not built: {built.stdout}{built.stderr}"
    made = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
    kubectl("apply", "--filename", "-", stdin=yaml.safe_dump(made))
    entry = key[1].model_dump(exclude_none=True)
    apply(
        secret(SERVER, **{"api-key": "a-key-of-the-server"}),
        client("client", {"app": "client"}),
    )
    kubectl("delete", "secret", FRONT, "--ignore-not-found")
    kubectl("wait", "--for=condition=Ready", "pod/client", "--timeout=120s")
    yield entry
    kubectl("delete", "namespace", NAMESPACE, "--wait=false")


@pytest.fixture(scope="module")
def deployed(place: Any, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The manifest, applied as deploy_vllm --apply does; what was said meanwhile."""
    file = rendered(tmp_path_factory.mktemp("manifest"))
    with pytest.raises(UserError, match=f"the Secret {FRONT} of {FRONT} does not exist; make it"):
        delivery_cluster.apply(file, print)
    apply(secret(FRONT, **{"keys.json": json.dumps([place])}))
    said: list[str] = []
    delivery_cluster.apply(file, said.append)
    return said


def statuses(url: str, key: str, seconds: float = 0) -> dict[str, int]:
    """Statuses of requests from another pod, one after another for some seconds."""
    command = ("exec", "client", "--", "python", "-c", ASKING, url, key, str(seconds))
    answers: dict[str, int] = json.loads(kubectl(*command))
    return answers


def asking(key: str, seconds: float) -> subprocess.Popen[str]:
    """The same, beside what the test does meanwhile."""
    url = f"http://{FRONT}:8080"
    command = ["kubectl", "-n", NAMESPACE, "exec", "client", "--", "python", "-c", ASKING]
    return subprocess.Popen([*command, url, key, str(seconds)], stdout=subprocess.PIPE, text=True)


def pods(name: str) -> list[str]:
    selector = f"app.kubernetes.io/name={name}"
    listed = json.loads(kubectl("get", "pods", "--selector", selector, "-o", "json"))["items"]
    return [
        pod["metadata"]["name"]
        for pod in listed
        if "deletionTimestamp" not in pod["metadata"]
        and all(state["ready"] for state in pod["status"].get("containerStatuses", [{"ready": 0}]))
    ]


def reaches(pod: str, host: str, port: int) -> bool:
    command = ("exec", pod, "--", "python", "-c", REACHING, host, str(port))
    return kubectl(*command).strip() == "reached"


def test_the_manifest_becomes_ready_and_two_pods_serve(deployed: list[str], key: Any) -> None:
    assert deployed[-1] == f"{SERVER} is ready"
    until(lambda: len(pods(FRONT)) == 2, 180, "two pods of the gateway")
    url = f"http://{FRONT}:8080"
    assert statuses(url, key[0]) == {"200": 1}
    assert statuses(url, "another key") == {"401": 1}


def test_what_is_applied_is_what_strict_validation_takes(
    deployed: list[str], tmp_path: Path
) -> None:
    file = str(rendered(tmp_path))
    strict = ("--server-side", "--force-conflicts", "--dry-run=server", "--validate=strict")
    assert "serverside-applied" in kubectl("apply", *strict, "--filename", file)


def test_its_pods_run_as_nobody_and_write_only_where_they_may(deployed: list[str]) -> None:
    pod = pods(FRONT)[0]
    assert kubectl("exec", pod, "--", "id", "-u").strip() == "8737"
    wrote = subprocess.run(
        ["kubectl", "-n", NAMESPACE, "exec", pod, "--", "touch", "/app/x"], capture_output=True
    )
    assert b"Read-only file system" in wrote.stderr
    kubectl("exec", pod, "--", "touch", "/data/x", "/tmp/x")


def test_a_pod_of_the_gateway_goes_and_no_request_fails(deployed: list[str], key: Any) -> None:
    first = until(lambda: len(pods(FRONT)) == 2 and pods(FRONT), 180, "two pods of the gateway")
    clients = asking(key[0], 25)
    time.sleep(2)
    kubectl("delete", "pod", first[0], "--wait=false")
    answers = json.loads(clients.communicate(timeout=120)[0])
    assert set(answers) == {"200"} and answers["200"] > 20, answers
    until(lambda: len(pods(FRONT)) == 2, 180, "another pod of the gateway")


def test_the_server_goes_and_clients_are_told_when_to_come_back(
    deployed: list[str], key: Any
) -> None:
    doors = set(pods(FRONT))
    clients = asking(key[0], 60)
    time.sleep(2)
    kubectl("delete", "pod", *pods(SERVER), "--grace-period=1", "--wait=false")
    answers = json.loads(clients.communicate(timeout=180)[0])
    assert set(answers) <= {"200", "502", "503 with Retry-After"}, answers
    assert answers.get("503 with Retry-After"), answers
    kubectl("rollout", "status", f"deployment/{SERVER}", "--timeout=180s")
    until(lambda: statuses(f"http://{FRONT}:8080", key[0]) == {"200": 1}, 60, "an answer")
    assert doors & set(pods(FRONT)) == doors, "the gateway's pods stay"


@pytest.fixture(scope="module")
def enforced(cluster: Any, deployed: list[str]) -> Iterator[None]:
    """Whether the cluster's network holds to policies: not all do, and say nothing.

    That of the script's cluster does not by itself.
    """
    with policies.enforced() if cluster.builds_images else nullcontext():
        apply(client("closed", {"app": "closed"}))
        kubectl("wait", "--for=condition=Ready", "pod/closed", "--timeout=120s")
        address = kubectl("get", "pod", "closed", "-o", "jsonpath={.status.podIP}")
        try:
            assert reaches("client", address, 8000)
            policy = {
                "apiVersion": "networking.k8s.io/v1",
                "kind": "NetworkPolicy",
                "metadata": {"name": "closed"},
                "spec": {
                    "podSelector": {"matchLabels": {"app": "closed"}},
                    "policyTypes": ["Ingress"],
                },
            }
            apply(policy)
            last = time.monotonic() + 20
            while reaches("client", address, 8000):
                if time.monotonic() > last:
                    pytest.skip("this cluster's network does not enforce NetworkPolicies")
                time.sleep(1)
        finally:
            kubectl("delete", "networkpolicy", "closed", "--ignore-not-found")
            kubectl("delete", "pod", "closed", "--wait=false")
        yield


def test_a_pod_without_the_label_does_not_reach_the_server(enforced: None, key: Any) -> None:
    assert reaches("client", FRONT, 8080)
    assert not reaches("client", SERVER, 8000)
    address = kubectl("get", "pod", *pods(SERVER)[:1], "-o", "jsonpath={.status.podIP}")
    assert not reaches("client", address, 8000)
    assert reaches(pods(FRONT)[0], SERVER, 8000)
    # The same pod with the gateway's label, so that it is the label which counts.
    apply(client("labelled", {"app.kubernetes.io/name": FRONT, "app": "labelled"}))
    kubectl("wait", "--for=condition=Ready", "pod/labelled", "--timeout=120s")
    until(lambda: reaches("labelled", SERVER, 8000), 30, "the labelled pod to be let in")
    kubectl("delete", "pod", "labelled", "--wait=false")


def test_the_gateway_reaches_nothing_but_the_server(enforced: None) -> None:
    address = kubectl("get", "pod", "client", "-o", "jsonpath={.status.podIP}")
    assert reaches("client", address, 8000), "it listens"
    assert not reaches(pods(FRONT)[0], address, 8000)
