"""The line on a cluster: in containers, with MLflow over S3, through what goes wrong there."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conformance import facts

pytestmark = pytest.mark.cluster
ROOT = Path(__file__).parents[2]
PIPELINE, SWEEP = ROOT / "workflows/pipeline.yaml", ROOT / "workflows/sweep.yaml"
TEXT = {"profile": "smoke-text"}
# The second one is for images, and fails on text.
MIXED = {"profile": "smoke-text", "profiles": '["smoke-text","smoke-vision"]'}
Object = dict[str, Any]

CLIENT = """
import json, sys, mlflow
client = mlflow.MlflowClient("http://127.0.0.1:5000")
runs = client.search_runs([e.experiment_id for e in client.search_experiments()], max_results=1000)
"""
FORGET = (
    CLIENT
    + """
for run in runs:
    client.set_tag(run.info.run_id, "loraline.fingerprint", "forgotten")
for model in client.search_registered_models():
    client.delete_registered_model(model.name)
print(len(runs))
"""
)
METRICS = (
    CLIENT
    + """
run = client.get_run(sys.argv[1])
print(json.dumps({k: v for k, v in run.data.metrics.items() if k.startswith("tuned_")}))
"""
)
STATUSES = (
    CLIENT
    + """
mine = [r for r in runs if r.data.tags.get("loraline.workflow.name") == sys.argv[1]]
print(json.dumps([[r.data.tags["loraline.step"], r.info.status] for r in mine]))
"""
)


def run_here(place: Path, file: Path, parameters: dict[str, str]) -> Object:
    """The facts of a local run, in a folder with the repository's parts and a store of its own."""
    for part in ("steps", "workflows", "lora_profiles", "test_data"):
        (place / part).symlink_to(ROOT / part)
    given = [word for p in parameters.items() for word in ("-p", "=".join(p))]
    command = [sys.executable, "-m", "runner.run_local", f"workflows/{file.name}", *given]
    subprocess.run(command, cwd=place, capture_output=True, check=False)
    document = json.loads((place / "outputs/latest/status.json").read_text())
    return facts(document["status"], document["metadata"]["name"])


def without_chance(found: Object) -> Object:
    """Facts in which a run ID is the first node that handed it over, and not 32 digits."""
    names: dict[str, str] = {}
    for path in sorted(found["nodes"]):
        for value in found["nodes"][path]["outputs"].values():
            if re.fullmatch("[0-9a-f]{32}", value):
                names.setdefault(value, f"run of {path}")
    text = re.sub("[0-9a-f]{32}", lambda run_id: names[run_id[0]], json.dumps(found))
    return json.loads(text)


def outputs(workflow: Object, task: str) -> dict[str, str]:
    return node(workflow, task)["outputs"]


def node(workflow: Object, path: str) -> Object:
    return facts(workflow["status"], workflow["metadata"]["name"])["nodes"][f".{path}"]


@pytest.fixture(scope="module")
def undisturbed(namespace: Any) -> Object:
    """A run of the text profile to which nothing happened."""
    namespace.python(FORGET)
    return namespace.finished(namespace.submit(PIPELINE, TEXT))


def test_the_pipeline_comes_to_the_same_here_and_there(undisturbed: Object, tmp_path: Path) -> None:
    there = facts(undisturbed["status"], undisturbed["metadata"]["name"])

    assert there["phase"] == "Succeeded"
    assert without_chance(there) == without_chance(run_here(tmp_path, PIPELINE, TEXT))


def test_the_vision_pipeline_comes_to_the_same_here_and_there(
    namespace: Any, tmp_path: Path
) -> None:
    given = {"profile": "smoke-vision"}
    result = namespace.finished(namespace.submit(PIPELINE, given), 1800)
    there = facts(result["status"], result["metadata"]["name"])

    assert there["phase"] == "Succeeded"
    assert without_chance(there) == without_chance(run_here(tmp_path, PIPELINE, given))


def test_the_sweep_comes_to_the_same_with_a_member_that_failed(
    namespace: Any, undisturbed: Object, tmp_path: Path
) -> None:
    result = namespace.finished(namespace.submit(SWEEP, MIXED))
    there = facts(result["status"], result["metadata"]["name"])

    assert there["phase"] == "Succeeded"
    assert node(result, "candidate(1:smoke-vision)")["phase"] == "Failed"
    assert without_chance(there) == without_chance(run_here(tmp_path, SWEEP, MIXED))


UNLEARNABLE = """
import json, pathlib, random
folder = pathlib.Path("/models/unlearnable"); folder.mkdir(exist_ok=True)
for split, count in (("train", 64), ("validation", 16), ("test", 16)):
    rows = []
    for i in range(count):
        answer = random.Random(split + str(i)).random()
        rows.append({"question": f"Who is {split} {i}?", "answer": str(answer)})
    (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\\n" for row in rows))
"""


def test_a_rejected_candidate_is_not_deployed_and_is_no_failure(namespace: Any) -> None:
    write = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "unlearnable"},
        "spec": {
            "restartPolicy": "Never",
            "securityContext": {"runAsUser": 8737},
            "containers": [
                {
                    "name": "write",
                    "image": "localhost/loraline:dev",
                    "imagePullPolicy": "IfNotPresent",
                    "command": ["python", "-c", UNLEARNABLE],
                    "volumeMounts": [{"name": "models", "mountPath": "/models"}],
                }
            ],
            "volumes": [
                {"name": "models", "persistentVolumeClaim": {"claimName": "loraline-models"}}
            ],
        },
    }
    namespace.kubectl("delete", "pod", "unlearnable", "--ignore-not-found")
    namespace.kubectl("apply", "-f", "-", stdin=json.dumps(write))
    namespace.kubectl("wait", "pod/unlearnable", "--for=jsonpath={.status.phase}=Succeeded")
    result = namespace.finished(namespace.submit(PIPELINE, {**TEXT, "data": "/models/unlearnable"}))

    assert result["status"]["phase"] == "Succeeded"
    assert outputs(result, "quality-gate")["result"] == "failed"
    assert node(result, "deploy-vllm")["phase"] == "Skipped"


def disturbed(
    namespace: Any, until: Callable[..., Any], disturb: Callable[[str, str], Any]
) -> Object:
    """A run like the undisturbed one, in the training of which something happens."""
    namespace.python(FORGET)
    name = namespace.submit(PIPELINE, TEXT)
    (pod,) = until(lambda: namespace.pods(name, "train-qlora"), 300, "training to begin")
    time.sleep(8)
    disturb(name, pod)
    return namespace.finished(name)


def test_a_killed_training_pod_is_made_up_for_to_the_same_metrics(
    namespace: Any, undisturbed: Object, until: Callable[..., Any]
) -> None:
    result = disturbed(
        namespace, until, lambda name, pod: namespace.kubectl("delete", "pod", pod, "--wait=false")
    )

    assert result["status"]["phase"] == "Succeeded"
    assert node(result, "train-qlora(0)")["phase"] in ("Error", "Failed")
    assert node(result, "train-qlora(1)")["phase"] == "Succeeded"
    measured = [
        namespace.python(METRICS, outputs(workflow, "evaluate")["run-id"])
        for workflow in (result, undisturbed)
    ]
    assert measured[0] == measured[1]


def test_a_lost_mlflow_server_costs_no_run(namespace: Any, until: Callable[..., Any]) -> None:
    selector = ("-l", "app.kubernetes.io/name=mlflow")
    result = disturbed(
        namespace,
        until,
        lambda name, pod: namespace.kubectl("delete", "pod", *selector, "--wait=false"),
    )

    assert result["status"]["phase"] == "Succeeded"
    ran = namespace.python(STATUSES, result["metadata"]["name"])
    assert {step for step, status in ran if status == "FINISHED"} == {
        "prepare_data", "train_qlora", "evaluate", "quality_gate", "deploy_vllm",
    }  # fmt: skip
    assert "RUNNING" not in {status for _, status in ran}


def test_submit_ends_as_the_workflow_did(namespace: Any, undisturbed: Object) -> None:
    make = ["make", "-C", ROOT, "-o", ".venv/.installed", "submit", "PROFILE=smoke-text"]
    ended = [
        subprocess.run([*make, data], capture_output=True, text=True, check=False)
        for data in ("DATA=", "DATA=/models/nowhere")
    ]
    assert [done.returncode for done in ended] == [0, 2], [done.stderr for done in ended]
    assert re.search(r"^loraline-pipeline-\w+  Failed$", ended[1].stdout, re.MULTILINE)


@pytest.mark.parametrize(("decision", "phase"), [("yes", "Succeeded"), ("no", "Skipped")])
def test_promotion_waits_for_a_person(
    namespace: Any, undisturbed: Object, until: Callable[..., Any], decision: str, phase: str
) -> None:
    given = {"model": "tiny-mistral-lora"}
    name = namespace.submit(ROOT / "workflows/promote.yaml", given)

    def approval() -> Object | None:
        status = namespace.workflow(name).get("status", {})
        nodes = facts(status, name)["nodes"] if status.get("nodes") else {}
        return nodes.get(".approval")

    assert until(approval, 60, "the question")["phase"] == "Running"
    where = ("--node-field-selector", "displayName=approval")
    namespace.argo("node", "set", name, "--output-parameter", f"decision={decision}", *where)
    namespace.argo("resume", name, *where)
    result = namespace.finished(name)

    assert result["status"]["phase"] == "Succeeded"
    assert node(result, "approval")["outputs"] == {"decision": decision}
    assert node(result, "promote")["phase"] == phase
    assert node(result, "deploy-vllm")["phase"] == ("Succeeded" if decision == "yes" else "Omitted")


def test_retraining_is_scheduled_and_runs(namespace: Any, undisturbed: Object) -> None:
    namespace.kubectl("delete", "cronworkflow", "loraline-retrain", "--ignore-not-found")
    namespace.argo("cron", "create", ROOT / "workflows/retrain.yaml")
    try:
        name = namespace.submit("cronwf/loraline-retrain", {**TEXT, "data": ""})
        assert namespace.finished(name)["status"]["phase"] == "Succeeded"
    finally:
        namespace.argo("cron", "delete", "loraline-retrain")
