"""Several processes learn what one learns, whatever befalls one of them.

Real trainings over gloo (`trainings.py`), each compared with the same training in one process.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import trainings
from safetensors.torch import load_file
from torch.testing import assert_close

from loraline.training import sharding

ROOT = Path(__file__).parents[3]
UNHARMED = ("plain", "unequal budgets", "a row a step", "resumed")
SHARED_OUT = (
    "shared out",
    "shared out, unequal passes",
    "shared out, a row a step",
    "shared out, in host memory",
    "shared out, recomputed",
    "shared out, 4 bits",
    "full, unequal passes",
    "full, in host memory",
    "shared out, resumed",
    "full, resumed",
)
"""Trainings whose processes share out the weights, by FSDP2."""
RUN_OUT_ONCE = (
    "first forward",
    "second forward",
    "first backward",
    "last backward",
    "evaluation",
)
RUN_OUT_FOR_GOOD = ("a step for good", "an evaluation for good")
QUICK = (
    "unequal budgets",
    "a row a step",
    "first forward",
    "last backward",
    "evaluation",
    "shared out, unequal passes",
    "full, unequal passes",
    *RUN_OUT_FOR_GOOD,
)
"""One of each sort, in two processes; the others, and three processes, are slow."""


def in_processes(names: Sequence[str]) -> list[Any]:
    """Each scenario in two processes and in three."""
    return [
        pytest.param(name, count, marks=() if count == 2 and name in QUICK else pytest.mark.slow)
        for name in names
        for count in (2, 3)
    ]


@pytest.fixture(scope="session")
def together(
    tiny_base: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, int], Path]:
    """The folder with what so many processes saw of a scenario; a launch runs many of them."""

    @functools.cache
    def launched(processes: int, names: tuple[str, ...]) -> Path:
        folder = tmp_path_factory.mktemp(f"processes-{processes}")
        start = (
            "import sys; from loraline.training import group, launch; "
            "count, *command = eval(sys.argv[1]); launch.run(group.Group(count), *command)"
        )
        script = (str(ROOT / "tests" / "trainings.py"), str(tiny_base("mistral")), str(folder))
        command = repr((processes, *script, *names))
        subprocess.run(
            [sys.executable, "-c", start, command],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            check=True,
            timeout=240,
        )
        return folder

    def folder_of(name: str, processes: int) -> Path:
        quick = name in QUICK
        return launched(
            processes, tuple(each for each in trainings.TOGETHER if (each in QUICK) == quick)
        )

    return folder_of


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


@pytest.mark.parametrize(
    ("name", "processes"), in_processes([*UNHARMED, *SHARED_OUT, *RUN_OUT_ONCE])
)
def test_several_processes_learn_what_one_learns(
    name: str,
    processes: int,
    together: Callable[[str, int], Path],
    alone: Callable[[str], tuple[dict[str, Any], dict[str, Any]]],
) -> None:
    recipe = trainings.SCENARIOS[name].recipe
    # The first of them is not shared out, but for a model that learns itself, which always is.
    same = next(n for n, scenario in trainings.SCENARIOS.items() if scenario.recipe == recipe)
    expected, adapter = alone(same)
    for rank in range(processes):
        seen = json.loads((together(name, processes) / f"{name}-{rank}.json").read_text())
        assert (seen["processes"], seen["ended"]) == (processes, "")
        for key in ("loss", "eval_loss", "grad_norm"):
            assert seen[key] == pytest.approx(expected[key], abs=1e-6, rel=1e-6), key
    learned = load_file(together(name, processes) / f"{name}.safetensors")
    for parameter, weight in adapter.items():
        assert_close(learned[parameter], weight, atol=1e-6, rtol=0, msg=parameter)


@pytest.mark.parametrize(("name", "processes"), in_processes(RUN_OUT_FOR_GOOD))
def test_memory_that_is_too_small_in_one_process_ends_all_of_them(
    name: str, processes: int, together: Callable[[str, int], Path]
) -> None:
    for rank in range(processes):
        seen = json.loads((together(name, processes) / f"{name}-{rank}.json").read_text())
        assert f"does not fit the GPU of process {processes - 1}, not even" in seen["ended"]
        assert "lower max_length, set memory: small, or use a larger card" in seen["ended"]


def test_a_whole_model_learns_the_same_alone_and_not_shared_out(
    tiny_base: Callable[[str], Path], tmp_path: Path, alone: Callable[[str], Any]
) -> None:
    """In one process FSDP2 shares nothing out, and its hooks change nothing."""
    seen, learned = alone("full")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "shard", lambda *_, **__: None)
        plain = trainings.run(str(tiny_base("mistral")), tmp_path, "full")
    assert plain["loss"] == pytest.approx(seen["loss"], abs=1e-6)
    weights = load_file(tmp_path / "full.safetensors")
    for name, weight in weights.items():
        assert_close(weight, learned[name], atol=1e-6, rtol=0, msg=name)


@pytest.mark.parametrize(("wrote", "reads"), [(1, 3), (2, 3), (3, 2), (3, 1)])
def test_a_state_that_was_shared_out_is_read_by_any_number_of_processes(
    wrote: int, reads: int
) -> None:
    state = {"best": {"a": torch.arange(10.0).reshape(5, 2)}, "steps": [torch.tensor(7.0), "x", 1]}
    parts = [sharding.cut(state, rank, wrote) for rank in range(wrote)]
    whole = sharding.joined(parts)
    again = sharding.joined([sharding.cut(whole, rank, reads) for rank in range(reads)])
    assert_close(again["best"]["a"], state["best"]["a"])
    assert again["steps"] == state["steps"]
