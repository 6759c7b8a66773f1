"""What a container that did not start says, and in whose words."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from recorded import CASES, run_here

from runner.containers import command_line, not_started
from runner.language import Container
from runner.reader import read

ROOT = Path(__file__).parents[2]


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


@pytest.mark.parametrize("cache", ["/home/me/cache", None])
def test_a_cache_of_this_machine_is_used_where_a_pod_has_a_claim(
    cache: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if cache is None:
        monkeypatch.delenv("HF_HOME", raising=False)
    else:
        monkeypatch.setenv("HF_HOME", cache)
    train = read(ROOT / "workflows" / "pipeline.yaml").templates["train-qlora"].definition

    assert isinstance(train, Container)
    _, environment = command_line(train, "outputs/x", str)

    # The claim of a pod is mounted at /models, which this machine does not have.
    assert "HF_HOME" in train.inherited
    assert "HF_HOME" not in environment
    assert environment["LORALINE_IMAGE"] == "{{workflow.parameters.gpu-image}}"
