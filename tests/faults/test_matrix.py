"""Every cell of the fault matrix, over real step processes and a real store."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import after
import pytest
import table
from cells import Cell
from provoke import FAULTS
from stage import LINE, Stage, furnish

pytestmark = pytest.mark.slow


class Line:
    """A stage with the state before each step, and what each step makes of it undisturbed."""

    def __init__(self, folder: Path, empty_store: Path) -> None:
        self.stage = Stage(folder)
        furnish(self.stage, empty_store)
        self.results: dict[str, dict[str, Any]] = {}
        for step in (*LINE, "promote"):
            self.stage.save(f"before {step}")
            ended = self.stage.step(step)
            assert ended.code == 0, ended.stderr
            self.results[step] = after.whole(self.stage, step)


@pytest.fixture(scope="session")
def line(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Iterator[Line]:
    made = Line(tmp_path_factory.mktemp("faults"), empty_store)
    yield made
    made.stage.close()


@pytest.mark.parametrize("cell", table.CELLS, ids=str)
def test_a_fault_ends_as_the_table_says(cell: Cell, line: Line) -> None:
    stage = line.stage
    stage.restore(f"before {cell.step}")
    before = after.rows(stage)
    ended = FAULTS[cell.fault](stage, cell)
    left = after.left(stage, before, cell.step)
    rerun = stage.step(cell.step)
    unswept = after.unswept(stage, cell.step) if rerun.code == 0 else set()
    result = after.whole(stage, cell.step) if rerun.code == 0 else None
    secrets = after.shown_secrets(stage, ended, rerun)
    if "LORALINE_FAULT_OUTCOMES" in os.environ:
        entry = {
            "cell": str(cell),
            "fault": cell.fault,
            "step": cell.step,
            "moment": cell.moment,
            "exit_code": ended.code,
            "sentence": ended.sentence,
            "left": sorted(left),
            "rerun_code": rerun.code,
            "rerun": rerun.sentence,
            "unswept": sorted(unswept),
            "same": result == line.results[cell.step],
            "secrets": secrets,
        }
        after.record(Path(os.environ["LORALINE_FAULT_OUTCOMES"]), entry)
    assert ended.code == cell.exit_code, ended.stderr
    assert cell.sentence in ended.stderr
    assert "Traceback" not in ended.stderr
    assert rerun.code == cell.rerun_code, rerun.stderr
    assert cell.rerun in rerun.stderr
    assert not secrets
    if rerun.code == 0:
        assert result == line.results[cell.step]
        assert not unswept
