"""What makes a group of machines is an object that its cluster would take."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

ROOT = Path(__file__).parents[2]
SCHEMAS = Path(__file__).parent / "crds"
KUBERNETES = "1.31"
"""The oldest that the docs name."""

Object = dict[str, Any]


def closed(schema: Any) -> Any:
    """A schema that refuses unknown fields, as a cluster with strict validation does."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    result = {key: closed(value) for key, value in schema.items()}
    open_ = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object" and not open_:
        result["additionalProperties"] = False
    return result


def schema_of(name: str) -> Object:
    schema = closed(json.loads((SCHEMAS / f"{name}.json").read_text()))
    schema["properties"]["metadata"] = {"type": "object"}
    return schema


def group(source: Any, trainer: str, machines: str = "gpu-large-2x4") -> Object:
    settings = source.Settings(machines=machines, trainer=trainer)
    spec = source.build("pipeline", settings=settings).to_dict()["spec"]
    return next(each for each in spec["templates"] if each["name"] == "train-group")


def filled_in(source: Any, trainer: str, machines: str = "gpu-large-2x4") -> Object:
    """The object once Argo has filled in its references."""
    text = group(source, trainer, machines)["resource"]["manifest"]
    text = re.sub(r"\{\{=toJson\(.*?\)\}\}", lambda match: json.dumps(f"a: 'b'\n{match[0]}"), text)
    return yaml.safe_load(re.sub(r"\{\{workflow\.(.*?)\}\}", "w", text))


def fault(schema: Object, found: Object) -> str:
    errors = jsonschema.Draft202012Validator(schema).iter_errors(found)
    return "; ".join(f"{error.json_path}: {error.message[:200]}" for error in errors)


def test_a_job_is_what_kubernetes_takes(source: Any, classes: Any) -> None:
    for machines in classes:
        kubernetes_validate.validate(filled_in(source, "job", machines), KUBERNETES, strict=True)


@pytest.mark.parametrize(("trainer", "kind"), [("trainjob", "TrainJob"), ("rayjob", "RayJob")])
def test_the_objects_of_other_trainers_are_what_their_schemas_take(
    source: Any, classes: Any, trainer: str, kind: str
) -> None:
    for machines in classes:
        result = filled_in(source, trainer, machines)
        assert result["kind"] == kind
        assert fault(schema_of(trainer), result) == ""


@pytest.mark.parametrize(
    ("trainer", "path", "value"),
    [
        ("trainjob", ("spec", "trainer", "numNodes"), "2"),
        ("trainjob", ("spec", "trainer", "volumes"), []),
        ("trainjob", ("spec", "podTemplateOverrides"), []),
        ("rayjob", ("spec", "rayClusterSpec", "headGroupSpec", "template", "spec", "node"), "a"),
        ("rayjob", ("spec", "backoffLimit"), "0"),
    ],
)
def test_a_schema_refuses_what_its_cluster_does_not_know(
    source: Any, trainer: str, path: tuple[str, ...], value: Any
) -> None:
    result = copy.deepcopy(filled_in(source, trainer))
    inner = result
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    assert fault(schema_of(trainer), result)


@pytest.mark.parametrize("trainer", ["trainjob", "rayjob"])
def test_argo_looks_at_fields_that_the_object_s_status_has(source: Any, trainer: str) -> None:
    result = group(source, trainer)
    how = result["outputs"]["parameters"][0]["valueFrom"]["jsonPath"]
    looked_at = result["resource"]["successCondition"].split()[0]
    paths = [*re.findall(r"\{\.([^}]*)\}", how), looked_at]
    schema = schema_of(trainer)
    for path in paths:
        inner = schema["properties"]["status"]
        for key in re.findall(r"[A-Za-z]\w*|\d+", path.removeprefix("status.")):
            inner = inner["items"] if key.isdigit() else inner["properties"][key]


def test_a_pod_of_a_train_job_is_numbered_by_its_runtime(source: Any) -> None:
    spec = filled_in(source, "trainjob")["spec"]
    assert spec["runtimeRef"] == {"name": "torch-distributed"}
    assert (spec["trainer"]["numNodes"], spec["trainer"]["numProcPerNode"]) == (2, 4)
    assert spec["trainer"]["args"][-6:] == [
        *("--nodes", "2", "--node", "$(PET_NODE_RANK)", "--first-node"),
        "$(PET_MASTER_ADDR):$(PET_MASTER_PORT)",
    ]
    (patch,) = spec["runtimePatches"]
    (job,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod = job["template"]["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] == 900
    assert {mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]} >= {"/dev/shm"}
    assert pod["securityContext"]["runAsNonRoot"] is True


def test_no_input_of_a_ray_job_goes_through_a_shell(source: Any) -> None:
    spec = filled_in(source, "rayjob")["spec"]
    assert spec["entrypoint"] == "python -m loraline.training.on_ray"
    head = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    words = {each["name"]: each.get("value") for each in head["env"]}
    assert words["LORALINE_WORD_00"] == "python"
    assert words["LORALINE_WORD_01"] == "steps/train_qlora.py"
    assert [words[f"LORALINE_WORD_{n:02}"] for n in (2, 4)] == ["--run-id", "--profile"]
    assert (words["LORALINE_NODES"], words["LORALINE_GPUS"]) == ("2", "4")
    (machines,) = spec["rayClusterSpec"]["workerGroupSpecs"]
    assert machines["replicas"] == machines["minReplicas"] == machines["maxReplicas"] == 2
    (worker,) = machines["template"]["spec"]["containers"]
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == "4"


@pytest.mark.parametrize("trainer", ["trainjob", "rayjob"])
def test_what_makes_it_is_a_cluster_s_own_and_named_where_it_cannot_run(
    trainer: str, tmp_path: Path
) -> None:
    pipeline = [sys.executable, ROOT / "workflows/pipeline.py", "--trainer", trainer]
    subprocess.run(
        [*pipeline, "--resources", "cpu-2", "--out", tmp_path], check=True, capture_output=True
    )
    command = [sys.executable, "-m", "runner.run_local", "pipeline.yaml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert f"a resource of kind {trainer.replace('job', '').title()}Job" in done.stderr
    assert "does not run here" in done.stderr


def test_argo_may_make_what_a_trainer_makes(source: Any) -> None:
    file = ROOT / "workflows/cluster/trainers/access.yaml"
    role, binding = yaml.safe_load_all(file.read_text())
    rights = {(rule["apiGroups"][0], rule["resources"][0]): rule["verbs"] for rule in role["rules"]}
    for trainer in ("trainjob", "rayjob"):
        result = filled_in(source, trainer)
        verbs = rights.pop((result["apiVersion"].partition("/")[0], f"{result['kind'].lower()}s"))
        assert verbs == ["create", "get", "patch"]
    assert not rights
    assert binding["roleRef"]["name"] == role["metadata"]["name"]


def test_another_trainer_is_for_several_machines() -> None:
    command = [sys.executable, ROOT / "workflows/pipeline.py", "--trainer", "rayjob"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "--trainer rayjob needs --resources" in done.stderr
