"""Conditions mean what they mean to Argo, or are refused."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner import expressions, govaluate
from runner.expressions import DEPENDS, RETRY, EvaluationError, SyntaxRefused, parse

NAMES = ("first", "se-cond", "third.Failed")


def trees(leaves: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Conditions in the syntax that all three languages share with Python, but for its words."""
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.builds("!({})".format, inner),
            st.builds("({} && {})".format, inner, inner),
            st.builds("{} || {}".format, inner, inner),
        ),
        max_leaves=8,
    )


@given(trees(st.sampled_from(NAMES)))
def test_depends_is_the_logic_that_it_looks_like(source: str) -> None:
    condition = parse(source, DEPENDS)
    python = source.replace("&&", " and ").replace("||", " or ").replace("!", " not ")
    for number, name in enumerate(NAMES):
        python = python.replace(name, f"values[{number}]")
    for values in itertools.product([True, False], repeat=len(NAMES)):
        scope = dict(zip(NAMES, values, strict=True))
        assert condition.is_true(scope) == eval(python, {"values": values})


@given(trees(st.sampled_from(["true", "false", "1 == 1", "x == y", "2 < 1"])))
def test_when_and_retry_agree_on_what_both_can_say(source: str) -> None:
    quoted = source.replace("x", "'x'").replace("y", "'y'")

    assert govaluate.is_true(source) == parse(quoted, RETRY).is_true({})


@given(st.text(max_size=20), st.sampled_from([RETRY, DEPENDS]))
def test_whatever_is_no_condition_is_refused_and_nothing_else_happens(
    source: str, dialect: expressions.Dialect
) -> None:
    try:
        assert parse(source, dialect).source == source
    except SyntaxRefused as refused:
        assert "run" in str(refused)


LAST = {
    "lastRetry.exitCode": "75",
    "lastRetry.status": "Failed",
    "lastRetry.message": "pod deleted",
}


@pytest.mark.parametrize(
    "source",
    [
        "asInt(lastRetry.exitCode) == 75",
        "asInt(lastRetry.exitCode) in [75, 76]",
        "lastRetry.exitCode == '75' and not (lastRetry.status == 'Error')",
        "lastRetry.message contains 'deleted' && lastRetry.message startsWith 'pod'",
        "lastRetry.message matches '^pod .*d$' or false",
        "asFloat(lastRetry.exitCode) > 74.5 && -1 < 0",
    ],
)
def test_what_a_retry_can_ask_of_the_last_attempt(source: str) -> None:
    assert parse(source, RETRY).is_true(LAST)


@pytest.mark.parametrize("code", ["", "x", "1.5"])
def test_an_exit_code_that_is_no_number_is_said(code: str) -> None:
    with pytest.raises(EvaluationError, match="whole number"):
        parse("asInt(lastRetry.exitCode) == 1", RETRY).is_true({"lastRetry.exitCode": code})


@pytest.mark.parametrize("word", ["startsWith", "endsWith", "contains", "matches"])
def test_a_number_where_a_text_has_to_be_is_an_error_of_the_node(word: str) -> None:
    with pytest.raises(EvaluationError):
        parse(f"asInt(lastRetry.exitCode) {word} '7'", RETRY).is_true(LAST)
