"""The candidates of the steps' tests, for faults that meet a gate or what comes after it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

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
