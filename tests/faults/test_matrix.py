"""Every cell of the fault matrix, over real step processes and a real store."""

from __future__ import annotations

import harm
import pytest
import table
from cells import Cell
from line import Line

pytestmark = pytest.mark.slow


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
