"""Several processes learn what one learns, whatever befalls one of them.

Real trainings over gloo (`trainings.py`), each compared with the same training in one process.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trainings
from safetensors.torch import load_file
from torch.testing import assert_close

ROOT = Path(__file__).parents[3]
UNHARMED = ("plain", "unequal budgets", "a row a step")
RUN_OUT_ONCE = (
    "first forward",
    "second forward",
    "first backward",
    "last backward",
    "evaluation",
)
RUN_OUT_FOR_GOOD = ("a step for good", "an evaluation for good")


@pytest.fixture(scope="session")
def together(
    tiny_base: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int], Path]:
    """The folder with what so many processes saw of every scenario, one launch for all of them."""

    @functools.cache
    def launched(processes: int) -> Path:
        folder = tmp_path_factory.mktemp(f"processes-{processes}")
        start = "import sys; from loraline.training import launch; launch.run(*eval(sys.argv[1]))"
        script = (str(ROOT / "tests" / "trainings.py"), str(tiny_base("mistral")), str(folder))
        command = repr((processes, *script, *trainings.SCENARIOS))
        subprocess.run(
            [sys.executable, "-c", start, command],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            check=True,
            timeout=240,
        )
        return folder

    return launched


@pytest.fixture(scope="session")
def alone(
    tiny_base: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[dict[str, Any], dict[str, Any]]]:
    """What one undisturbed process logs under a scenario's recipe, and its adapter."""
    folder = tmp_path_factory.mktemp("alone")

    @functools.cache
    def trained(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(trainings.RunsOut, "__call__", lambda *_: None)
            seen = trainings.run(str(tiny_base("mistral")), folder, name)
        return seen, load_file(folder / f"{name}.safetensors")

    return trained


@pytest.mark.parametrize("processes", [2, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", [*UNHARMED, *RUN_OUT_ONCE])
def test_several_processes_learn_what_one_learns(
    name: str,
    processes: int,
    together: Callable[[int], Path],
    alone: Callable[[str], tuple[dict[str, Any], dict[str, Any]]],
) -> None:
    recipe = trainings.SCENARIOS[name].recipe
    same = next(n for n, scenario in trainings.SCENARIOS.items() if scenario.recipe == recipe)
    expected, adapter = alone(same)
    for rank in range(processes):
        seen = json.loads((together(processes) / f"{name}-{rank}.json").read_text())
        assert (seen["processes"], seen["ended"]) == (processes, "")
        for key in ("loss", "eval_loss", "grad_norm"):
            assert seen[key] == pytest.approx(expected[key], abs=1e-6, rel=1e-6), key
    learned = load_file(together(processes) / f"{name}.safetensors")
    for parameter, weight in adapter.items():
        assert_close(learned[parameter], weight, atol=1e-6, rtol=0, msg=parameter)


@pytest.mark.parametrize("processes", [2, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", RUN_OUT_FOR_GOOD)
def test_memory_that_is_too_small_in_one_process_ends_all_of_them(
    name: str, processes: int, together: Callable[[int], Path]
) -> None:
    for rank in range(processes):
        seen = json.loads((together(processes) / f"{name}-{rank}.json").read_text())
        assert f"does not fit the GPU of process {processes - 1}, not even" in seen["ended"]
        assert "lower max_length, set memory: small, or use a larger card" in seen["ended"]
