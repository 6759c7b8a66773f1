"""The desk before a real Argo: a decision answers what waits for it, a training is stopped."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from loraline.errors import UserError
from loraline_cli.desk.argo import Argo
from tests.cluster.conftest import until
from tests.cluster.test_conformance import ACCOUNT

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).parents[2]
MODEL = "tiny-desk-lora"
PAUSED = """
apiVersion: argoproj.io/v1alpha1
kind: Workflow
metadata:
  generateName: desk-
  labels: {app.kubernetes.io/component: pipeline}
spec:
  entrypoint: main
  serviceAccountName: conformance
  templates:
  - name: main
    dag: {tasks: [{name: train-qlora, template: wait}]}
  - {name: wait, suspend: {}}
"""


@pytest.fixture(scope="module")
def argo(cluster: Any) -> Argo:
    cluster.kubectl("apply", "-f", "-", stdin=ACCOUNT)
    return Argo(cluster.namespace)


@pytest.fixture
def create(cluster: Any) -> Iterator[Any]:
    """Makes a workflow, and deletes it in the end."""
    names = []

    def make(document: Any) -> str:
        made = cluster.kubectl("create", "-o", "name", "-f", "-", stdin=json.dumps(document))
        names.append(made.strip().rpartition("/")[2])
        return names[-1]

    yield make
    for name in names:
        cluster.kubectl("delete", "workflow", name, "--wait=false")


def test_a_reviewers_decision_answers_the_workflow_that_waits_for_it(
    cluster: Any, argo: Argo, create: Any
) -> None:
    document = yaml.safe_load((ROOT / "workflows/promote.yaml").read_text())
    document["spec"]["serviceAccountName"] = "conformance"
    given = {"model": MODEL, "version": "3"}
    for parameter in document["spec"]["arguments"]["parameters"]:
        parameter["value"] = given.get(parameter["name"], parameter["value"])
    name = create(document)

    assert until(lambda: argo.waiting(MODEL, "3"), 60, "the question") == [name]
    assert argo.answer(MODEL, "4", "no") == []
    assert argo.answer("another", "3", "no") == []
    assert argo.answer(MODEL, "3", "no") == [name]
    ended = cluster.finished(name, 120)
    assert ended["status"]["phase"] == "Succeeded"
    nodes = {node["displayName"]: node for node in ended["status"]["nodes"].values()}
    (decision,) = nodes["approval"]["outputs"]["parameters"]
    assert decision["value"] == "no"
    assert nodes["promote"]["phase"] == "Skipped"
    assert argo.waiting(MODEL, "3") == []


def test_a_training_on_the_cluster_is_listed_watched_and_stopped(argo: Argo, create: Any) -> None:
    name = create(yaml.safe_load(PAUSED))
    running = until(
        lambda: next(iter(argo.status(name)["nodes"]), None) and argo.status(name), 60, "its node"
    )
    assert name in argo.listed()
    assert running["running"] and running["phase"] == "Running"
    assert [node["name"] for node in running["nodes"]] == ["train-qlora"]
    argo.stop(name)
    until(lambda: not argo.status(name)["running"], 60, "its end")
    with pytest.raises(UserError, match="not found"):
        argo.status("desk-that-is-none")
