"""What holds for each step's command line."""

import ast
import errno
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from loraline.tracking import store
from loraline.tracking.runs import open_run

ROOT = Path(__file__).parents[2]
STEPS = sorted(path.stem for path in (ROOT / "steps").glob("*.py"))
UPSTREAM = {
    "train_qlora": ("prepare_data", ("--profile", "smoke-text")),
    "evaluate": ("train_qlora", ()),
    "quality_gate": ("evaluate", ()),
    "deploy_vllm": ("quality_gate", ()),
    "verify_serving": ("deploy_vllm", ("--url", "http://127.0.0.1:9")),
    "benchmark_serving": ("deploy_vllm", ("--url", "http://127.0.0.1:9")),
}
SERVERS_OWN = {"fetch_adapter", "follow_alias"}
"""Commands of the server's pod; they take no run."""
SCRIPTS = [f"steps/{name}.py" for name in STEPS] + [
    f"workflows/{name}.py" for name in ("lint", "pipeline", "summary")
]
SCRIPTS.append("runner/run_local.py")

HEAVY = {
    *("bitsandbytes", "boto3", "datasets", "fastapi", "hera", "kubernetes", "matplotlib", "mlflow"),
    *("numpy", "pandas", "peft", "PIL", "pyarrow", "sklearn", "sqlalchemy", "torch"),
    *("transformers", "vllm"),
}
"""What takes more than a tenth of a second to import."""


def test_the_steps_are_all_here() -> None:
    aside = {*SERVERS_OWN, "notify", "promote", "select_best", "serve_local"}
    assert set(STEPS) == {"prepare_data", *UPSTREAM, *aside}


@pytest.mark.parametrize("path", SCRIPTS)
def test_help_answers_at_once_since_it_imports_nothing_heavy(path: str) -> None:
    printed = subprocess.run(
        [sys.executable, "-X", "importtime", ROOT / path, "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Usage:" in printed.stdout
    imported = {line.rpartition("|")[2].strip() for line in printed.stderr.splitlines()}
    assert "click" in imported
    assert not imported & HEAVY


@pytest.mark.parametrize("name", STEPS)
def test_a_steps_docstring_has_a_command_that_parses(
    name: str, script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = script(f"steps/{name}.py")
    lines = [line.strip() for line in module.__doc__.splitlines()]
    command = next(line for line in lines if line.startswith(f"python steps/{name}.py"))
    words = shlex.split(command)[2:]
    for word in words:
        # A file of the local pipeline that the command line wants to be there.
        if word.endswith(".yaml"):
            monkeypatch.chdir(tmp_path)
            (tmp_path / word).parent.mkdir(parents=True)
            (tmp_path / word).touch()
    getattr(module, name).make_context(name, words)


@pytest.mark.parametrize("name", STEPS)
def test_force_is_offered_where_finished_work_is_reused(name: str, script) -> None:
    command = getattr(script(f"steps/{name}.py"), name)
    reuses = "finished_run(" in (ROOT / "steps" / f"{name}.py").read_text()
    assert ("--force" in {option for each in command.params for option in each.opts}) == reuses


@pytest.mark.parametrize("path", sorted((ROOT / "steps").glob("*.py")), ids=lambda path: path.stem)
def test_steps_import_neither_each_other_nor_hera(path: Path) -> None:
    assert not imported(path) & {"hera", "steps", "workflows", *STEPS}


@pytest.mark.parametrize("path", sorted((ROOT / "loraline").glob("*.py")), ids=lambda p: p.stem)
def test_the_library_knows_neither_steps_nor_workflows(path: Path) -> None:
    assert not imported(path) & {"hera", "steps", "workflows", *STEPS}


def imported(path: Path) -> set[str]:
    result = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            result |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            result.add((node.module or "").partition(".")[0])
    return result


@pytest.mark.parametrize("name", UPSTREAM)
def test_an_unknown_run_id_is_refused(name: str, step, workplace: Path) -> None:
    result = step(name, "--run-id", "0" * 32, *UPSTREAM[name][1])
    assert result.exit_code == 2
    assert f"--run-id '{'0' * 32}' is not a run of MLflow at sqlite" in result.stderr
    assert not (workplace / "outputs").exists()


@pytest.mark.parametrize("name", UPSTREAM)
def test_a_run_of_the_wrong_step_is_refused(name: str, step, workplace: Path) -> None:
    store.connect()
    with open_run("other", name="other", fingerprint="f") as run:
        pass
    result = step(name, "--run-id", run.info.run_id, *UPSTREAM[name][1])
    assert result.exit_code == 2
    assert f"is a run of other, expected one of {UPSTREAM[name][0]}" in result.stderr
    assert not (workplace / "outputs").exists()


@pytest.mark.parametrize("name", ["prepare_data", *UPSTREAM])
def test_an_absent_mlflow_is_try_again(
    name: str, step, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    arguments = ("--profile", "smoke-text")
    if name in UPSTREAM:
        arguments = ("--run-id", "0" * 32, *UPSTREAM[name][1])
    result = step(name, *arguments)
    assert result.exit_code == 75
    assert "MLflow at http://127.0.0.1:9 does not answer (Connection refused)" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (workplace / "outputs").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--profile", "x"], "Missing option '--run-id'"),
        (["--run-id", "x", "--profil", "y"], "Did you mean '--profile'"),
        (["--run-id", "x", "--profile", "x", "--gpus", "none"], "Invalid value for '--gpus'"),
        (["--run-id", "x", "--profile", "x", "--set", "r='8"], "cannot be read: No closing"),
    ],
)
def test_a_mistake_in_the_options_is_one_sentence(step, words: list[str], message: str) -> None:
    result = step("train_qlora", *words)
    assert result.exit_code == 2
    assert result.stderr.startswith("train-qlora: ")
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_an_unknown_profile_is_refused_before_training(step, workplace: Path) -> None:
    result = step("train_qlora", "--run-id", "x", "--profile", "standrad")
    assert result.exit_code == 2
    assert "unknown profile 'standrad'; accepted: aggressive, debug" in result.stderr


def test_data_of_the_other_modality_is_refused(step, workplace: Path) -> None:
    step("prepare_data", "--profile", "smoke-text")
    run_id = (workplace / "outputs" / "run-id").read_text()
    result = step("train_qlora", "--run-id", run_id, "--profile", "smoke-vision")
    assert result.exit_code == 2
    assert "does not fit modality vision" in result.stderr


def test_sigterm_before_the_first_step_is_try_again_and_hands_nothing_over(
    step, workplace: Path
) -> None:
    step("prepare_data", "--profile", "smoke-text")
    data = (workplace / "outputs" / "run-id").read_text()
    command = [sys.executable, ROOT / "steps" / "train_qlora.py", "--run-id", data]
    process = subprocess.Popen(
        [*command, "--profile", "smoke-text", "--out-dir", "train"],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ,
    )
    import mlflow

    for _ in range(600):
        runs = mlflow.search_runs(["1"], output_format="list")
        if any(run.info.status == "RUNNING" for run in runs):
            break
        time.sleep(0.1)
    else:
        process.kill()
        raise AssertionError("the training did not start")
    process.send_signal(signal.SIGTERM)
    _, printed = process.communicate(timeout=60)
    assert process.returncode == 75, printed
    assert "train-qlora: stopped by SIGTERM; start it again" in printed
    assert not (workplace / "train").exists()
    statuses = {
        run.info.run_name: run.info.status
        for run in mlflow.search_runs(["1"], output_format="list")
    }
    assert "KILLED" in statuses.values()


@pytest.mark.parametrize("name", [".probe.part", "prompt.txt"])
def test_a_full_disk_is_try_again_in_one_sentence(
    step, workplace: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    write = Path.write_text

    def full(self: Path, *arguments: str, **options: str) -> int:
        if self.name == name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))
        return write(self, *arguments, **options)

    monkeypatch.setattr(Path, "write_text", full)
    result = step("prepare_data", "--profile", "smoke-text")
    assert result.exit_code == 75
    assert "prepare-data: the disk is full at " in result.stderr
    assert f"{name}; free some space and run it again" in result.stderr
    assert not (workplace / "outputs").exists()


def test_ctrl_c_is_no_bug(step, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(store, "connect", interrupted)
    result = step("prepare_data", "--profile", "smoke-text")
    assert (result.exit_code, result.stderr) == (130, "prepare-data: interrupted\n")
