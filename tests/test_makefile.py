"""The Makefile hands on what was typed, and refuses what it would not read."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from runner.reader import read

ROOT = Path(__file__).parents[1]


def make(*words: str, folder: Path = ROOT, answer: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", "-o", ".venv/.installed", *words],
        cwd=folder,
        env={**os.environ, "MAKEFLAGS": ""},
        input=answer,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("words", "argument"),
    [
        (["pipeline"], "-p 'profile=smoke-text'"),
        (["pipeline", "DATA=it's"], r"-p 'data=it'\''s'"),
        (["pipeline", "SET=r=16 gate.min_rows=3"], "-p 'set=r=16 gate.min_rows=3'"),
        (["sweep", 'PROFILES=["a", "b"]'], """-p 'profiles=["a", "b"]'"""),
        (["mlflow", "PORT=5050"], "--port 5050"),
        (["mlflow"], "--port 5000"),
        (["serve"], "serve_local.py outputs/latest/deploy-vllm/vllm.yaml"),
        (["serve", "PORT=8123"], "--port 8123"),
        (["serve", "GATEWAY_PORT=8124"], "--port 8000 --gateway-port 8124"),
        (["serve"], "--port 8000 --gateway-port 8080"),
        (["ui", "GATEWAY_PORT=8124"], "--gateway http://127.0.0.1:8124"),
        (["serve", "MODEL=my model"], "serve_local.py --model 'my model'"),
        (["serve", "ALIAS=champion"], "--alias 'champion'"),
    ],
)
def test_what_is_typed_is_handed_on(words: list[str], argument: str) -> None:
    printed = make("-n", *words)
    assert printed.returncode == 0, printed.stderr
    assert argument in printed.stdout


def test_help_names_the_port_of_the_gateway() -> None:
    (line,) = (each for each in make("help").stdout.splitlines() if each.startswith("serve "))
    assert "GATEWAY_PORT=8080" in line


def test_a_sweeps_members_are_looked_at_first() -> None:
    refused = make("sweep", 'PROFILES=["smoke-text", "nope"]')
    assert refused.returncode == 2
    assert "unknown profile 'nope'" in refused.stderr
    assert "prepare-data" not in refused.stderr


@pytest.mark.parametrize("target", ["pipeline", "sweep"])
def test_a_run_is_summed_up_by_its_own_name(target: str) -> None:
    """`outputs/latest` may lead to another run that was started meanwhile."""
    printed = make("-n", target).stdout
    # The runner takes a name that is known again as its workflow's.
    prefix = read(ROOT / "workflows" / f"{target}.yaml").prefix
    assert f'name="{prefix}$(date +%Y%m%d-%H%M%S)-$$"' in printed
    assert '--name "$name"' in printed
    assert 'summary.py "outputs/$name"' in printed


VARIABLES = re.findall(r"^([A-Z_]+) \?=", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("variable", VARIABLES)
def test_a_variable_in_small_letters_is_refused(variable: str) -> None:
    refused = make("-n", "clean", f"{variable.lower()}=mine")
    assert refused.returncode == 2
    assert (
        f"{variable.lower()}= sets nothing; variables are written in capitals: {variable}=mine"
        in refused.stderr
    )


def test_a_profile_of_ones_own_leaves_the_tracked_workflows_alone() -> None:
    printed = make("-n", "pipeline", "PROFILE=my own").stdout
    assert "workflows/pipeline.py --kind Workflow --out outputs/workflows" in printed
    assert "loraline_cli.preload outputs/workflows/pipeline.yaml -p 'profile=my own'" in printed
    known = make("-n", "pipeline", "PROFILE=standard").stdout
    assert "loraline_cli.preload workflows/pipeline.yaml" in known
    assert "workflows/pipeline.py" not in known


def test_no_error_is_ignored_aloud() -> None:
    """Make calls an ignored error an error all the same, in the last line of an installation."""
    assert re.findall(r"^\t@?-.*", (ROOT / "Makefile").read_text(), re.MULTILINE) == []


@pytest.mark.parametrize(
    ("words", "answer", "removed"),
    [([], "y\n", True), ([], "n\n", False), ([], "", False), (["YES=1"], "", True)],
)
def test_clean_asks_before_a_registry_goes(
    tmp_path: Path, words: list[str], answer: str, removed: bool
) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "workflows").mkdir()
    (tmp_path / "workflows" / "pipeline.yaml").touch()
    for folder in ("mlruns", "outputs"):
        (tmp_path / folder).mkdir()
    ended = make("clean", *words, folder=tmp_path, answer=answer)
    assert (ended.returncode == 0) == removed
    assert (tmp_path / "mlruns").exists() != removed
    assert (tmp_path / "outputs").exists() != removed


def test_clean_without_a_registry_does_not_ask(tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "workflows").mkdir()
    (tmp_path / "workflows" / "pipeline.yaml").touch()
    (tmp_path / "outputs").mkdir()
    assert make("clean", folder=tmp_path).returncode == 0
    assert not (tmp_path / "outputs").exists()


def test_a_run_ends_with_a_test_that_never_does_and_names_it(tmp_path: Path) -> None:
    # Within `make test`, make says first which folder it enters.
    lines = make("-n", "test").stdout.splitlines()
    (command,) = [line for line in lines if line.startswith(".venv/bin/pytest ")]
    options = shlex.split(command)[1:]
    assert "faulthandler_timeout=600" in options
    (tmp_path / "pyproject.toml").write_text("[tool.pytest.ini_options]\n")
    (tmp_path / "test_small.py").write_text(
        "import time\n\n\ndef test_ends():\n    pass\n\n\ndef test_hangs():\n    time.sleep(300)\n"
    )
    (tmp_path / "test_other.py").write_text("def test_ends_too():\n    pass\n")
    short = [option.replace("timeout=600", "timeout=2") for option in options]
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "xdist", *short],
        cwd=tmp_path,
        # Other plugins take seconds to import.
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert ended.returncode != 0
    assert "crashed while running 'test_small.py::test_hangs'" in ended.stdout
    assert "in test_hangs" in ended.stderr
    # The process that is left may get the test again; nobody gets it for ever.
    assert ended.stdout.count("crashed while running") <= 2
