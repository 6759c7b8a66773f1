"""A Job of a resource template is as many processes; any other object is refused."""

from __future__ import annotations

import asyncio
import copy
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import conformance as c
import pytest

from runner import jobs
from runner.containers import Stop
from runner.language import Refused
from runner.manifests import holds, json_path, read_condition, read_job
from runner.programs import Programs
from runner.reader import understood

Object = dict[str, Any]

PROGRAM = """
import os, pathlib, sys, time
index = os.environ["JOB_COMPLETION_INDEX"]
with open(f"pod-{index}", "a") as file:
    print(*sys.argv[2:], file=file)
codes = sys.argv[1].split(",")[int(index)].split("-")
time.sleep(0.02)
begun = len(pathlib.Path(f"pod-{index}").read_text().splitlines())
code = codes[min(begun, len(codes)) - 1]
if code == "wait":
    time.sleep(60)
sys.exit(int(code))
"""
"""Ends a pod with the first of its codes at first, then with the second, and so on."""

FAILED = (
    "Failed: Container main for pod w-train-1 failed with exit code 2 matching FailJob rule at "
    "index 2"
)
REACHED = "Failed: Job has reached the specified backoff limit"
LATE = "Failed: Job was active longer than specified deadline"
WELL = "Complete: Matched rules at index 0"


def manifest(codes: str, **spec: Any) -> Object:
    seventy_five = {"containerName": "main", "values": [75]}
    container = {
        "name": "main",
        "image": c.IMAGE,
        "command": ["python", "-c", PROGRAM],
        "args": [codes, "$(JOB_COMPLETION_INDEX)", "w-train-0.meet:29500", "w-train-1.meet"],
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "w-train"},
        "spec": {
            "completionMode": "Indexed",
            "completions": 2,
            "parallelism": 2,
            "backoffLimit": 3,
            "successPolicy": {"rules": [{"succeededIndexes": "0"}]},
            "podFailurePolicy": {
                "rules": [
                    {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]},
                    {"action": "Count", "onExitCodes": {**seventy_five, "operator": "In"}},
                    {"action": "FailJob", "onExitCodes": {**seventy_five, "operator": "NotIn"}},
                ]
            },
            "template": {
                "spec": {"restartPolicy": "Never", "subdomain": "meet", "containers": [container]}
            },
            **spec,
        },
    }


@pytest.fixture
def ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Run a Job here; how it ended, as the step after it is told."""
    monkeypatch.setattr(jobs, "PAUSE", 0.01)

    def run(codes: str, **spec: Any) -> str:
        async def job() -> jobs.End | None:
            made = read_job("job", json.dumps(manifest(codes, **spec)))
            return await jobs.RunningJob(tmp_path, made, Path("pods"), Stop(), Programs()).run()

        end = asyncio.run(job())
        assert end is not None
        return json_path(
            "{.status.conditions[1].type}: {.status.conditions[1].message}", end.status()
        )

    return run


@pytest.mark.parametrize(
    ("codes", "spec", "how"),
    [
        ("0,0", {}, WELL),
        # Whoever is left when the first one is done is ended.
        ("0,wait", {}, WELL),
        ("0,0", {"successPolicy": {}}, "Complete: Reached expected number of succeeded pods"),
        # The whole group is begun again.
        ("75-0,75-0", {}, WELL),
        ("75-75-75-75-0,0", {}, REACHED),
        ("75-75-0,0", {"backoffLimit": 1}, REACHED),
        ("wait,2", {}, FAILED),
        ("wait,wait", {"activeDeadlineSeconds": 1}, LATE),
    ],
)
def test_a_job_ends_as_its_policies_say(
    ended: Callable[..., str], codes: str, spec: Object, how: str
) -> None:
    assert ended(codes, **spec) == how


SAVING = """
import os, pathlib, signal, sys, time

def save(*_):
    pathlib.Path(f"asked-{os.environ['JOB_COMPLETION_INDEX']}").touch()
    time.sleep(float(sys.argv[2]))
    pathlib.Path(f"saved-{os.environ['JOB_COMPLETION_INDEX']}").touch()
    sys.exit(75)

signal.signal(signal.SIGTERM, save)
pathlib.Path(f"begun-{os.environ['JOB_COMPLETION_INDEX']}").touch()
time.sleep(60 if sys.argv[1] == "wait" or os.environ["JOB_COMPLETION_INDEX"] == "1" else 0.5)
"""
"""A pod that saves for some seconds when it is asked to stop; with `end` the first one ends."""


def saving(tmp_path: Path, stop: Stop, *arguments: str, **spec: Any) -> jobs.RunningJob:
    described = manifest("0,0", **spec)
    container = described["spec"]["template"]["spec"]["containers"][0]
    container |= {"command": ["python", "-c", SAVING], "args": list(arguments)}
    job = read_job("job", json.dumps(described))
    return jobs.RunningJob(tmp_path, job, Path("pods"), stop, Programs())


async def until_written(tmp_path: Path, file: str) -> None:
    while len(list(tmp_path.glob(f"{file}-?"))) < 2:
        await asyncio.sleep(0.02)


def test_at_its_deadline_a_jobs_pods_have_time_to_save(tmp_path: Path) -> None:
    end = asyncio.run(saving(tmp_path, Stop(), "wait", "0.5", activeDeadlineSeconds=2).run())
    assert end is not None and end.reason == "DeadlineExceeded"
    assert {file.name for file in tmp_path.glob("saved-*")} == {"saved-0", "saved-1"}


def test_a_stop_of_the_run_leaves_a_pod_that_is_stopping_its_time(tmp_path: Path) -> None:
    async def stopped() -> jobs.End | None:
        stop = Stop()
        running = asyncio.ensure_future(saving(tmp_path, stop, "end", "1").run())
        while not (tmp_path / "asked-1").exists():
            await asyncio.sleep(0.02)
        stop.ask("interrupted")
        return await running

    assert asyncio.run(stopped()) is not None, "the first pod was done"
    assert (tmp_path / "saved-1").exists()


def test_a_second_stop_of_the_run_kills_the_pods_at_once(tmp_path: Path) -> None:
    async def killed() -> float:
        stop = Stop()
        running = asyncio.ensure_future(saving(tmp_path, stop, "wait", "20").run())
        await until_written(tmp_path, "begun")
        stop.ask("interrupted")
        await until_written(tmp_path, "asked")
        again = time.monotonic()
        stop.ask("interrupted", at_once=True)
        assert await running is None
        return time.monotonic() - again

    assert asyncio.run(killed()) < 5
    assert not list(tmp_path.glob("saved-*"))


def test_the_pods_know_their_number_and_find_each_other(
    ended: Callable[..., str], tmp_path: Path
) -> None:
    ended("75-0,75-0", successPolicy={})
    message = [(tmp_path / f"pod-{index}").read_text().splitlines() for index in (0, 1)]
    assert [line.split()[0] for line in message[0] + message[1]] == ["0", "0", "1", "1"]
    (meeting,) = {line.split()[1] for line in message[0] + message[1]}
    host, _, port = meeting.partition(":")
    assert host == "127.0.0.1" and port not in ("", "29500")
    assert {line.split()[2] for line in message[0] + message[1]} == {"127.0.0.1"}


def workflow(text: str, codes: str = "0,0", fail: str = "no") -> Object:
    """Prepare nothing, run a group, tell what came of it; at the end suspend what is left."""
    made = manifest(codes)
    made["metadata"]["name"] = "{{workflow.name}}-train"
    (container,) = made["spec"]["template"]["spec"]["containers"]
    container["args"].append("TEXT")
    written = json.dumps(made).replace('"TEXT"', "{{=toJson(inputs.parameters['a-text'])}}")
    how = "{.status.conditions[1].type}: {.status.conditions[1].message}"
    group = {
        "name": "group",
        "inputs": c.inputs("a-text"),
        "outputs": c.outputs({"name": "ended", "valueFrom": {"jsonPath": how, "default": ""}}),
        "resource": {
            "action": "apply",
            "setOwnerReference": True,
            "successCondition": "status.conditions.1.type in (Complete, Failed)",
            "manifest": written,
        },
    }
    stop = {
        "name": "stop",
        "resource": {
            "action": "patch",
            "mergeStrategy": "merge",
            "flags": ["job", "{{workflow.name}}-train"],
            "manifest": "spec: {suspend: true}",
        },
    }
    ended = "{{tasks.group.outputs.parameters.ended}}"
    main = c.dag(
        c.task("first", "leave", arguments=c.named(code="1" if fail == "first" else "0")),
        c.task("group", "group", depends="first", arguments=c.named(a_text=text)),
        c.say("told", ended, depends="group"),
        c.task(
            "last", "leave", depends="told", arguments=c.named(code="1" if fail == "last" else "0")
        ),
    )
    leave = c.template(
        "leave", c.program(code="{{inputs.parameters.code}}"), inputs=c.inputs("code")
    )
    say = c.template(
        "say", c.program("{{inputs.parameters.word}}"), c.file(), inputs=c.inputs("word")
    )
    finish = c.steps(
        [c.task("stop", "stop", when="{{workflow.status}} != Succeeded")], name="finish"
    )
    return {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "Workflow",
        "metadata": {"generateName": "w-"},
        "spec": {
            "entrypoint": "main",
            "onExit": "finish",
            "templates": [main, leave, say, group, stop, finish],
        },
    }


def run(place: Path, document: Object) -> Object:
    (place / "w.yaml").write_text(json.dumps(document))
    command = [sys.executable, "-m", "runner.run_local", "w.yaml"]
    subprocess.run(command, cwd=place, capture_output=True, check=False, timeout=60)
    result = json.loads((place / "outputs/latest/status.json").read_text())
    return c.facts(result["status"], result["metadata"]["name"])


def test_a_group_is_a_task_that_tells_how_it_ended(tmp_path: Path) -> None:
    text = """a: 'b'\n- "c" {d}\n"""
    result = run(tmp_path, workflow(text))

    assert result["phase"] == "Succeeded"
    assert result["nodes"][".told"]["outputs"] == {"out": WELL}
    # The other pod may be ended before it has written.
    assert text.split() == (tmp_path / "pod-0").read_text().split()[3:]


def test_a_group_whose_pods_cannot_be_handed_an_argument_is_an_error(tmp_path: Path) -> None:
    result = run(tmp_path, workflow("x" * 140_000))

    assert result["phase"] == "Error"
    assert result["nodes"][".group"]["phase"] == "Error"
    assert result["nodes"][".told"]["phase"] == "Omitted"


@pytest.mark.parametrize(("fail", "phase"), [("first", "Failed"), ("last", "Succeeded")])
def test_only_a_job_that_was_made_can_be_suspended(tmp_path: Path, fail: str, phase: str) -> None:
    result = run(tmp_path, workflow("", fail=fail))

    assert result["phase"] == "Failed"
    stopped = [node for path, node in result["nodes"].items() if path.endswith(".stop")]
    assert [node["phase"] for node in stopped] == [phase]


def test_a_jobs_pods_use_the_cache_of_this_machine_in_the_place_of_a_claim() -> None:
    job = manifest("0,0")
    pod = job["spec"]["template"]["spec"]
    pod["volumes"] = [
        {"name": "models", "persistentVolumeClaim": {"claimName": "models"}},
        {"name": "tmp", "emptyDir": {}},
    ]
    mounts = [("models", "/models/"), ("tmp", "/tmp")]
    pod["containers"][0] |= {
        "volumeMounts": [{"name": name, "mountPath": path} for name, path in mounts],
        "env": [
            {"name": "HF_HOME", "value": "/models"},
            {"name": "HF_HUB_CACHE", "value": "/models/hub"},
            {"name": "OTHER", "value": "/models2"},
            {"name": "HOME", "value": "/tmp"},
        ],
    }

    container = read_job("job", json.dumps(job)).container

    assert container.inherited == ["HF_HOME", "HF_HUB_CACHE"]
    assert container.environment == {"OTHER": "/models2", "HOME": "/tmp"}


def changed(*path: Any, to: Any) -> Callable[[Object], None]:
    def change(result: Object) -> None:
        for key in path[:-1]:
            result = result[key]
        result[path[-1]] = to

    return change


POD = ("spec", "template", "spec")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            changed("kind", to="TrainJob"),
            "a resource of kind TrainJob (batch/v1) does not run here",
        ),
        (changed("apiVersion", to="v1"), "a resource of kind Job (v1) does not run here"),
        (changed("spec", "completionMode", to="NonIndexed"), "a Job runs here that is Indexed"),
        (changed("spec", "parallelism", to=1), "all pods at once"),
        (changed("spec", "suspend", to=True), "not suspended"),
        (changed("spec", "maxFailedIndexes", to=1), "maxFailedIndexes does not run here"),
        (changed("metadata", to={"generateName": "w-"}), "the Job needs a name"),
        (
            changed(*POD, "restartPolicy", to="OnFailure"),
            "with one container and restartPolicy Never",
        ),
        (changed(*POD, "initContainers", to=[{}]), "with one container"),
        (changed(*POD, "containers", 0, "command", to=[]), "the container needs a command"),
        (
            changed("spec", "podFailurePolicy", "rules", 1, "action", to="FailIndex"),
            "podFailurePolicy: FailIndex does not run here",
        ),
        (
            changed("spec", "successPolicy", "rules", 0, "succeededIndexes", to="0-1"),
            "successPolicy runs here with one rule",
        ),
    ],
)
def test_a_job_that_would_not_run_as_on_a_cluster_is_refused(
    change: Callable[[Object], None], message: str
) -> None:
    result = manifest("0,0")
    change(result)
    with pytest.raises(Refused) as refused:
        read_job("template group", json.dumps(result))
    assert refused.value.message.startswith("template group: ")
    assert message in refused.value.message


@pytest.mark.parametrize(
    ("template", "field", "value", "message"),
    [
        ("group", "action", "delete", "action delete does not run here, only apply, create, patch"),
        ("group", "successCondition", "", "a Job is waited for by a successCondition"),
        ("group", "successCondition", "status.failed > 1", "'status.failed > 1' does not run here"),
        ("group", "failureCondition", "status.failed == 1", "failureCondition does not run here"),
        ("group", "manifest", "{", "manifest is no YAML"),
        ("group", "manifest", "a: {{=asInt(inputs.parameters['a-text'])}}", "manifest is no YAML"),
        (
            "group",
            "manifest",
            "{{=toJson(inputs.parameters['x'])}}",
            "toJson of x, which is no input",
        ),
        ("group", "manifest", "kind: '{{tasks.x.y}}'", "does not run here"),
        ("stop", "manifest", "spec: {suspend: false}", "a patch runs here that suspends a job"),
        ("stop", "flags", ["pod", "x"], "a patch runs here that suspends a job"),
    ],
)
def test_a_resource_that_would_not_do_as_on_a_cluster_is_refused(
    template: str, field: str, value: Any, message: str
) -> None:
    document = copy.deepcopy(workflow(""))
    result = next(t for t in document["spec"]["templates"] if t["name"] == template)
    result["resource"][field] = value
    with pytest.raises(Refused) as refused:
        understood(document)
    assert f"template {template}" in refused.value.message
    assert message in refused.value.message


@pytest.mark.parametrize(
    "how", ["{.a", "{.a[*]}", "a", "{range .a}", "{.status.conditions[0].type} {"]
)
def test_an_output_is_made_of_plain_paths(how: str) -> None:
    document = workflow("")
    group = next(t for t in document["spec"]["templates"] if t["name"] == "group")
    group["outputs"]["parameters"][0]["valueFrom"]["jsonPath"] = how
    with pytest.raises(Refused, match=r"jsonPath .* does not run here"):
        understood(document)


def test_a_condition_holds_where_every_path_has_one_of_its_values() -> None:
    result = {"status": {"conditions": [{"type": "A"}, {"type": "B", "status": "True"}]}}
    for text, expected in {
        "status.conditions.1.type in (B, C)": True,
        "status.conditions.1.type == B, status.conditions.1.status = True": True,
        "status.conditions.1.type == B, status.conditions.1.status = False": False,
        "status.conditions.0.status == True": False,
    }.items():
        assert holds(read_condition("", text), result) is expected, text


UNKNOWN = [
    "status.succeeded",
    "status.conditions.2.type",
    "status.conditions.type",
    "spec.completions",
]


@pytest.mark.parametrize("path", UNKNOWN)
def test_what_is_not_known_of_a_job_is_refused(path: str) -> None:
    message = f"{path} of a Job is not known here, only the type, status, reason and message"
    document = workflow("")
    group = next(t for t in document["spec"]["templates"] if t["name"] == "group")
    with pytest.raises(Refused, match=message):
        read_condition("", f"{path} == 2")
    group["outputs"]["parameters"][0]["valueFrom"]["jsonPath"] = f"{{.{path}}}"
    with pytest.raises(Refused, match=message):
        understood(document)
