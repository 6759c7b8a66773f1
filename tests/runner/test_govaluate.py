"""`when` means what govaluate makes of it, oddities included.

Each line was seen on a real controller, or stands in govaluate's own tests.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.expressions import EvaluationError, SyntaxRefused
from runner.govaluate import is_true


@pytest.mark.parametrize(
    ("source", "result"),
    [
        ("passed == passed", True),
        ("'passed' == passed", True),
        ("3 == 3.0", True),
        ("3 == '3'", False),
        ("b in (a, b)", True),
        ("3 in (1, 2, 3)", True),
        ("'' in (a, '')", True),
        ("'a b' =~ '^a'", True),
        ("'ab\\n' =~ 'b$'", False),
        ("a !~ b && 2 >= 2", True),
        ("!(a == a) || 10 > 9", True),
        ("-0.031 >= 0", False),
        (".5 < 1", True),
        ("1. == 1", True),
        ("0x10 == 16", True),
        ("1+1 == 2", True),
        ("2 ** 3 == 8", True),
        ("7 % 4 == 3 && 6 / 4 == 1.5", True),
        ("10 - 2 - 3 == 5", True),
        ("0 > -1", True),
        ("[] == yes", False),
        ("été == yes", False),
        ("[a b] == 'a b'", True),
        ("True == true", False),
        (" true ", True),
        ("'2024-01-01' == '2024-01-01T00:00:00Z'", True),
        ("'2024-01-02' > '2024-01-01'", True),
        ("2 < 1 ? false : true", True),
        ("'a' + 1 == a1", True),
        ("'it\\'s' == \"it\\'s\"", True),
        ("'b' > 'a'", True),
    ],
)
def test_conditions_that_are_true_or_false(source: str, result: bool) -> None:
    assert is_true(source) is result


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("maybe", "Expected boolean evaluation for 'maybe'. Got maybe"),
        ("passed in (passed)", "cannot be used with the comparator 'in'"),
        ("1 && true", "Value '1' cannot be used with the logical operator '&&', it is not a bool"),
        ("a < 1", "Value 'a' cannot be used with the comparator '<', it is not a number"),
        ("true < false", "comparator"),
        ("nan > 1", "comparator"),
        ("a-b == c", "Value 'a' cannot be used with the modifier '-', it is not a number"),
        ("'2024-01-01' =~ '^2024'", "comparator '=~'"),
        ("'a' =~ '(?=a)'", "does not run here"),
        ("'a' =~ 'a('", "cannot be read"),
        ("-true == 1", "prefix '-'"),
    ],
)
def test_operands_that_do_not_fit_are_an_error_of_the_node(source: str, message: str) -> None:
    with pytest.raises(EvaluationError) as error:
        is_true(source)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("a b", "Cannot transition token types from VARIABLE [a] to VARIABLE [b]"),
        ("1e-4 == 1", "Cannot transition token types from NUMERIC [1] to VARIABLE [e]"),
        ("""'say "x"' == y""", "Cannot transition token types from STRING [say ] to VARIABLE [x]"),
        ("!'x'", "Cannot transition token types from PREFIX [!] to STRING [x]"),
        ("_x == a", "Invalid token: '_'"),
        ("1.10.0 == 1", "Unable to parse numeric value '1.10.0' to float64"),
        ("'a", "Unclosed string literal"),
        ("[a", "Unclosed parameter bracket"),
        ("(a == b", "Unbalanced parenthesis"),
        ("a ==", "Unexpected end of expression"),
        ("f(a)", "Undefined function f"),
        ("== yes", "Cannot transition token types from UNKNOWN"),
        ("0xz == 1", "Unable to parse hex value"),
        ("a.b == c", "Unable to access unexported field 'b'"),
    ],
)
def test_what_is_no_condition_is_refused_in_argos_words(source: str, message: str) -> None:
    with pytest.raises(SyntaxRefused) as refused:
        is_true(source)
    assert message in str(refused.value)


@given(st.text(alphabet="ab1.'\"-+*/<>=!~&|?:,()[] \\é", max_size=12))
def test_any_text_is_true_or_false_or_an_error(source: str) -> None:
    try:
        assert is_true(source) in (True, False)
    except (SyntaxRefused, EvaluationError) as error:
        assert str(error)
