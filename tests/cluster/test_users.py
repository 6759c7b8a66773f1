"""MLflow of the overlay `laptop` asks who is there, and a step is let in by the Secret's words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.cluster
PIPELINE = Path(__file__).parents[2] / "workflows/pipeline.yaml"
Object = dict[str, Any]

SEARCH = """
import base64, os, sys, urllib.error, urllib.request
user, password = (os.environ["MLFLOW_TRACKING_" + word] for word in ("USERNAME", "PASSWORD"))
words = {"none": "", "wrong": f"{user}:another", "right": f"{user}:{password}"}[sys.argv[1]]
path = "/api/2.0/mlflow/experiments/search?max_results=1"
request = urllib.request.Request(os.environ["MLFLOW_TRACKING_URI"] + path)
if words:
    basic = base64.b64encode(words.encode()).decode()
    request.add_header("Authorization", f"Basic {basic}")
try:
    print(urllib.request.urlopen(request).status)
except urllib.error.HTTPError as error:
    print(error.code)
"""
RUNS = """
import json, sys, mlflow
client = mlflow.MlflowClient("http://127.0.0.1:5000")
run = client.get_run(sys.argv[1])
print(json.dumps([run.info.status, run.data.tags["loraline.step"]]))
"""


def of_a_step(name: str, command: list[str]) -> Object:
    """A pod with the image, user and environment that the pipeline gives its first step."""
    spec = yaml.safe_load(PIPELINE.read_text())["spec"]
    (step,) = (each for each in spec["templates"] if each["name"] == "prepare-data")
    container = step["container"] | {"name": "main", "image": "localhost/loraline:dev"}
    container |= {"command": command, "args": []}
    workflow = ("LORALINE_WORKFLOW_NAME", "LORALINE_WORKFLOW_UID", "LORALINE_IMAGE")
    container["env"] = [each for each in container["env"] if each["name"] not in workflow]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "securityContext": spec["securityContext"],
            "containers": [container],
            "volumes": [*spec["volumes"], *step["volumes"]],
        },
    }


def printed(namespace: Any, name: str, *command: str) -> str:
    """What a command said in such a pod, once it has ended well."""
    namespace.kubectl("delete", "pod", name, "--ignore-not-found")
    namespace.kubectl("apply", "-f", "-", stdin=json.dumps(of_a_step(name, [*command])))
    ended = ("--for=jsonpath={.status.phase}=Succeeded", "--timeout=180s")
    namespace.kubectl("wait", f"pod/{name}", *ended, check=False)
    phase = namespace.kubectl("get", f"pod/{name}", "-o", "jsonpath={.status.phase}")
    said: str = namespace.kubectl("logs", name)
    assert phase == "Succeeded", said
    return said.strip()


@pytest.mark.parametrize(("words", "status"), [("none", "401"), ("wrong", "401"), ("right", "200")])
def test_who_asks_without_the_secrets_words_is_refused(
    namespace: Any, words: str, status: str
) -> None:
    assert printed(namespace, f"asks-with-{words}", "python", "-c", SEARCH, words) == status


def test_a_step_with_the_secrets_words_logs_a_run(namespace: Any) -> None:
    step = "python steps/prepare_data.py --profile smoke-text --out-dir /tmp/outputs >&2"
    said = printed(namespace, "prepares", "sh", "-c", f"{step} && cat /tmp/outputs/run-id")
    run_id = said.splitlines()[-1]
    assert namespace.python(RUNS, run_id) == ["FINISHED", "prepare_data"]
