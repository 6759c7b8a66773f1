"""What the workflows make of a class of several machines: a Job, watched by a resource template."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
Object = dict[str, Any]


def spec(source: Any, machines: str, name: str = "pipeline") -> Object:
    document = source.build(name, settings=source.Settings(machines=machines)).to_dict()
    return document["spec"].get("workflowSpec", document["spec"])


def template(found: Object, name: str) -> Object:
    return next(each for each in found["templates"] if each["name"] == name)


def job(found: Object) -> Object:
    """The Job, with `{{inputs.parameters.…}}` where the manifest has them as JSON."""
    text = template(found, "train-group")["resource"]["manifest"]
    return yaml.safe_load(
        re.sub(r"\{\{=toJson\((inputs\.parameters)\['([-\w]+)'\]\)\}\}", r"'{{\1.\2}}'", text)
    )


def main(found: Object) -> Object:
    (container,) = job(found)["spec"]["template"]["spec"]["containers"]
    return container


@pytest.mark.parametrize("name", ["pipeline", "retrain"])
def test_a_group_trains_and_the_step_hands_over_what_it_trained(source: Any, name: str) -> None:
    tasks = template(spec(source, "cpu-2", name), "main")["dag"]["tasks"]
    assert [(task["name"], task.get("depends")) for task in tasks] == [
        ("prepare-data", None),
        ("train-group", "prepare-data"),
        ("train-qlora", "train-group"),
        ("evaluate", "train-qlora"),
        ("quality-gate", "evaluate"),
        ("deploy-vllm", "quality-gate"),
    ]
    given = [
        {each["name"]: each["value"] for each in task["arguments"]["parameters"]} for task in tasks
    ]
    assert given[2] == {**given[1], "ended": "{{tasks.train-group.outputs.parameters.ended}}"}


def test_the_group_is_a_pod_for_each_machine_of_its_class(source: Any, classes: Any) -> None:
    for name, wanted in classes.items():
        made = job(spec(source, name))["spec"]
        pod = made["template"]["spec"]
        container = main(spec(source, name))
        assert made["completionMode"] == "Indexed"
        assert made["completions"] == made["parallelism"] == wanted.machines
        assert container["args"][-6:] == [
            *("--nodes", str(wanted.machines), "--node", "$(JOB_COMPLETION_INDEX)", "--first-node"),
            "{{workflow.name}}-train-0.loraline-training:29500",
        ]
        gpus = {"LORALINE_GPUS": str(wanted.gpus)} if wanted.gpus > 1 else {}
        message = {each["name"]: each.get("value") for each in container["env"]}
        assert gpus.items() <= message.items()
        limits = container["resources"]["limits"]
        assert limits.get("nvidia.com/gpu", "0") == (str(wanted.gpus) if wanted.device else "0")
        assert ("affinity" in pod) == bool(wanted.gpu_memory_above)
        assert pod["terminationGracePeriodSeconds"] == 900


def test_a_pod_of_the_group_is_the_pod_of_the_step_on_one_machine(source: Any) -> None:
    result, alone = spec(source, "cpu-2"), spec(source, "")
    step, container = template(alone, "train-qlora")["container"], main(result)
    same = ("image", "imagePullPolicy", "command", "env", "volumeMounts", "securityContext")
    assert {key: container[key] for key in same} == {key: step[key] for key in same}
    assert container["args"][:-6] == step["args"]
    pod = job(result)["spec"]["template"]["spec"]
    assert pod["securityContext"] == alone["securityContext"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["shareProcessNamespace"] is True
    assert pod["volumes"] == [*alone["volumes"], *template(alone, "train-qlora")["volumes"]]


def test_a_lost_pod_is_made_anew_and_any_exit_code_but_75_ends_the_group(source: Any) -> None:
    made = job(spec(source, "cpu-2"))["spec"]
    assert made["backoffLimit"] == 3 * 2
    assert made["successPolicy"] == {"rules": [{"succeededIndexes": "0"}]}
    ignored, again, ended = made["podFailurePolicy"]["rules"]
    assert (ignored["action"], ignored["onPodConditions"][0]["type"]) == (
        *("Ignore", "DisruptionTarget"),
    )
    assert (again["action"], again["onExitCodes"]["operator"]) == ("Count", "In")
    assert (ended["action"], ended["onExitCodes"]["operator"]) == ("FailJob", "NotIn")
    assert again["onExitCodes"]["values"] == ended["onExitCodes"]["values"] == [75]


def test_the_group_goes_with_the_workflow_and_ends_when_that_is_stopped(source: Any) -> None:
    result = spec(source, "cpu-2")
    group = template(result, "train-group")
    assert group["resource"]["action"] == "apply"
    assert group["resource"]["setOwnerReference"] is True
    # It says how the Job ended, and so does a Job that failed.
    assert group["resource"]["successCondition"] == (
        "status.conditions.1.type in (Complete, Failed)"
    )
    seconds = job(result)["spec"]["activeDeadlineSeconds"]
    assert seconds + 900 < group["activeDeadlineSeconds"] < result["activeDeadlineSeconds"]

    stop = template(result, "stop-group")["resource"]
    assert stop["flags"] == ["job", job(result)["metadata"]["name"]]
    assert yaml.safe_load(stop["manifest"]) == {"spec": {"suspend": True}}
    (steps,) = template(result, "finish")["steps"]
    assert {step["name"]: step["when"] for step in steps}["stop-group"] == (
        "{{workflow.status}} != Succeeded"
    )


def test_the_namespace_gives_the_pods_their_names_and_argo_the_right_to_make_them(
    source: Any,
) -> None:
    base = ROOT / "workflows/cluster/base"
    service = yaml.safe_load((base / "training.yaml").read_text())
    made = job(spec(source, "cpu-2"))
    assert service["metadata"]["name"] == made["spec"]["template"]["spec"]["subdomain"]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    labels = made["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()
    assert labels["workflows.argoproj.io/workflow"] == "{{workflow.name}}"


def test_the_rendered_workflows_have_nothing_to_find_and_run_here(
    script: Any, classes: Any, tmp_path: Path
) -> None:
    lint = script("workflows/lint.py")
    for name in classes:
        command = [sys.executable, ROOT / "workflows/pipeline.py", "--resources", name]
        subprocess.run([*command, "--out", tmp_path], check=True, capture_output=True)
        files = sorted(tmp_path.glob("*.yaml"))
        assert [file.stem for file in files] == ["pipeline", "retrain"]
        assert {file.stem: lint.findings(file) for file in files} == {f.stem: [] for f in files}
        assert lint.argo_findings(files) == []
    command = [sys.executable, "-m", "runner.run_local", "pipeline.yaml", "--dry-run"]
    printed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    group = next(line for line in printed.stdout.splitlines() if line.startswith("train-group: "))
    assert group.startswith("train-group: 2 processes of python steps/train_qlora.py --run-id ")


def without(*path: str) -> Any:
    def change(made: Object, group: Object) -> None:
        for key in path[:-1]:
            made = made[0][key] if isinstance(made, list) else made[key]
        del (made[0] if isinstance(made, list) else made)[path[-1]]

    return change


POD = ("spec", "template", "spec")
BROKEN = {
    "a Job that outlives its workflow": (
        lambda made, group: group["resource"].pop("setOwnerReference"),
        "setOwnerReference is not true",
    ),
    "a second Job after a lost pod": (
        lambda made, group: group["resource"].update(action="create"),
        "create makes another one",
    ),
    "a Job without end": (without("spec", "activeDeadlineSeconds"), "it can run for ever"),
    "a pod as root": (without(*POD, "securityContext"), "runAsNonRoot is not true"),
    "a pod that writes anywhere": (
        without(*POD, "containers", "securityContext"),
        "manifest: securityContext.readOnlyRootFilesystem is not true",
    ),
    "a pod without limits": (
        without(*POD, "containers", "resources"),
        "manifest: it does not request and limit memory",
    ),
    "a pod with little shared memory": (
        without(*POD, "containers", "volumeMounts"),
        "manifest: no volume is mounted at /dev/shm",
    ),
    "a pod with the node's network": (
        lambda made, group: made["spec"]["template"]["spec"].update(hostNetwork=True),
        "manifest: hostNetwork is true",
    ),
    "a flag that the step has not": (
        lambda made, group: made["spec"]["template"]["spec"]["containers"][0]["args"].append(
            "--machines=2"
        ),
        "manifest: steps/train_qlora.py: No such option",
    ),
    "a GPU without a queue": (
        lambda made, group: (
            made["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"].update(
                {"nvidia.com/gpu": "1"}
            ),
            group.pop("synchronization"),
        ),
        "manifest: it may ask for a GPU and waits for no semaphore",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_group_is_refused_by_name(
    script: Any, source: Any, tmp_path: Path, case: str
) -> None:
    change, message = BROKEN[case]
    result = source.build("pipeline", settings=source.Settings(machines="cpu-2")).to_dict()
    group = template(result["spec"], "train-group")
    made = job(result["spec"])
    change(made, group)
    group["resource"]["manifest"] = script("workflows/machines.py").as_yaml(made)
    file = tmp_path / "pipeline.yaml"
    file.write_text(yaml.safe_dump(result))

    findings = script("workflows/lint.py").findings(file)
    assert any(message in finding for finding in findings), findings


def test_a_sweep_trains_its_members_on_one_machine_each(script: Any, monkeypatch: Any) -> None:
    monkeypatch.syspath_prepend(ROOT / "workflows")
    submit = script("workflows/submit.py")
    with pytest.raises(submit.UserError, match="sweep trains on one machine; pipeline and retrain"):
        submit.with_recipes(ROOT / "workflows/sweep.yaml", ["resources=cpu-2"])


def test_a_class_of_several_machines_is_rendered_when_it_is_asked_for(
    script: Any, monkeypatch: Any, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(ROOT / "workflows")
    monkeypatch.chdir(tmp_path)
    submit = script("workflows/submit.py")
    file, parameters = submit.with_recipes(
        ROOT / "workflows/pipeline.yaml", ["resources=cpu-2", "profile=smoke-text"]
    )
    assert file == Path("outputs/workflows/pipeline.yaml")
    assert "train-group" in {
        each["name"] for each in yaml.safe_load(file.read_text())["spec"]["templates"]
    }
    assert "resources=cpu-2" in parameters


def test_a_whole_model_is_not_submitted_to_several_machines(script: Any, monkeypatch: Any) -> None:
    monkeypatch.syspath_prepend(ROOT / "workflows")
    submit = script("workflows/submit.py")
    given = ["resources=cpu-2", "profile=smoke-text", "set=train=full export=merged"]
    with pytest.raises(submit.UserError, match="train: full takes one machine"):
        submit.with_recipes(ROOT / "workflows/pipeline.yaml", given)


def test_it_is_rendered_elsewhere_than_the_workflows_for_one_machine() -> None:
    command = [sys.executable, ROOT / "workflows/pipeline.py", "--resources", "cpu-2"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "--resources needs --out" in done.stderr
