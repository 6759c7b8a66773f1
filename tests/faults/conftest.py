"""The candidates of the steps' tests, for faults that meet a gate or what comes after it."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest
from line import Line
from stage import Stage

STEPS = Path(__file__).parents[1] / "steps" / "conftest.py"
spec = importlib.util.spec_from_file_location("candidates_of_steps", STEPS)
assert spec is not None and spec.loader is not None
steps = importlib.util.module_from_spec(spec)
spec.loader.exec_module(steps)

candidate = steps.candidate
quick = steps.quick
data_run = steps.data_run
train = steps.train
make_adapter = steps.make_adapter


@pytest.fixture(scope="session")
def line(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Iterator[Line]:
    """An undisturbed line on a stage; it costs a minute, so that slow tests alone ask for it."""
    made = Line(Stage(tmp_path_factory.mktemp("faults")), empty_store)
    yield made
    made.close()
