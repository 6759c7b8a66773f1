"""What a real controller did, the runner does; or it refuses, in a sentence.

The verdict on each case is in verdicts.txt: `equal`, `refused` before anything runs, or `stopped`,
where a node in Error says what Argo would do with the value that it met. Nothing else may be there.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import constructs
import pytest
from recorded import CASES, run_all, verdict, written

from runner.execution import Run
from runner.language import Refused
from runner.reader import parameter_values, read

VERDICTS = dict(
    line.split(" ", 1)
    for line in Path(__file__).with_name("verdicts.txt").read_text().splitlines()
    if line
)
SLOW = {name for name, case in CASES.items() if case.get("slow")}
"""Cases that wait for more than ten seconds, or that vary what another case is about."""


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run | Refused]:
    cases = {name: case for name, case in CASES.items() if name not in SLOW}
    return asyncio.run(run_all(cases, tmp_path_factory.mktemp("quick")))


@pytest.fixture(scope="module")
def slow(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Run | Refused]:
    """The slow cases that this session selects: with `-k`, no others are run."""
    functions = [item for item in request.session.items if isinstance(item, pytest.Function)]
    names = [item.callspec.params["name"] for item in functions if "slow" in item.fixturenames]
    cases = {name: CASES[name] for name in names}
    return asyncio.run(run_all(cases, tmp_path_factory.mktemp("slow")))


def test_every_case_has_a_verdict() -> None:
    assert VERDICTS.keys() == CASES.keys()
    assert {verdict.partition(":")[0] for verdict in VERDICTS.values()} <= {
        "equal",
        "refused",
        "stopped",
    }


@pytest.mark.parametrize("name", sorted(CASES.keys() - SLOW))
def test_the_verdict_on_a_case(quick: dict[str, Any], name: str) -> None:
    assert verdict(CASES[name], quick[name]) == VERDICTS[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SLOW))
def test_the_verdict_on_a_slow_case(slow: dict[str, Any], name: str) -> None:
    assert verdict(CASES[name], slow[name]) == VERDICTS[name]


@pytest.mark.parametrize("name", [n for n, case in CASES.items() if "refused" in case["argo"]])
def test_what_argo_refuses_at_submit_is_refused_by_reading_alone(name: str, tmp_path: Path) -> None:
    """So `make lint` refuses it too, but for a parameter that is given by -p."""
    with pytest.raises(Refused):
        parameter_values(read(written(CASES[name], tmp_path)), (), {})


@pytest.mark.parametrize("name", [n for n, v in VERDICTS.items() if not v.startswith("equal")])
def test_a_refusal_is_a_sentence(name: str) -> None:
    _, _, sentence = VERDICTS[name].partition(": ")
    assert len(sentence.split()) >= 5


def test_the_table_of_constructs_in_the_docs_is_of_these_cases() -> None:
    page = constructs.PAGE.read_text()

    assert constructs.with_table(page) == page, "run python tests/runner/constructs.py"
