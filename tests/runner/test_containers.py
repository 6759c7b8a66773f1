"""What a container that did not start says, and in whose words."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from recorded import CASES, run_here

from runner.containers import not_started


@pytest.mark.parametrize("name", ["no-such-command", "not-executable-command"])
def test_a_program_that_does_not_start_is_named_as_argo_names_it(name: str, tmp_path: Path) -> None:
    run = asyncio.run(run_here(CASES[name], tmp_path))

    assert run.nodes["wf.a"].message == CASES[name]["argo"]["nodes"][".a"]["message"]


@pytest.mark.parametrize(
    ("program", "error", "why"),
    [
        ("", FileNotFoundError(), "executable file not found in $PATH"),
        ("./program", FileNotFoundError(), "stat ./program: no such file or directory"),
        ("/usr", PermissionError(), "is a directory"),
    ],
)
def test_why_a_program_is_not_found(program: str, error: OSError, why: str) -> None:
    assert not_started(program, error) == f'failed to find name in PATH: exec: "{program}": {why}'


def test_another_reason_is_the_systems() -> None:
    error = OSError(7, "Argument list too long")

    assert not_started("python", error) == "failed to start python: Argument list too long"
