"""The committed YAML is what its source renders, and every template has what production needs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from loraline.errors import UserError
from runner import expressions

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "workflows/pipeline.py"
NAMES = ("pipeline", "promote", "retrain", "sweep")
Object = dict[str, Any]


def load(name: str) -> Object:
    return yaml.safe_load((ROOT / f"workflows/{name}.yaml").read_text())


def spec_of(name: str) -> Object:
    spec = load(name)["spec"]
    return spec.get("workflowSpec", spec)


SPECS = {name: spec_of(name) for name in NAMES}
PODS = {
    f"{name}/{template['name']}": (spec, template)
    for name, spec in SPECS.items()
    for template in spec["templates"]
    if "container" in template
}
LARGE = ("train-qlora", "evaluate")
REGISTRY = ("quality-gate", "promote", "deploy-vllm")

each_workflow = pytest.mark.parametrize("name", NAMES)
each_pod = pytest.mark.parametrize("pod", PODS)


def tasks(name: str, template: str = "main") -> dict[str, Object]:
    result = next(t for t in SPECS[name]["templates"] if t["name"] == template)
    return {task["name"]: task for task in result["dag"]["tasks"]}


def parameters(name: str) -> dict[str, Object]:
    return {p["name"]: p for p in SPECS[name]["arguments"]["parameters"]}


def run_pipeline(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, SOURCE, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@each_workflow
def test_the_committed_yaml_is_what_the_source_renders(source: Any, name: str) -> None:
    committed = (ROOT / f"workflows/{name}.yaml").read_text()

    assert committed == source.render(source.build(name))


def test_check_tells_a_stale_file_from_a_fresh_one(tmp_path: Path) -> None:
    assert run_pipeline("--out", tmp_path).returncode == 0
    assert sorted(file.stem for file in tmp_path.glob("*.yaml")) == list(NAMES)
    assert run_pipeline("--out", tmp_path, "--check").returncode == 0

    rendered = tmp_path / "sweep.yaml"
    rendered.write_text(rendered.read_text().replace("smoke-vision", "smoke-text"))
    stale = run_pipeline("--out", tmp_path, "--check")
    assert stale.returncode == 1
    assert len(stale.stderr.splitlines()) == 1
    assert "sweep.yaml" in stale.stderr


@each_workflow
@pytest.mark.parametrize("kind", ["Workflow", "WorkflowTemplate", "CronWorkflow"])
def test_one_source_gives_all_kinds_of_workflow(source: Any, name: str, kind: str) -> None:
    document = yaml.safe_load(source.render(source.build(name, kind)))
    spec = document["spec"]

    assert document["kind"] == kind
    if kind == "CronWorkflow":
        assert spec["schedules"] == ["0 3 * * 0"]
        assert spec["concurrencyPolicy"] == "Forbid"
        spec = spec["workflowSpec"]
    assert spec == SPECS[name]


def test_settings_are_rendered_into_the_file(source: Any) -> None:
    settings = source.Settings(image="registry.example/loraline:1.2", model_cache="models-rwx")
    spec = source.build("pipeline", settings=settings).to_dict()["spec"]

    assert "registry.example/loraline:1.2" in json.dumps(spec["arguments"])
    assert spec["volumes"][0]["persistentVolumeClaim"]["claimName"] == "models-rwx"


@pytest.mark.parametrize("name", ["pipeline", "retrain"])
def test_the_five_steps_run_in_a_row_and_only_a_passed_candidate_is_deployed(name: str) -> None:
    assert [(name, task.get("depends")) for name, task in tasks(name).items()] == [
        ("prepare-data", None),
        ("train-qlora", "prepare-data"),
        ("evaluate", "train-qlora"),
        ("quality-gate", "evaluate"),
        ("deploy-vllm", "quality-gate"),
    ]
    conditions = {name: task["when"] for name, task in tasks(name).items() if "when" in task}
    assert conditions == {
        "deploy-vllm": "{{tasks.quality-gate.outputs.parameters.result}} == passed"
    }


def test_a_sweep_goes_on_with_the_members_that_got_through() -> None:
    assert tasks("sweep")["candidate"]["withParam"] == "{{workflow.parameters.profiles}}"
    assert list(tasks("sweep", "candidate")) == ["train-qlora", "evaluate"]
    assert tasks("sweep")["select-best"]["depends"] == "candidate.AnySucceeded"
    given = tasks("sweep")["select-best"]["arguments"]["parameters"]
    values = {parameter["name"]: parameter["value"] for parameter in given}
    assert values["run-ids"] == "{{tasks.candidate.outputs.parameters.run-id}}"


def test_promotion_waits_for_a_yes_and_deploys_only_what_was_promoted() -> None:
    approval = next(t for t in SPECS["promote"]["templates"] if t["name"] == "approval")
    (decision,) = approval["inputs"]["parameters"]

    assert approval["suspend"] == {}
    assert (decision["default"], decision["enum"]) == ("no", ["yes", "no"])
    assert approval["outputs"]["parameters"][0]["valueFrom"] == {"default": "no", "supplied": {}}
    assert tasks("promote")["promote"]["when"].endswith(".decision}} == yes")
    assert tasks("promote")["deploy-vllm"]["depends"] == "promote.Succeeded"


@each_workflow
def test_only_run_ids_pass_between_steps(name: str) -> None:
    passed = re.findall(r"\{\{tasks\.[\w-]+\.outputs\.parameters\.([\w-]+)\}\}", str(SPECS[name]))

    assert set(passed) <= {"run-id", "result", "decision"}
    for task in tasks(name).values():
        for argument in task.get("arguments", {}).get("parameters", []):
            assert not re.search(r"parameters\.(result|decision)", argument["value"])


@each_workflow
def test_every_parameter_has_a_default_and_a_description(name: str) -> None:
    for parameter in parameters(name).values():
        assert parameter["description"]
        assert isinstance(parameter["value"], str)
        assert parameter["value"] in parameter.get("enum", [parameter["value"]])
    assert {"image", "gpu-image", "notify", "resources"} <= parameters(name).keys()
    assert parameters(name)["notify"]["value"] == "no"


@pytest.mark.parametrize("name", ["pipeline", "retrain", "sweep"])
def test_the_profile_can_be_any_file_in_lora_profiles_and_nothing_else(name: str) -> None:
    profile = parameters(name)["profile"]

    assert profile["enum"] == sorted(file.stem for file in (ROOT / "lora_profiles").glob("*.yaml"))


@each_workflow
def test_a_workflow_ends_and_goes_away(name: str) -> None:
    spec = SPECS[name]

    assert 0 < spec["activeDeadlineSeconds"] <= 4 * 24 * 3600
    assert spec["podGC"]["strategy"] == "OnPodSuccess"
    assert spec["ttlStrategy"]["secondsAfterSuccess"] > 0
    assert spec["ttlStrategy"]["secondsAfterSuccess"] < spec["ttlStrategy"]["secondsAfterFailure"]
    annotations = load(name)["metadata"]["annotations"]
    assert annotations["workflows.argoproj.io/title"]
    assert "\n\n" in annotations["workflows.argoproj.io/description"]


@each_workflow
def test_the_end_is_told_to_a_webhook_only_if_asked_for(name: str) -> None:
    finish = next(t for t in SPECS[name]["templates"] if t["name"] == SPECS[name]["onExit"])
    ((notify,),) = finish["steps"]

    assert notify["when"] == "{{workflow.parameters.notify}} == yes"
    given = [argument["value"] for argument in notify["arguments"]["parameters"]]
    assert given == ["{{workflow.name}}", "{{workflow.status}}", "{{workflow.failures}}"]


@each_workflow
def test_no_step_has_a_token_of_the_cluster_and_none_runs_as_root(name: str) -> None:
    spec = SPECS[name]

    assert spec["automountServiceAccountToken"] is False
    assert spec["executor"] == {"serviceAccountName": spec["serviceAccountName"]}
    assert spec["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": 8737,
        "fsGroup": 8737,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


@each_pod
def test_a_step_cannot_run_for_ever(pod: str) -> None:
    spec, template = PODS[pod]

    assert 0 < template["activeDeadlineSeconds"] <= spec["activeDeadlineSeconds"]


ENDINGS = {
    "a deleted pod": ("Error", "0", "pod deleted", True),
    "a step that says try again": ("Failed", "75", "Error (exit code 75)", True),
    "a node that goes down": ("Failed", "-1", "Pod was terminated: imminent node shutdown", True),
    "a pod that is evicted": ("Failed", "137", "The node was low on resource: memory.", True),
    "a bug, or CUDA out of memory": ("Failed", "1", "Error (exit code 1)", False),
    "a user's mistake": ("Failed", "2", "Error (exit code 2)", False),
    "the kernel's out of memory": ("Failed", "137", "OOMKilled (exit code 137)", False),
    "a deadline": ("Failed", "143", "Pod was active on the node longer than", False),
}


@each_pod
@pytest.mark.parametrize("ending", ENDINGS)
def test_what_may_go_better_is_tried_again_and_nothing_else(pod: str, ending: str) -> None:
    retry = PODS[pod][1]["retryStrategy"]
    status, code, message, again = ENDINGS[ending]
    last = {"status": status, "exitCode": code, "message": message}
    scope = {f"lastRetry.{key}": value for key, value in last.items()}

    assert retry["limit"] == 3
    assert retry["retryPolicy"] == "Always"
    assert retry["backoff"] == {"duration": "15s", "factor": 3}
    assert expressions.parse(retry["expression"], expressions.RETRY).is_true(scope) is again


@each_pod
def test_every_output_has_a_default(pod: str) -> None:
    outputs = PODS[pod][1].get("outputs", {}).get("parameters", [])
    result = {output["name"]: output["valueFrom"] for output in outputs}

    if not pod.endswith("/notify"):
        assert result.pop("run-id") == {"path": "/tmp/outputs/run-id", "default": ""}
    if pod.endswith("/quality-gate"):
        assert result.pop("result") == {"path": "/tmp/outputs/result", "default": "failed"}
    assert not result


@each_pod
def test_a_step_has_no_privileges_and_writes_to_its_own_folders_only(pod: str) -> None:
    spec, template = PODS[pod]
    container = template["container"]

    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert mounts["/tmp"] == "tmp"
    volumes = {volume["name"]: volume for volume in [*spec["volumes"], *template["volumes"]]}
    assert set(mounts.values()) <= volumes.keys()
    if template["name"] in LARGE:
        assert mounts["/dev/shm"] == "shm"
        assert volumes["shm"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "8Gi"}
    if template["name"] != "notify":
        assert mounts["/models"] == "models"
        assert "persistentVolumeClaim" in volumes["models"]


@each_pod
def test_resources_come_from_a_named_class(script: Any, pod: str) -> None:
    resources = script("workflows/resources.py")
    _, template = PODS[pod]
    patch = template["podSpecPatch"]

    assert "resources" not in template["container"]
    if template["name"] in LARGE:
        assert patch.startswith("{{=")
        assert patch.endswith("[workflow.parameters['resources']]}}")
        assert "}}" not in patch[:-2]
        for wanted in resources.CLASSES.values():
            if wanted.machines > 1:
                continue
            if template["name"] == "train-qlora":
                assert resources.patch(wanted, resources.GRACE_SECONDS) in patch
            else:
                assert resources.patch(wanted.model_copy(update={"gpus": 1})) in patch
    else:
        assert patch == resources.patch(resources.SMALL)


@pytest.mark.parametrize(
    "name", ["cpu", "gpu-small", "gpu-large", "gpu-large-4", "gpu-large-2x4", "cpu-2", "gpu-shared"]
)
def test_a_class_asks_for_what_it_is_called(script: Any, name: str) -> None:
    resources = script("workflows/resources.py")
    spec = json.loads(resources.patch(resources.CLASSES[name]))
    asked = spec["containers"][0]["resources"]
    device = {"gpu-shared": "nvidia.com/gpu.shared", "cpu": None, "cpu-2": None}.get(
        name, "nvidia.com/gpu"
    )

    assert spec["containers"][0]["name"] == "main"
    assert asked["requests"].keys() == {"cpu", "memory"}
    assert asked["limits"].keys() == {"memory", device} - {None}
    assert ("tolerations" in spec) == (device is not None)
    if device is not None:
        assert asked["limits"][device] == ("4" if name.endswith("4") else "1")
    assert len(resources.CLASSES) == 7


OWN_CLASSES = """
gpu-large: {nodes: {nvidia.com/gpu.product: NVIDIA-H100-80GB-HBM3}, gpu_memory_above: 0}
h200:
  {cpu: 16, memory: 128Gi, memory_limit: 512Gi, device: nvidia.com/gpu, gpu_memory_above: 130000}
"""


def test_a_cluster_names_classes_of_its_own(script: Any, tmp_path: Path) -> None:
    file = tmp_path / "classes.yaml"
    file.write_text(OWN_CLASSES)
    ended = run_pipeline("--classes", file, "--out", tmp_path)
    assert ended.returncode == 0, ended.stderr
    spec = yaml.safe_load((tmp_path / "pipeline.yaml").read_text())["spec"]
    (listed,) = [p["enum"] for p in spec["arguments"]["parameters"] if p["name"] == "resources"]
    assert listed == ["cpu", "gpu-small", "gpu-large", "gpu-large-4", "gpu-shared", "h200"]
    made = script("workflows/resources.py")
    classes = made.load(file)
    (train,) = [t for t in spec["templates"] if t["name"] == "train-qlora"]
    for name in ("gpu-large", "h200"):
        assert made.patch(classes[name], made.GRACE_SECONDS) in train["podSpecPatch"]
    large, h200 = (json.loads(made.patch(classes[name])) for name in ("gpu-large", "h200"))
    assert large["nodeSelector"] == {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}
    assert "affinity" not in large
    assert '"values": ["130000"]' in json.dumps(h200["affinity"])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("gpu: {cpu: 1}", "gpu: memory: Field required"),
        ("cpu: {gpus: none}", "cpu: gpus: Input should be a valid integer"),
        ("cpu: {label: x}", "cpu: label: Extra inputs are not permitted"),
        ("- cpu", "must hold the settings of each class by its name"),
    ],
)
def test_classes_that_say_something_else_are_refused(
    script: Any, tmp_path: Path, text: str, sentence: str
) -> None:
    file = tmp_path / "classes.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=re.escape(sentence)):
        script("workflows/resources.py").load(file)


def test_training_uses_all_cards_of_its_class_and_has_time_for_a_checkpoint(script: Any) -> None:
    resources = script("workflows/resources.py")
    for pod, (_, template) in PODS.items():
        if template["name"] == "train-qlora":
            grace = f'"terminationGracePeriodSeconds":{resources.GRACE_SECONDS}'
            assert template["podSpecPatch"].count(grace) == 5, pod
        message = template["name"] == "train-qlora"
        assert (
            '"env":[{"name":"LORALINE_GPUS","value":"4"}]' in template["podSpecPatch"]
        ) == message


def test_training_takes_its_cards_from_the_pod(script: Any, monkeypatch: Any) -> None:
    train = script("steps/train_qlora.py").train_qlora
    words = ["--run-id", "x", "--profile", "standard"]
    assert train.make_context("train", list(words)).params["gpus"] == 1
    monkeypatch.setenv("LORALINE_GPUS", "4")
    assert train.make_context("train", list(words)).params["gpus"] == 4


@each_pod
def test_training_queues_for_its_class_and_the_registry_changes_one_by_one(pod: str) -> None:
    _, template = PODS[pod]
    guard = template.get("synchronization", {})

    if template["name"] in LARGE:
        (semaphore,) = guard["semaphores"]
        assert semaphore["configMapKeyRef"] == {
            "name": "loraline-semaphores",
            "key": "{{workflow.parameters.resources}}",
        }
    elif template["name"] in REGISTRY:
        (mutex,) = guard["mutexes"]
        assert mutex["name"].startswith("loraline-{{")
    else:
        assert not guard


@each_pod
def test_a_step_knows_its_workflow_and_takes_credentials_from_the_namespace(pod: str) -> None:
    _, template = PODS[pod]
    container = template["container"]
    variables = {variable["name"]: variable for variable in container["env"]}

    secrets = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "LORALINE_WEBHOOK_URL"}
    for name in secrets & variables.keys():
        assert variables[name]["valueFrom"]["secretKeyRef"]["name"] == "loraline"
    if template["name"] == "notify":
        assert variables.keys() == {"LORALINE_WEBHOOK_URL"}
        return
    assert variables["MLFLOW_TRACKING_URI"]["valueFrom"] == {
        "configMapKeyRef": {"name": "loraline", "key": "mlflow-tracking-uri", "optional": False}
    }
    assert variables["LORALINE_WORKFLOW_NAME"]["value"] == "{{workflow.name}}"
    assert variables["LORALINE_WORKFLOW_UID"]["value"] == "{{workflow.uid}}"
    assert variables["LORALINE_IMAGE"]["value"] == container["image"]
    assert variables["HF_HOME"]["value"] == "/models"


@each_pod
def test_a_step_is_measured(pod: str) -> None:
    _, template = PODS[pod]
    metrics = {metric["name"]: metric for metric in template["metrics"]["prometheus"]}

    assert metrics.keys() == {"loraline_steps_total", "loraline_step_seconds"}
    for metric in metrics.values():
        assert {label["key"]: label["value"] for label in metric["labels"]} == {
            "step": template["name"],
            "status": "{{status}}",
        }


@each_pod
def test_images_follow_the_two_image_parameters(pod: str) -> None:
    _, template = PODS[pod]
    image = "gpu-image" if template["name"] in LARGE else "image"

    assert template["container"]["image"] == f"{{{{workflow.parameters.{image}}}}}"


@each_pod
def test_no_template_goes_through_a_shell(pod: str) -> None:
    command = PODS[pod][1]["container"]["command"]

    assert command[0] == "python"
    assert len(command) == 2
    assert (ROOT / command[1]).is_file()


@pytest.mark.parametrize("image", ["cpu", "gpu"])
def test_images_hold_the_steps_try_them_and_run_as_the_workflows_user(image: str) -> None:
    lines = (ROOT / f"images/{image}.Dockerfile").read_text().splitlines()

    assert f"USER {SPECS['pipeline']['securityContext']['runAsUser']}" in lines
    assert {"WORKDIR /app", "COPY steps steps", "COPY lora_profiles lora_profiles"} <= set(lines)
    assert not any(line.startswith("ENTRYPOINT") for line in lines)
    assert 'python "$step" --help' in lines[-1]
