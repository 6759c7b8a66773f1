"""A training on several machines: a group of pods that loses one, is stopped, or fails."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cluster.test_line import CLIENT, FORGET, ROOT, without_chance
from conformance import facts

pytestmark = pytest.mark.cluster
Object = dict[str, Any]
Until = Callable[..., Any]

# It has no dropout: the machines beside the first draw other numbers after a checkpoint.
GIVEN = {"profile": "smoke-text"}

DIGEST = (
    CLIENT
    + """
print(json.dumps(client.get_run(sys.argv[1]).data.tags["loraline.adapter.sha256"]))
"""
)
STEPS_DONE = (
    CLIENT
    + """
mine = [r for r in runs if r.data.tags.get("loraline.workflow.name") == sys.argv[1]]
mine = [r for r in mine if r.data.tags["loraline.step"] == "train_qlora"]
print(max((len(client.get_metric_history(r.info.run_id, "loss")) for r in mine), default=0))
"""
)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pipeline that trains on two machines."""
    folder = tmp_path_factory.mktemp("workflows")
    command = [sys.executable, ROOT / "workflows/pipeline.py", "--resources", "cpu-2"]
    subprocess.run([*command, "--out", folder], check=True, capture_output=True)
    return folder / "pipeline.yaml"


def members(namespace: Any, workflow: str, phase: str = "Running") -> dict[str, str]:
    """Names of a group's pods in a phase, by their number."""
    selector = f"batch.kubernetes.io/job-name={workflow}-train"
    result = json.loads(namespace.kubectl("get", "pods", "-l", selector, "-o", "json"))["items"]
    number = "batch.kubernetes.io/job-completion-index"
    return {
        pod["metadata"]["annotations"][number]: pod["metadata"]["name"]
        for pod in result
        if pod["status"]["phase"] == phase
    }


def run_here(place: Path, file: Path, parameters: dict[str, str]) -> Object:
    """The facts of a local run of a rendering, with a store of its own."""
    for part in ("steps", "workflows", "lora_profiles", "test_data"):
        (place / part).symlink_to(ROOT / part)
    given = [word for p in parameters.items() for word in ("-p", "=".join(p))]
    command = [sys.executable, "-m", "runner.run_local", file, *given]
    subprocess.run(command, cwd=place, capture_output=True, check=False)
    document = json.loads((place / "outputs/latest/status.json").read_text())
    return facts(document["status"], document["metadata"]["name"])


@pytest.fixture(scope="module")
def undisturbed(namespace: Any, pipeline: Path, until: Until) -> str:
    """A workflow on two machines to which nothing happened; it has trained."""
    namespace.python(FORGET)
    name: str = namespace.submit(pipeline, GIVEN)
    until(lambda: trained(namespace, name), 600, "the group to train")
    return name


def trained(namespace: Any, name: str) -> str:
    """The digest of a workflow's adapter; empty before it has trained."""
    workflow = namespace.workflow(name)
    nodes = facts(workflow["status"], name)["nodes"] if "nodes" in workflow["status"] else {}
    train = nodes.get(".train-qlora", {"phase": "Pending"})
    assert train["phase"] not in ("Failed", "Error", "Omitted"), nodes
    if train["phase"] != "Succeeded":
        return ""
    digest: str = namespace.python(DIGEST, train["outputs"]["run-id"])
    return digest


def test_the_group_comes_to_the_same_here_and_there(
    namespace: Any, undisturbed: str, pipeline: Path, tmp_path: Path
) -> None:
    there = facts(namespace.finished(undisturbed)["status"], undisturbed)

    assert there["phase"] == "Succeeded"
    assert without_chance(there) == without_chance(run_here(tmp_path, pipeline, GIVEN))


def test_a_group_that_loses_a_member_ends_with_the_same_adapter(
    namespace: Any, undisturbed: str, pipeline: Path, until: Until
) -> None:
    digest = trained(namespace, undisturbed)
    namespace.python(FORGET)
    name = namespace.submit(pipeline, GIVEN)
    until(lambda: namespace.python(STEPS_DONE, name) >= 2, 300, "the first steps of training")
    lost = members(namespace, name)["1"]
    namespace.kubectl("delete", "pod", lost, "--wait=false")

    assert until(lambda: trained(namespace, name), 600, "the group to train") == digest
    assert members(namespace, name, "Failed"), "nobody ended with 75"
    assert "with a checkpoint" in namespace.argo("logs", name)


def test_the_exit_code_of_a_group_is_the_step_s(namespace: Any, pipeline: Path) -> None:
    given = {**GIVEN, "set": "gate.min_rows=100000"}
    name = namespace.submit(pipeline, given)
    result = namespace.finished(name)
    nodes = facts(result["status"], name)["nodes"]

    assert result["status"]["phase"] == "Failed"
    assert nodes[".train-group"]["phase"] == "Succeeded"
    codes = {
        node["displayName"]: node["outputs"].get("exitCode")
        for node in result["status"]["nodes"].values()
        if node["type"] == "Pod" and "outputs" in node
    }
    assert codes["train-qlora(0)"] == "2"
    assert "the gate asks for 100000" in namespace.argo("logs", name)


def test_a_workflow_that_is_stopped_ends_its_group(
    namespace: Any, pipeline: Path, until: Until
) -> None:
    namespace.python(FORGET)
    name = namespace.submit(pipeline, GIVEN)
    until(lambda: len(members(namespace, name)) == 2, 300, "the group to begin")
    namespace.argo("stop", name)
    result = namespace.finished(name)

    assert result["status"]["phase"] == "Failed"
    until(lambda: not members(namespace, name), 120, "the group to end")
    job = json.loads(namespace.kubectl("get", "job", f"{name}-train", "-o", "json"))
    assert job["spec"]["suspend"] is True
    namespace.kubectl("delete", "workflow", name)
    path = ("get", "job", f"{name}-train", "--ignore-not-found", "-o", "name")
    until(lambda: not namespace.kubectl(*path), 60, "the job to go with its workflow")
