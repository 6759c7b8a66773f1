"""A cluster with Argo: the one of KUBECONFIG, or one that a script starts on this machine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = Path(os.environ.get("TEST_CLUSTER", ROOT.parent / "shared/cluster/cluster"))
"""`up`, `env` and `build TAG DOCKERFILE CONTEXT`, for a machine without a cluster of its own."""

IMAGE = "localhost/loraline:dev"
SERVER_IMAGE = "localhost/loraline:serve"
LABEL = "loraline.test"
"""What the namespace of these tests is marked with: its registry is emptied."""

ROOM = 4 * 2**30
"""Bytes that the disk of the cluster needs: where it is full, pods end in Error."""

PYTHON = "docker.io/library/python:3.11-slim-bookworm"
S3 = "docker.io/versity/versitygw:v1.0.20"
DONE = ("Succeeded", "Failed", "Error")
Object = dict[str, Any]


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Only `-m cluster` comes here; a cluster takes minutes, and root."""
    return True if "cluster" not in (config.option.markexpr or "") else None


class Cluster:
    """kubectl and argo in one namespace of KUBECONFIG's cluster."""

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace
        self.builds_images = False

    def run(self, *command: str | Path, stdin: str = "", check: bool = True) -> str:
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
        assert done.returncode == 0 or not check, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def kubectl(self, *words: str | Path, stdin: str = "", check: bool = True) -> str:
        return self.run("kubectl", "-n", self.namespace, *words, stdin=stdin, check=check)

    def submit(self, source: Path | str, parameters: dict[str, str] | None = None) -> str:
        """Submit a file, or a `kind/name` of the cluster, with the real client; its name."""
        given = [word for p in (parameters or {}).items() for word in ("-p", "=".join(p))]
        what = ["--from", source] if isinstance(source, str) else [source]
        printed = self.argo("submit", "-o", "name", *what, *given)
        return printed.strip().rpartition("/")[2]

    def argo(self, *words: str | Path) -> str:
        return self.run("argo", *words, "-n", self.namespace)

    def workflow(self, name: str) -> Object:
        return json.loads(self.kubectl("get", "workflow", name, "-o", "json"))

    def pods(self, workflow: str, step: str, phase: str = "Running") -> list[str]:
        """Names of a workflow's pods of a step that are in a phase."""
        selector = f"workflows.argoproj.io/workflow={workflow}"
        result = json.loads(self.kubectl("get", "pods", "-l", selector, "-o", "json"))["items"]
        return [
            pod["metadata"]["name"]
            for pod in result
            if f"-{step}-" in pod["metadata"]["name"] and pod["status"]["phase"] == phase
        ]

    def finished(self, name: str, seconds: float = 900) -> Object:
        """The workflow once it has ended."""
        return until(lambda: ended(self.workflow(name)), seconds, f"{name} to end")

    def python(self, program: str, *arguments: str) -> Any:
        """What a program prints, as JSON, that runs beside the MLflow server."""
        command = ["exec", "deploy/mlflow", "-c", "mlflow", "--", "python", "-c", program]
        printed = self.kubectl(*command, *arguments)
        return json.loads(printed.strip().splitlines()[-1])


def script(*words: str | Path, seconds: int = 3600) -> subprocess.CompletedProcess[str]:
    """What the script did; it is repeated where it says that an image did not reach the node.

    It looks for the image with `ctr images ls | grep -q` under `pipefail`, which fails at times
    though the image is there: grep stops reading at the first match, and ctr dies of the pipe.
    An image that really did not arrive fails every time.
    """
    command = ["timeout", str(seconds), SCRIPT, *words]
    for _ in range(5):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0 or "did not reach the node" not in done.stderr:
            break
    return done


def load(image: str) -> None:
    """Bring an image that buildah has into the node."""
    done = script("load", image)
    assert done.returncode == 0, f"{image}: {done.stdout}{done.stderr}"


def ended(workflow: Object) -> Object | None:
    return workflow if workflow.get("status", {}).get("phase") in DONE else None


@pytest.fixture(scope="session", name="until")
def until_fixture() -> Any:
    return until


def until(condition: Any, seconds: float, what: str) -> Any:
    """What the condition gives, as soon as it gives something."""
    last = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < last, f"waited {seconds:g} s for {what}"
        time.sleep(2)
    return result


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    with pytest.MonkeyPatch.context() as patch:
        result = Cluster("default")
        if not os.environ.get("KUBECONFIG"):
            if not SCRIPT.is_file():
                pytest.skip(f"KUBECONFIG is not set and there is no {SCRIPT} to start a cluster")
            if os.geteuid():
                pytest.skip("KUBECONFIG is not set, and starting a cluster needs root")
            up = script("up", seconds=600)
            if up.returncode:
                pytest.skip(f"{SCRIPT} could not start a cluster: {up.stderr[-500:]}")
            shell = f'{result.run(SCRIPT, "env")}\nprintf "%s\\n%s" "$KUBECONFIG" "$PATH"'
            words = result.run("sh", "-c", shell).split("\n")
            for name, value in zip(("KUBECONFIG", "PATH"), words, strict=True):
                patch.setenv(name, value)
            disk = Path(os.environ["KUBECONFIG"]).parent
            free = shutil.disk_usage(disk).free
            assert free >= ROOM, (
                f"the cluster's disk has {free / 2**30:.1f} GiB left at {disk}, "
                f"and pods need {ROOM / 2**30:.0f} GiB: remove what is not needed there"
            )
            result.builds_images = True
            if not result.run("buildah", "images", "-q", PYTHON, check=False):
                result.run(SCRIPT, "base-image")
            load(PYTHON)
        for program in ("kubectl", "argo"):
            if not shutil.which(program):
                pytest.skip(f"{program} is not installed")
        yield result


@pytest.fixture(scope="session")
def images(cluster: Cluster) -> None:
    """The line's images, on a node without a registry to pull from; what is unchanged is quick."""
    if not cluster.builds_images:
        return
    if not cluster.run("buildah", "images", "-q", S3, check=False):
        program = shutil.which("versitygw")
        assert program is not None, "the cluster's programs have no S3 server"
        container = cluster.run("buildah", "from", "scratch").strip()
        cluster.run("buildah", "copy", "--chmod", "755", container, program, "/versitygw")
        entry = '["/versitygw"]'
        cluster.run("buildah", "config", "--entrypoint", entry, "--user", "8737", container)
        cluster.run("buildah", "commit", container, S3)
        cluster.run("buildah", "rm", container)
    load(S3)
    for image, file in ((IMAGE, "cpu"), (SERVER_IMAGE, "serve")):
        built = script("build", image, ROOT / f"images/{file}.Dockerfile", ROOT)
        assert built.returncode == 0, f"{image} was not built: {built.stdout}{built.stderr}"


@pytest.fixture(scope="session")
def namespace(cluster: Cluster, images: None) -> Cluster:
    """The namespace of the laptop overlay, with MLflow and an S3 server that answer.

    It is made for the tests, or was by earlier ones: they forget its runs and registered models.
    """
    made = Cluster("loraline")
    path = f"jsonpath={{.metadata.name}}{{.metadata.labels.{LABEL.replace('.', chr(92) + '.')}}}"
    result = cluster.kubectl("get", "namespace", "loraline", "--ignore-not-found", "-o", path)
    assert result in ("", "loralineyes"), (
        f"namespace loraline was not made by these tests (it has no label {LABEL}=yes), "
        "and they would empty its registry: use another cluster, or delete the namespace"
    )
    cluster.run("make", "-C", ROOT, "cluster-apply", "OVERLAY=laptop")
    cluster.kubectl("label", "--overwrite", "namespace", "loraline", f"{LABEL}=yes")
    return made
