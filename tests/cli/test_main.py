"""The command `loraline`: every program under one name, from any folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from loraline_cli import doctor, run
from loraline_cli.main import MODULES, SCRIPTS, main

ROOT = Path(__file__).parents[2]


def loraline(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "loraline_cli", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", [*SCRIPTS, *MODULES])
def test_every_program_is_a_command(name: str) -> None:
    result = CliRunner().invoke(main, [name, "--help"])
    assert result.exit_code == 0, result.output
    assert result.output.startswith("Usage: main " + name)


def test_every_step_is_a_command() -> None:
    in_pods = {"fetch_adapter", "follow_alias", "notify"}
    steps = {file.stem for file in (ROOT / "steps").glob("*.py")} - in_pods
    assert {Path(file).stem for file, _ in SCRIPTS.values()} == steps


def test_help_lists_the_commands_without_loading_them(tmp_path: Path) -> None:
    code = (
        "import sys; from loraline_cli.main import main\n"
        "try: main(['--help'])\n"
        "finally: assert not {'mlflow', 'torch', 'pydantic'} & set(sys.modules)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    for name in (*SCRIPTS, *MODULES):
        assert f"\n  {name} " in ended.stdout


def test_it_runs_from_any_folder_and_ends_with_the_steps_exit_codes(tmp_path: Path) -> None:
    listed = loraline("profiles", folder=tmp_path)
    assert listed.returncode == 0, listed.stderr
    assert "standard " in listed.stdout
    refused = loraline("train", "--run-id", "x", "--profile", "nope", folder=tmp_path)
    assert refused.returncode == 2
    assert "unknown profile 'nope'; accepted: aggressive, " in refused.stderr
    unknown = loraline("trian", folder=tmp_path)
    assert unknown.returncode == 2
    assert "No such command 'trian'" in unknown.stderr


def test_a_workflow_runs_from_a_folder_that_has_steps_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "steps").mkdir()
    monkeypatch.chdir(tmp_path)
    rendered = run.file_of("pipeline").read_text()
    assert f"- {ROOT / 'steps'}/prepare_data.py" in rendered
    monkeypatch.chdir(ROOT)
    assert "- steps/prepare_data.py" in run.file_of("pipeline").read_text()


def test_a_workflow_runs_from_any_folder(tmp_path: Path) -> None:
    words = ("-p", "profile=smoke-text", "--dry-run")
    elsewhere = loraline("run", "pipeline", *words, folder=tmp_path)
    assert elsewhere.returncode == 0, elsewhere.stderr
    assert f"{ROOT}/steps/train_qlora.py --run-id" in elsewhere.stdout
    here = loraline("run", "pipeline", *words, folder=ROOT)
    assert " steps/train_qlora.py --run-id" in here.stdout
    missing = loraline("run", "pipelien", folder=tmp_path)
    assert missing.returncode == 2
    assert "File 'pipelien' does not exist" in missing.stderr


def test_a_profile_is_shown_with_what_it_extends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lora_profiles").mkdir()
    (tmp_path / "lora_profiles" / "mine.yaml").write_text("# My own.\nextends: standard\nr: 32\n")
    result = CliRunner().invoke(main, ["profiles", "mine"])
    shown = yaml.safe_load(result.stdout)
    assert (shown["r"], shown["lora_alpha"]) == (32, 16)
    listed = CliRunner().invoke(main, ["profiles"]).stdout
    assert any(line.split(maxsplit=1) == ["mine", "My own."] for line in listed.splitlines())


def test_a_profile_that_is_not_in_unicode_is_refused_and_hides_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lora_profiles").mkdir()
    (tmp_path / "lora_profiles" / "mine.yaml").write_bytes(b"# My caf\xe9.\nextends: standard\n")
    listed = CliRunner().invoke(main, ["profiles"])
    assert listed.exit_code == 0, listed.output
    names = {line.partition(" ")[0] for line in listed.stdout.splitlines()}
    assert {"mine", "smoke-text"} <= names
    refused = CliRunner().invoke(main, ["profiles", "mine"])
    assert refused.exit_code == 2, refused.output
    assert "lora_profiles/mine.yaml is not valid YAML: " in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


def test_the_version_is_the_packages() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    result = CliRunner().invoke(main, ["--version"])
    assert result.stdout == f"loraline, version {project['version']}\n"


@pytest.mark.slow
def test_a_wheel_holds_all_that_the_command_runs(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", str(ROOT)]
    subprocess.run([*build, "--wheel-dir", str(tmp_path)], check=True)
    (wheel,) = tmp_path.glob("loraline_pipeline-*.whl")
    installed = tmp_path / "installed"
    shutil.unpack_archive(wheel, installed, "zip")
    ended = subprocess.run(
        [sys.executable, "-m", "loraline_cli", "train", "--run-id", "x", "--profile", "nope"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 2
    assert "unknown profile 'nope'; accepted: aggressive, " in ended.stderr
    assert {file.name for file in (installed / "loraline_cli/workflows").glob("*.yaml")} >= {
        *("pipeline.yaml", "sweep.yaml", "promote.yaml")
    }


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_printed_for_a_shell(shell: str) -> None:
    result = CliRunner().invoke(main, ["--completion", shell])
    assert result.exit_code == 0
    assert "_LORALINE_COMPLETE" in result.stdout


def test_doctor_says_what_is_missing_and_what_mends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "KUBECONFIG", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["doctor"])
    assert result.exit_code == 0, result.output
    lines = [line.split(maxsplit=2) for line in result.stdout.splitlines()]
    states = {line[0]: line[1] for line in lines}
    assert (states["Python"], states["torch"], states["MLflow"]) == ("ok", "ok", "ok")
    missing = ("GPU", "S3", "argo", "kubectl", "cluster")
    assert {states[name] for name in missing} == {"missing"}
    assert "set KUBECONFIG to submit to one" in result.stdout
    assert not (tmp_path / "mlruns").exists(), "looking makes no store"


def test_doctor_ends_with_2_where_the_pipeline_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    result = CliRunner().invoke(main, ["doctor"])
    assert result.exit_code == 2
    assert "the pipeline cannot run here without MLflow" in result.stderr


def test_doctor_knows_when_the_disk_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "ROOM_GIB", 10**6)
    assert doctor.disk().state == "little"


def test_doctor_lists_the_bases() -> None:
    result = CliRunner().invoke(main, ["doctor", "--bases"])
    assert "text    MistralForCausalLM" in result.stdout
    assert "vision  Qwen3VLForConditionalGeneration" in result.stdout
