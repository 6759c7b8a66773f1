"""The linter refuses what Argo would refuse, and what production would come to regret."""

from __future__ import annotations

import copy
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PIPELINE = yaml.safe_load((ROOT / "workflows/pipeline.yaml").read_text())
SWEEP = yaml.safe_load((ROOT / "workflows/sweep.yaml").read_text())
Object = dict[str, Any]
Edit = Callable[[Object], Any]


def template(spec: Object, name: str) -> Object:
    return next(result for result in spec["templates"] if result["name"] == name)


def task(spec: Object, name: str) -> Object:
    return next(
        result for result in template(spec, "main")["dag"]["tasks"] if result["name"] == name
    )


def argument(spec: Object, name: str) -> Object:
    return task(spec, name)["arguments"]["parameters"][0]


def container(spec: Object, name: str) -> Object:
    return template(spec, name)["container"]


def output(spec: Object, name: str) -> Object:
    return template(spec, name)["outputs"]["parameters"][0]


def duplicate(spec: Object) -> None:
    spec["templates"].append(copy.deepcopy(template(spec, "evaluate")))


def idle(spec: Object) -> None:
    spec["templates"].append({**copy.deepcopy(template(spec, "evaluate")), "name": "idle"})


def skippable(spec: Object) -> None:
    task(spec, "quality-gate")["when"] = "yes == yes"
    task(spec, "deploy-vllm")["when"] = "'{{tasks.quality-gate.outputs.parameters.result}}' != x"


def stranger(spec: Object) -> None:
    del spec["volumes"]


def hosted(spec: Object) -> None:
    spec["volumes"].append({"name": "node", "hostPath": {"path": "/"}})


def patched(old: str, new: str) -> Edit:
    def edit(spec: Object) -> None:
        result = template(spec, "evaluate")
        assert old in result["podSpecPatch"]
        result["podSpecPatch"] = result["podSpecPatch"].replace(old, new, 1)

    return edit


def retried(expression: str) -> Edit:
    return lambda s: template(s, "evaluate")["retryStrategy"].update(expression=expression)


def variable(spec: Object, name: str, **fields: Any) -> None:
    result = next(v for v in container(spec, "evaluate")["env"] if v["name"] == name)
    result.clear()
    result.update(name=name, **fields)


def without_shm(spec: Object) -> None:
    mounts = container(spec, "train-qlora")["volumeMounts"]
    mounts[:] = [mount for mount in mounts if mount["mountPath"] != "/dev/shm"]


# What is broken, the words that the finding has to have, and whether Argo's own linter objects.
BROKEN: dict[str, tuple[Edit, tuple[str, ...], bool]] = {
    "no such entrypoint": (
        lambda s: s.update(entrypoint="line"),
        ("spec", "entrypoint line"),
        True,
    ),
    "no such exit handler": (
        lambda s: s.update(onExit="stop"),
        ("spec", "onExit stop"),
        True,
    ),
    "no such template": (
        lambda s: task(s, "evaluate").update(template="measure"),
        ("template main: task evaluate", "template measure"),
        True,
    ),
    "two templates of a name": (duplicate, ("evaluate",), True),
    "a template that nothing calls": (idle, ("template idle", "nothing calls it"), False),
    "a misspelt argument": (
        lambda s: argument(s, "evaluate").update(name="runid"),
        ("template main: task evaluate", "runid"),
        True,
    ),
    "an argument left out": (
        lambda s: task(s, "evaluate").pop("arguments"),
        ("template main: task evaluate", "run-id", "no value"),
        True,
    ),
    "an output that the step has not": (
        lambda s: argument(s, "evaluate").update(
            value="{{tasks.train-qlora.outputs.parameters.model}}"
        ),
        ("template main: task evaluate", "train-qlora.outputs.parameters.model"),
        True,
    ),
    "an output that is not waited for": (
        lambda s: task(s, "evaluate").pop("depends"),
        ("template main: task evaluate", "does the task depend on train-qlora"),
        True,
    ),
    "a dependency that is none": (
        lambda s: task(s, "evaluate").update(depends="train"),
        ("template main: task evaluate", "depends on train"),
        True,
    ),
    "a ring": (
        lambda s: task(s, "prepare-data").update(depends="deploy-vllm"),
        ("template main", "depend on each other"),
        True,
    ),
    "an outcome that is none": (
        lambda s: task(s, "evaluate").update(depends="train-qlora.Done"),
        ("template main: task evaluate", "train-qlora.Done"),
        True,
    ),
    "any of one": (
        lambda s: task(s, "evaluate").update(depends="train-qlora.AnySucceeded"),
        ("template main: task evaluate", "neither items nor a list"),
        True,
    ),
    "half a condition": (
        lambda s: task(s, "deploy-vllm").update(when="passed =="),
        ("template main: task deploy-vllm", "when"),
        False,
    ),
    "an unknown field": (
        lambda s: container(s, "evaluate").update(workdir="/app"),
        ("template evaluate", "workdir"),
        True,
    ),
    "a misspelt parameter of the workflow": (
        lambda s: argument(s, "prepare-data").update(value="{{workflow.parameters.profil}}"),
        ("template main: task prepare-data", "workflow.parameters.profil"),
        True,
    ),
    "a default outside the enum": (
        lambda s: s["arguments"]["parameters"][0].update(value="smoke"),
        ("spec: parameter profile", "smoke"),
        True,
    ),
    "the retired way to lock": (
        lambda s: template(s, "evaluate").update(synchronization={"mutex": {"name": "gpu"}}),
        ("template evaluate", "mutex"),
        False,
    ),
    "an output without default": (
        lambda s: output(s, "evaluate")["valueFrom"].pop("default"),
        ("template evaluate", "run-id has no default"),
        False,
    ),
    "an output outside of the volume": (
        lambda s: output(s, "evaluate")["valueFrom"].update(path="/app/run-id"),
        ("template evaluate", "/app/run-id"),
        False,
    ),
    "a default that depends on the release": (
        skippable,
        ("template main: task deploy-vllm", "Argo 3", "Argo 4"),
        False,
    ),
    "an empty default without quotes": (
        lambda s: task(s, "deploy-vllm").update(
            when="{{tasks.quality-gate.outputs.parameters.run-id}} != x"
        ),
        ("template main: task deploy-vllm", "without quotes"),
        False,
    ),
    "a flag that the step has not": (
        lambda s: container(s, "evaluate")["args"].extend(["--fast", "yes"]),
        ("template evaluate", "steps/evaluate.py", "--fast"),
        False,
    ),
    "a flag that the step needs": (
        lambda s: container(s, "train-qlora").update(args=container(s, "train-qlora")["args"][2:]),
        ("template train-qlora", "steps/train_qlora.py needs --run-id"),
        False,
    ),
    "a step that is none": (
        lambda s: container(s, "evaluate").update(command=["python", "steps/measure.py"]),
        ("template evaluate", "steps/measure.py"),
        False,
    ),
    "a shell around a parameter": (
        lambda s: container(s, "evaluate").update(
            command=["sh", "-c"], args=["echo {{inputs.parameters.run-id}}"]
        ),
        ("template evaluate", "shell"),
        False,
    ),
    "a secret in the file": (
        lambda s: container(s, "evaluate")["env"].append({"name": "HF_TOKEN_2", "value": "x"}),
        ("template evaluate", "HF_TOKEN_2", "secretKeyRef"),
        False,
    ),
    "an image of any day": (
        lambda s: container(s, "evaluate").update(image="loraline:latest"),
        ("template evaluate", "loraline:latest"),
        False,
    ),
    "no deadline": (
        lambda s: template(s, "evaluate").pop("activeDeadlineSeconds"),
        ("template evaluate", "for ever"),
        False,
    ),
    "no retry": (
        lambda s: template(s, "evaluate").pop("retryStrategy"),
        ("template evaluate", "retryStrategy"),
        False,
    ),
    "a retry in an unknown tongue": (
        lambda s: template(s, "evaluate")["retryStrategy"].update(expression="lastRetry.code > 3"),
        ("template evaluate", "lastRetry.code"),
        False,
    ),
    "no resources": (
        lambda s: template(s, "evaluate").pop("podSpecPatch"),
        ("template evaluate", "resources"),
        False,
    ),
    "resources with parameters": (
        lambda s: container(s, "evaluate").update(
            resources={"limits": {"nvidia.com/gpu": "{{inputs.parameters.run-id}}"}}
        ),
        ("template evaluate", "podSpecPatch"),
        True,
    ),
    "root": (
        lambda s: s["securityContext"].update(runAsNonRoot=False),
        ("spec", "runAsNonRoot"),
        False,
    ),
    "a file system to write to": (
        lambda s: container(s, "evaluate")["securityContext"].update(readOnlyRootFilesystem=False),
        ("template evaluate", "readOnlyRootFilesystem"),
        False,
    ),
    "capabilities": (
        lambda s: container(s, "evaluate")["securityContext"].pop("capabilities"),
        ("template evaluate", "capabilities"),
        False,
    ),
    "a token for every step": (
        lambda s: s.pop("automountServiceAccountToken"),
        ("spec", "automountServiceAccountToken"),
        False,
    ),
    "a volume that is none": (stranger, ("template prepare-data", "models"), False),
    "no end to finished workflows": (
        lambda s: s.pop("ttlStrategy"),
        ("spec", "ttlStrategy"),
        False,
    ),
    "a parameter that says nothing": (
        lambda s: s["arguments"]["parameters"][1].pop("description"),
        ("spec: parameter data", "description"),
        False,
    ),
    "a privileged container": (
        lambda s: container(s, "evaluate")["securityContext"].update(privileged=True),
        ("template evaluate", "securityContext.privileged is true"),
        False,
    ),
    "a container of root": (
        lambda s: container(s, "evaluate")["securityContext"].update(runAsUser=0),
        ("template evaluate", "securityContext.runAsUser is 0"),
        False,
    ),
    "a container that may be root's": (
        lambda s: container(s, "evaluate")["securityContext"].update(runAsNonRoot=False),
        ("template evaluate", "securityContext.runAsNonRoot is false"),
        False,
    ),
    "a pod of root": (
        lambda s: template(s, "evaluate").update(securityContext={"runAsUser": 0}),
        ("template evaluate", "securityContext.runAsUser is 0"),
        False,
    ),
    "a workflow of root": (
        lambda s: s["securityContext"].update(runAsUser=0),
        ("spec", "securityContext.runAsUser is 0"),
        False,
    ),
    "added capabilities": (
        lambda s: container(s, "evaluate")["securityContext"]["capabilities"].update(
            add=["SYS_ADMIN"]
        ),
        ("template evaluate", "capabilities adds", "SYS_ADMIN"),
        False,
    ),
    "system calls without a filter": (
        lambda s: template(s, "evaluate").update(
            securityContext={"seccompProfile": {"type": "Unconfined"}}
        ),
        ("template evaluate", "seccompProfile", "Unconfined"),
        False,
    ),
    "a token for one step": (
        lambda s: template(s, "evaluate").update(automountServiceAccountToken=True),
        ("template evaluate", "automountServiceAccountToken is true"),
        False,
    ),
    "a folder of the node": (hosted, ("spec", "hostPath"), False),
    "a folder of the node for one step": (
        lambda s: template(s, "evaluate")["volumes"].append(
            {"name": "node", "hostPath": {"path": "/"}}
        ),
        ("template evaluate", "hostPath"),
        False,
    ),
    "the node's network by a patch": (
        patched('{"containers":', '{"hostNetwork":true,"containers":'),
        ("template evaluate", "podSpecPatch: hostNetwork"),
        False,
    ),
    "a privileged container by a patch": (
        patched('"name":"main",', '"name":"main","securityContext":{"privileged":true},'),
        ("template evaluate", "podSpecPatch", "privileged"),
        False,
    ),
    "a patch that depends": (
        lambda s: template(s, "evaluate").update(
            podSpecPatch="{{=workflow.parameters['resources'] == 'cpu' ? '{}' : '[]'}}"
        ),
        ("template evaluate", "podSpecPatch is no choice from a table"),
        False,
    ),
    "memory in no unit": (
        patched('"memory":"32Gi"', '"memory":"4GiB"'),
        ("template evaluate", "podSpecPatch: limits.memory '4GiB'"),
        False,
    ),
    "a shell behind env": (
        lambda s: container(s, "evaluate").update(
            command=["env", "sh", "-c"], args=["echo {{inputs.parameters.run-id}}"]
        ),
        ("template evaluate", "shell"),
        False,
    ),
    "a parameter as code": (
        lambda s: container(s, "evaluate").update(
            command=["python", "-c"], args=["print('{{inputs.parameters.run-id}}')"]
        ),
        ("template evaluate", "code after -c"),
        False,
    ),
    "a secret in the namespace's settings": (
        lambda s: variable(
            s, "HF_TOKEN", valueFrom={"configMapKeyRef": {"name": "loraline", "key": "hf-token"}}
        ),
        ("template evaluate", "HF_TOKEN", "secretKeyRef"),
        False,
    ),
    "a secret as a parameter": (
        lambda s: variable(s, "HF_TOKEN", value="{{workflow.parameters.data}}"),
        ("template evaluate", "HF_TOKEN", "secretKeyRef"),
        False,
    ),
    "a token among the arguments": (
        lambda s: container(s, "evaluate")["args"].extend(["--metric", "hf_" + 30 * "x"]),
        ("template evaluate", "arguments hold what looks like a secret"),
        False,
    ),
    "a token as a default": (
        lambda s: s["arguments"]["parameters"][1].update(value="hf_" + 30 * "x"),
        ("spec", "a parameter holds what looks like a secret"),
        False,
    ),
    "a retry of everything": (
        retried("true"),
        ("template evaluate", "a user's mistake (2) is tried again"),
        False,
    ),
    "a retry of lack of memory": (
        retried("asInt(lastRetry.exitCode) > 2 || lastRetry.status == 'Error'"),
        ("template evaluate", "memory that ran out (137) is tried again"),
        False,
    ),
    "an exit code read as a number": (
        retried("lastRetry.exitCode == 75 || lastRetry.status == 'Error'"),
        ("template evaluate", "exit code 75 is not tried again", "asInt"),
        False,
    ),
    "a retry that leaves lost pods out": (
        retried("asInt(lastRetry.exitCode) == 75"),
        ("template evaluate", "a lost pod is not tried again"),
        False,
    ),
    "no retry at all": (
        lambda s: template(s, "evaluate")["retryStrategy"].update(limit=0),
        ("template evaluate", "limit 0"),
        False,
    ),
    "a GPU without a queue": (
        lambda s: template(s, "evaluate").pop("synchronization"),
        ("template evaluate", "semaphore"),
        False,
    ),
    "two gates at once": (
        lambda s: template(s, "quality-gate").pop("synchronization"),
        ("template quality-gate", "no mutex"),
        False,
    ),
    "little shared memory": (without_shm, ("template train-qlora", "/dev/shm"), False),
    "an output that no step writes": (
        lambda s: output(s, "evaluate")["valueFrom"].update(path="/tmp/outputs/runid"),
        ("template evaluate", "output run-id: steps/evaluate.py writes no file runid"),
        False,
    ),
    "a profile that is none": (
        lambda s: container(s, "train-qlora")["args"].extend(["--profile", "nosuchprofile"]),
        ("template train-qlora", "--profile nosuchprofile is none of", "smoke-text"),
        False,
    ),
}


@pytest.fixture(scope="module")
def lint(script: Any) -> Any:
    sys.path.insert(0, str(ROOT / "workflows"))
    return script("workflows/lint.py")


@pytest.fixture
def broken(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    document = copy.deepcopy(PIPELINE)
    BROKEN[request.param][0](document["spec"])
    file = tmp_path / "broken.yaml"
    file.write_text(yaml.safe_dump(document))
    return file


def test_there_are_thirty_broken_workflows() -> None:
    assert len(BROKEN) >= 30


@pytest.mark.parametrize("broken", BROKEN, indirect=True)
def test_a_broken_workflow_is_refused_by_name(lint: Any, broken: Path, request: Any) -> None:
    case = request.node.callspec.params["broken"]
    result = lint.findings(broken)

    assert any(all(word in finding for word in BROKEN[case][1]) for finding in result), result


@pytest.mark.skipif(not shutil.which("argo"), reason="argo is not installed")
@pytest.mark.parametrize("broken", BROKEN, indirect=True)
def test_argo_agrees_where_it_has_an_opinion(lint: Any, broken: Path, request: Any) -> None:
    expected = BROKEN[request.node.callspec.params["broken"]][2]

    assert bool(lint.argo_findings([broken])) == expected


def test_the_committed_workflows_have_nothing_to_find(lint: Any) -> None:
    files = sorted((ROOT / "workflows").glob("*.yaml"))

    names = ["pipeline", "prepare_shares", "promote", "retrain", "sweep"]
    assert [file.stem for file in files] == names
    assert {file.stem: lint.findings(file) for file in files} == {f.stem: [] for f in files}
    assert lint.argo_findings(files) == []


@pytest.mark.parametrize("field", ["schedules", "concurrencyPolicy"])
def test_a_schedule_says_when_and_how_many_at_once(lint: Any, tmp_path: Path, field: str) -> None:
    document = yaml.safe_load((ROOT / "workflows/retrain.yaml").read_text())
    del document["spec"][field]
    file = tmp_path / "retrain.yaml"
    file.write_text(yaml.safe_dump(document))

    assert [field in finding for finding in lint.findings(file)] == [True]


def test_findings_are_printed_one_a_line_and_end_with_1(tmp_path: Path) -> None:
    document = copy.deepcopy(SWEEP)
    del document["spec"]["ttlStrategy"], document["spec"]["podGC"]
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump(document))
    without_argo = os.environ | {"PATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, ROOT / "workflows/lint.py", file],
        env=without_argo,
        capture_output=True,
        text=True,
    )

    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "argo is not installed, so `argo lint` was not run",
        "sweep.yaml: spec: no podGC",
        "sweep.yaml: spec: no ttlStrategy",
    ]
