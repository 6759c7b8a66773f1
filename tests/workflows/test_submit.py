"""What is wrong is found out before a workflow is submitted; the rest is in tests/cluster."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def submit(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "workflows/submit.py", *arguments],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("resources=gpu", "is none of cpu, gpu-large"),
        ("profil=x", "-p profil=x sets no parameter"),
    ],
)
def test_what_argo_would_take_and_fail_of_is_refused(given: str, told: str) -> None:
    ended = submit("workflows/pipeline.yaml", "-p", given)
    assert ended.returncode == 2
    assert told in ended.stderr


def test_without_argo_it_says_so(tmp_path: Path) -> None:
    ended = submit("workflows/pipeline.yaml", "-p", "profile=smoke-text", PATH=str(tmp_path))
    assert ended.returncode == 2
    assert "argo, the command line of Argo Workflows, is not installed" in ended.stderr


@pytest.mark.parametrize(
    ("words", "parameters"),
    [
        (["WORKFLOW=pipeline", "PROFILE=mine"], ["profile=mine", "data=", "set="]),
        (["WORKFLOW=sweep", "PROFILE=a"], ["profile=a", "data=", 'profiles=["a"]', "set="]),
        (["WORKFLOW=promote", "PARAMS=model=m version=1"], ["model=m", "version=1"]),
    ],
)
def test_make_passes_what_the_workflow_has(words: list[str], parameters: list[str]) -> None:
    printed = subprocess.run(
        ["make", "-n", "-o", ".venv/.installed", "submit", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert [part.split("'")[0] for part in printed.split("-p '")[1:]] == parameters
