"""The committed YAML is what its source renders, and every step takes what the workflow passes."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
import yaml

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "workflows/pipeline.py"
RENDERED = ROOT / "workflows/pipeline.yaml"
SPEC = yaml.safe_load(RENDERED.read_text())["spec"]
STEPS = {t["name"]: t for t in SPEC["templates"] if "container" in t}
TASKS = next(t["dag"]["tasks"] for t in SPEC["templates"] if "dag" in t)
PARAMETERS = {parameter["name"]: parameter for parameter in SPEC["arguments"]["parameters"]}

each_step = pytest.mark.parametrize("step_name", STEPS)


def run_pipeline(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a copy of the source, with the repository's profiles, so that it writes elsewhere."""
    (folder / "workflows").mkdir(exist_ok=True)
    shutil.copy(SOURCE, folder / "workflows")
    if not (folder / "lora_profiles").exists():
        (folder / "lora_profiles").symlink_to(ROOT / "lora_profiles")
    command = [sys.executable, "workflows/pipeline.py", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_the_committed_yaml_is_what_the_source_renders(script, tmp_path):
    pipeline = script("workflows/pipeline.py")

    assert RENDERED.read_text() == pipeline.render(pipeline.build())


def test_check_tells_a_stale_file_from_a_fresh_one(tmp_path):
    rendered = tmp_path / "workflows/pipeline.yaml"

    assert run_pipeline(tmp_path).returncode == 0
    assert rendered.read_text() == RENDERED.read_text()
    assert run_pipeline(tmp_path, "--check").returncode == 0

    rendered.write_text(rendered.read_text().replace("smoke-vision", "smoke-text"))
    stale = run_pipeline(tmp_path, "--check")
    assert stale.returncode == 1
    assert len(stale.stderr.splitlines()) == 1
    assert "pipeline.yaml" in stale.stderr


def test_the_five_steps_run_in_a_row_and_only_a_passed_candidate_is_deployed():
    assert [(task["name"], task.get("depends")) for task in TASKS] == [
        ("prepare-data", None),
        ("train-qlora", "prepare-data"),
        ("evaluate", "train-qlora"),
        ("quality-gate", "evaluate"),
        ("deploy-vllm", "quality-gate"),
    ]
    conditions = {task["name"]: task["when"] for task in TASKS if "when" in task}
    assert conditions == {
        "deploy-vllm": "{{tasks.quality-gate.outputs.parameters.result}} == passed"
    }


def test_only_run_ids_pass_between_steps():
    passed = re.findall(r"\{\{tasks\.[\w-]+\.outputs\.parameters\.([\w-]+)\}\}", str(TASKS))

    assert set(passed) == {"run-id", "result"}
    for task in TASKS:
        for argument in task["arguments"]["parameters"]:
            assert "parameters.result" not in argument["value"]


def test_every_parameter_has_a_default_and_a_description():
    assert list(PARAMETERS) == ["profile", "data", "image", "gpu-image"]
    for parameter in PARAMETERS.values():
        assert parameter["description"]
        assert isinstance(parameter["value"], str)


def test_the_profile_can_be_any_file_in_lora_profiles_and_nothing_else():
    profile = PARAMETERS["profile"]

    assert profile["enum"] == sorted(file.stem for file in (ROOT / "lora_profiles").glob("*.yaml"))
    assert profile["value"] in profile["enum"]


@each_step
def test_a_step_cannot_run_for_ever_and_is_retried_on_its_own_word_only(step_name):
    template = STEPS[step_name]

    assert 0 < template["activeDeadlineSeconds"] <= SPEC["activeDeadlineSeconds"]
    assert template["retryStrategy"]["limit"] == 2
    assert template["retryStrategy"]["backoff"]["duration"]
    assert template["retryStrategy"]["expression"] == (
        "lastRetry.status == 'Error' || asInt(lastRetry.exitCode) == 75"
    )


@each_step
def test_every_output_has_a_default(step_name):
    outputs = {
        output["name"]: output["valueFrom"] for output in STEPS[step_name]["outputs"]["parameters"]
    }

    assert outputs.pop("run-id") == {"path": "/tmp/outputs/run-id", "default": ""}
    if step_name == "quality-gate":
        assert outputs.pop("result") == {"path": "/tmp/outputs/result", "default": "failed"}
    assert not outputs


@each_step
def test_a_step_has_no_privileges_and_writes_to_its_own_tmp_only(step_name):
    template = STEPS[step_name]
    container = template["container"]

    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["volumeMounts"] == [{"name": "tmp", "mountPath": "/tmp"}]
    assert template["volumes"] == [{"name": "tmp", "emptyDir": {}}]
    assert SPEC["securityContext"]["runAsNonRoot"] is True
    assert SPEC["securityContext"]["runAsUser"] == 8737
    assert SPEC["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}


def test_steps_see_no_token_and_finished_workflows_go_away():
    assert SPEC["automountServiceAccountToken"] is False
    assert SPEC["executor"] == {"serviceAccountName": SPEC["serviceAccountName"]}
    assert SPEC["podGC"] == {"strategy": "OnPodSuccess"}
    assert SPEC["ttlStrategy"]["secondsAfterCompletion"] > 0


@each_step
def test_resources_are_literal(step_name):
    resources = STEPS[step_name]["container"]["resources"]

    assert resources["requests"].keys() == {"cpu", "memory"}
    assert resources["limits"].keys() == {"memory"}
    assert "{{" not in str(resources)


@each_step
def test_a_step_knows_its_workflow_and_takes_credentials_from_the_namespace(step_name):
    container = STEPS[step_name]["container"]
    variables = {variable["name"]: variable for variable in container["env"]}

    assert variables["MLFLOW_TRACKING_URI"]["valueFrom"] == {
        "configMapKeyRef": {"name": "loraline", "key": "mlflow-tracking-uri"}
    }
    assert variables["LORALINE_WORKFLOW_NAME"]["value"] == "{{workflow.name}}"
    assert variables["LORALINE_WORKFLOW_UID"]["value"] == "{{workflow.uid}}"
    assert variables["LORALINE_IMAGE"]["value"] == container["image"]
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        assert variables[name]["valueFrom"]["secretKeyRef"]["optional"] is True


@each_step
def test_images_follow_the_two_image_parameters(step_name):
    needs_gpu = step_name in ("train-qlora", "evaluate")
    image = "gpu-image" if needs_gpu else "image"

    assert STEPS[step_name]["container"]["image"] == f"{{{{workflow.parameters.{image}}}}}"


@each_step
def test_a_step_takes_exactly_the_arguments_that_its_template_passes(script, step_name):
    container = STEPS[step_name]["container"]
    file = f"steps/{step_name.replace('-', '_')}.py"
    command = getattr(script(file), Path(file).stem)
    values = {"run-id": "0" * 32, "profile": "smoke-vision", "data": ""}
    arguments = [
        re.sub(r"\{\{inputs\.parameters\.([\w-]+)\}\}", lambda found: values[found[1]], argument)
        for argument in container["args"]
    ]

    assert container["command"] == ["python", file]
    assert isinstance(command, click.Command)
    parsed = command.make_context(command.name, [*arguments], resilient_parsing=False)
    assert parsed.params["out_dir"] == Path("/tmp/outputs")
    for parameter in STEPS[step_name]["inputs"]["parameters"]:
        flag = f"--{parameter['name']}"
        assert flag in arguments
        expected = values[parameter["name"]] or None
        assert parsed.params[parameter["name"].replace("-", "_")] == expected


def test_no_template_goes_through_a_shell():
    for template in STEPS.values():
        assert template["container"]["command"][0] == "python"
        assert len(template["container"]["command"]) == 2


@pytest.mark.parametrize("image", ["cpu", "gpu"])
def test_images_hold_the_steps_and_run_as_the_workflows_user(image):
    lines = (ROOT / f"images/{image}.Dockerfile").read_text().splitlines()

    assert f"USER {SPEC['securityContext']['runAsUser']}" in lines
    assert {"WORKDIR /app", "COPY steps steps", "COPY lora_profiles lora_profiles"} <= set(lines)
    assert not any(line.startswith("ENTRYPOINT") for line in lines)
