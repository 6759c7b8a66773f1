"""Every cell of the fault matrix, over real step processes and a real store."""

from __future__ import annotations

from pathlib import Path

import harm
import pytest
import table
from cells import Cell
from line import Line
from stage import Server, Stage

pytestmark = pytest.mark.slow


def test_a_server_that_was_stopped_leaves_its_port(tmp_path: Path) -> None:
    """Or the next one would meet it there, and the step after that nobody."""
    stage = Stage(tmp_path)
    try:
        for _ in range(10):
            server = Server(stage, "s3", reserved=stage.reserved)
            server.stop()
            assert not server.listens()
    finally:
        stage.close()


LONGEST = (
    *("each answer takes two seconds", "server killed for good"),
    "database held by another program",
)
"""Faults whose cells take minutes: they come first, or one worker would end with them alone."""


@pytest.mark.parametrize(
    "cell", sorted(table.CELLS, key=lambda cell: cell.fault not in LONGEST), ids=str
)
def test_a_fault_ends_as_the_table_says(cell: Cell, line: Line) -> None:
    if cell.fault.startswith("disk ") and not harm.disks_can_be_mounted():
        pytest.skip("no disk can be mounted by this user")
    if cell.fault == "out of memory" and not harm.memory_can_be_limited():
        pytest.skip("no control group for memory can be made by this user")
    line.play(cell)
