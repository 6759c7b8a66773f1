"""The lists of breakages apply to the code as it is: a stale one says nothing about the tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
LISTS = sorted(path.stem for path in (ROOT / "tests" / "mutants").glob("*.yaml"))


@pytest.mark.parametrize("name", LISTS)
def test_every_breakage_of_a_list_applies(name: str, script: Callable[[str], ModuleType]) -> None:
    mutants = script("tests/mutants/run.py").load(name)
    assert list(mutants.faults(ROOT)) == []
    assert [test for test in mutants.tests if not (ROOT / test.partition("::")[0]).exists()] == []
