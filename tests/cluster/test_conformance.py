"""What the local runner makes of a workflow is what Argo makes of it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import record
import recorded
from conformance import CASES, facts

ACCOUNT = """
apiVersion: v1
kind: ServiceAccount
metadata: {name: conformance}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: conformance}
rules:
  - apiGroups: [argoproj.io]
    resources: [workflowtaskresults]
    verbs: [create, patch]
  - apiGroups: [batch]
    resources: [jobs]
    verbs: [create, get, list, patch, watch]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: conformance}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: conformance}
subjects:
  - {kind: ServiceAccount, name: conformance}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: locks}
data: {one: "1", two: "2", three: "1"}
"""
AT_ONCE = 6
"""Workflows that run on the cluster side by side; deadlines of seconds are missed by more."""

pytestmark = pytest.mark.cluster
Object = dict[str, Any]


@pytest.fixture(scope="module")
def on_argo(cluster: Any) -> Iterator[dict[str, Object]]:
    """The ended workflow of every case, from the cluster."""
    cluster.kubectl("apply", "-f", "-", stdin=ACCOUNT)

    def run(case: str) -> tuple[str, Object]:
        document = json.loads(json.dumps(CASES[case]))
        document["spec"]["serviceAccountName"] = "conformance"
        made = cluster.kubectl("create", "-o", "name", "-f", "-", stdin=json.dumps(document))
        name = made.strip().rpartition("/")[2]
        result = cluster.finished(name, 300)
        cluster.kubectl("delete", "workflow", name, "--wait=false")
        return case, result

    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield dict(pool.map(run, CASES))


def test_the_set_is_large_enough() -> None:
    assert len(CASES) >= 25


@pytest.mark.parametrize("case", CASES)
def test_the_runner_and_argo_come_to_the_same_status(
    on_argo: dict[str, Object], case: str, tmp_path: Path
) -> None:
    (tmp_path / "case.yaml").write_text(json.dumps(CASES[case]))
    command = [sys.executable, "-m", "runner.run_local", "case.yaml"]
    subprocess.run(command, cwd=tmp_path, capture_output=True, check=False, timeout=120)
    document = json.loads((tmp_path / "outputs/latest/status.json").read_text())

    local = facts(document["status"], document["metadata"]["name"])
    argo = facts(on_argo[case]["status"], on_argo[case]["metadata"]["name"])
    assert local == argo, said_by(on_argo[case])


def said_by(workflow: Object) -> str:
    """The messages of a workflow's nodes: a fault of the cluster says itself there."""
    nodes = workflow["status"]["nodes"].values()
    lines = [f"  {node['name']}: {node['message']}" for node in nodes if node.get("message")]
    return "\n".join(["they differ; the controller said", *lines])


@pytest.fixture(scope="module")
def asked_again(cluster: Any, request: pytest.FixtureRequest) -> dict[str, Object]:
    """What the controller makes now of the recorded cases that are looked at (see -k)."""
    cluster.kubectl("apply", "-f", "-", stdin=ACCOUNT)
    looking = test_the_controller_does_what_its_record_says.__name__
    names = [
        item.callspec.params["name"]
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.originalname == looking
    ]

    def ask(name: str) -> Object:
        workflow = recorded.CASES[name]["workflow"]
        return record.record(workflow, "conformance", cluster.namespace)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return dict(zip(names, pool.map(ask, names), strict=True))


def case_parameters() -> list[Any]:
    """All cases; what is slow in a run here is slow there, or is about what another case is."""
    return [
        pytest.param(name, marks=pytest.mark.slow if case.get("slow") else (), id=name)
        for name, case in recorded.CASES.items()
    ]


@pytest.mark.parametrize("name", case_parameters())
def test_the_controller_does_what_its_record_says(
    asked_again: dict[str, Object], name: str
) -> None:
    """Where it does not, the assertion shows what changed; record.py writes the record anew."""
    assert record.facts(asked_again[name]) == record.facts(recorded.CASES[name]["argo"])
