"""The gate and the promotion over a real PostgreSQL: the same faults end in the same way."""

from __future__ import annotations

from collections.abc import Iterator

import after
import pytest
import table
from cells import Cell
from line import Line
from postgres import PostgresStage, program
from provoke import wait_for_file
from stage import MODEL

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(program("initdb") is None, reason="PostgreSQL is not installed"),
]

CELLS = [
    cell
    for cell in table.CELLS
    if cell.step in ("quality_gate", "promote")
    and cell.fault in ("SIGKILL", "SIGTERM", "Ctrl-C", "two at once", "clock an hour ahead")
]


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Line]:
    made = Line(PostgresStage(tmp_path_factory.mktemp("postgres")), None)
    yield made
    made.close()


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_a_fault_ends_as_the_table_says(cell: Cell, line: Line) -> None:
    line.play(cell)


@pytest.mark.parametrize("moment", table.STARTS["quality_gate"])
def test_a_postgresql_that_dies_is_try_again(moment: str, line: Line) -> None:
    stage = line.stage
    assert isinstance(stage, PostgresStage)
    stage.restore("before quality_gate")
    reached, go = stage.states / "reached", stage.states / "go"
    for file in (reached, go):
        file.unlink(missing_ok=True)
    wait = {"moment": moment, "reached": str(reached), "go": str(go)}
    arguments = stage.arguments("quality_gate")
    step = stage.start("quality_gate", *arguments, faults=[("paused", wait)])
    wait_for_file(reached, step)
    stage.postgres.stop()
    go.touch()
    ended = step.ended()
    stage.postgres.start()
    assert ended.code == 75, ended.stderr
    assert "Traceback" not in ended.stderr
    assert stage.step("quality_gate").code == 0
    assert after.rows(stage)["version"] == {(MODEL, 1)}
