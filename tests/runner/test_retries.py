"""When a template is tried again, and after how many seconds."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from runner.declarations import read_retry
from runner.nodes import Node
from runner.references import NodeError
from runner.retries import pause_before_next


def pause(strategy: dict[str, Any], number: int = 0, **attempt: Any) -> float | None:
    """Seconds after an attempt, counted from 0, until the next; None if none follows."""
    outcome = after(strategy, number, **attempt)
    return None if isinstance(outcome, str) else outcome


def after(
    strategy: dict[str, Any],
    number: int = 0,
    *,
    elapsed: float = 0,
    phase: str = "Failed",
    exit_code: int | None = 1,
    stopped: bool = False,
) -> float | str:
    """What follows an attempt: seconds until the next, or the message of why there is none."""
    attempt = Node("a(0)", "a(0)", "Pod", "a", "a", Path())
    attempt.phase, attempt.exit_code, attempt.message = phase, exit_code, "main: Error"
    run: Any = SimpleNamespace(stop=SimpleNamespace(requested=stopped))
    retry = read_retry("template a", {"limit": 9, **strategy})
    return pause_before_next(run, retry, attempt, number, elapsed)


@pytest.mark.parametrize(("number", "seconds"), [(0, 2), (1, 6), (2, 18), (3, 54)])
def test_each_pause_is_the_one_before_times_the_factor(number: int, seconds: float) -> None:
    assert pause({"backoff": {"duration": "2", "factor": 3}}, number) == seconds


def test_without_a_factor_all_pauses_are_equal_and_without_a_backoff_there_is_none() -> None:
    assert [pause({"backoff": {"duration": "2"}}, number) for number in (0, 3)] == [2, 2]
    assert pause({}) == 0


@pytest.mark.parametrize(
    ("elapsed", "follows"), [(7.9, True), (8, True), (8.1, False), (11, False)]
)
def test_no_attempt_begins_after_the_longest_duration(elapsed: float, follows: bool) -> None:
    backoff = {"duration": "2", "maxDuration": "10"}
    assert (pause({"backoff": backoff}, elapsed=elapsed) is not None) == follows


@pytest.mark.parametrize(
    ("policy", "failed", "error"),
    [
        ("OnFailure", True, False),
        ("OnError", False, True),
        ("Always", True, True),
    ],
)
def test_the_policy_says_after_which_phases(policy: str, failed: bool, error: bool) -> None:
    strategy = {"retryPolicy": policy}
    assert (pause(strategy, phase="Failed") is not None) == failed
    assert (pause(strategy, phase="Error") is not None) == error


def test_as_many_attempts_follow_as_the_limit_says() -> None:
    assert pause({"limit": 2}, 1) is not None
    assert pause({"limit": 2}, 2) is None


@pytest.mark.parametrize(
    ("strategy", "number", "attempt", "message"),
    [
        ({"limit": 1}, 1, {}, "No more retries left"),
        ({"expression": "lastRetry.exitCode == '75'"}, 0, {},
         "retryStrategy.expression evaluated to false"),
        ({"retryPolicy": "OnError"}, 0, {}, "main: Error"),
        ({"backoff": {"duration": "5", "maxDuration": "9"}}, 0, {"elapsed": 8},
         "Backoff would exceed max duration limit"),
        ({"backoff": {"duration": "5", "maxDuration": "9"}}, 0, {"elapsed": 10},
         "Max duration limit exceeded"),
    ],
    ids=["limit", "expression", "policy", "backoff", "duration"],
)  # fmt: skip
def test_that_none_follows_is_said_in_argos_words(
    strategy: dict[str, Any], number: int, attempt: dict[str, Any], message: str
) -> None:
    assert after(strategy, number, **attempt) == message


def test_none_follows_once_the_run_is_stopped() -> None:
    assert pause({}, stopped=True) is None


@pytest.mark.parametrize(("exit_code", "follows"), [(75, True), (1, False), (None, False)])
def test_the_expression_decides_by_the_exit_code(exit_code: int | None, follows: bool) -> None:
    strategy = {"expression": "asInt(lastRetry.exitCode) == 75"}
    assert (pause(strategy, exit_code=exit_code) is not None) == follows


def test_with_an_expression_and_no_policy_the_expression_decides_alone() -> None:
    strategy = {"expression": "lastRetry.status != 'Succeeded'"}
    assert [pause(strategy, phase=phase) for phase in ("Failed", "Error")] == [0, 0]
    assert pause({**strategy, "retryPolicy": "OnFailure"}, phase="Error") is None


def test_where_there_was_no_exit_code_an_expression_reads_minus_one() -> None:
    assert pause({"expression": "lastRetry.exitCode == '-1'"}, exit_code=None) is not None
    assert pause({"expression": "lastRetry.exitCode == '0'"}, exit_code=None) is None


def test_a_backoff_without_a_duration_is_an_error_at_the_first_failure() -> None:
    with pytest.raises(NodeError, match="no base duration"):
        pause({"backoff": {"factor": 2}})
    assert read_retry("template a", {"limit": 1}).longest == math.inf
