"""What a real controller did, the runner does; or it refuses, in a sentence.

The verdict on each case is in verdicts.txt: `equal`, `refused` before anything runs, or `stopped`,
where a node in Error says what Argo would do with the value that it met. Nothing else may be there.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from recorded import CASES, run_all, verdict

from runner.execution import Run
from runner.language import Refused

VERDICTS = dict(
    line.split(" ", 1)
    for line in Path(__file__).with_name("verdicts.txt").read_text().splitlines()
    if line
)
WAITS = {
    "deadline-in-backoff",
    "deadline-of-workflow-phases",
    "exit-after-deadline",
    "retry-max-duration",
    "retry-max-duration-of-slow",
    "retry-timeout-slow",
}
"""Cases that take more than ten seconds because they are about such times."""


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run | Refused]:
    cases = {name: case for name, case in CASES.items() if name not in WAITS}
    return asyncio.run(run_all(cases, tmp_path_factory.mktemp("quick")))


@pytest.fixture(scope="module")
def waiting(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run | Refused]:
    cases = {name: CASES[name] for name in WAITS}
    return asyncio.run(run_all(cases, tmp_path_factory.mktemp("waiting")))


def test_every_case_has_a_verdict() -> None:
    assert VERDICTS.keys() == CASES.keys()
    assert {verdict.partition(":")[0] for verdict in VERDICTS.values()} <= {
        "equal",
        "refused",
        "stopped",
    }


@pytest.mark.parametrize("name", sorted(CASES.keys() - WAITS))
def test_the_verdict_on_a_case(quick: dict[str, Any], name: str) -> None:
    assert verdict(CASES[name], quick[name]) == VERDICTS[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(WAITS))
def test_the_verdict_on_a_case_that_waits(waiting: dict[str, Any], name: str) -> None:
    assert verdict(CASES[name], waiting[name]) == VERDICTS[name]


@pytest.mark.parametrize("name", [n for n, v in VERDICTS.items() if not v.startswith("equal")])
def test_a_refusal_is_a_sentence(name: str) -> None:
    _, _, sentence = VERDICTS[name].partition(": ")
    assert len(sentence.split()) >= 5
