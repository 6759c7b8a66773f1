"""`when`: the expression language of govaluate 3, in which Argo reads a bare word as a text.

Tokens, the order in which they may stand, precedence and types follow
https://github.com/Knetic/govaluate, oddities included: either quote ends a text, a text that is a
date is a number, and `in` wants at least two members.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from runner.expressions import EvaluationError, SyntaxRefused, go_pattern
from runner.govaluate_tokens import (
    COMPARATORS,
    LOGICAL,
    TERNARY,
    VALUES,
    Token,
    check_order,
    go_text,
    tokenized,
)

LEVELS: list[set[str]] = [
    {","},
    TERNARY,
    {"||"},
    {"&&"},
    COMPARATORS,
    {"^", "&", "|"},
    {">>", "<<"},
    {"+", "-"},
    {"*", "/", "%"},
    {"**"},
]
"""Operators by precedence, the loosest first; those of a level associate to the left."""


def is_true(source: str) -> bool:
    """Whether a condition is true; raises SyntaxRefused or EvaluationError as Argo would fail."""
    result = evaluate(source)
    if not isinstance(result, bool):
        raise EvaluationError(f"Expected boolean evaluation for '{source}'. Got {go_text(result)}")
    return result


def check_syntax(source: str) -> None:
    """Raise SyntaxRefused for a text that is not a condition."""
    planned(source)


def evaluate(source: str) -> Any:
    stage = planned(source)
    try:
        return None if stage is None else stage()
    except EvaluationError as error:
        # The misspelt word is Argo's.
        raise EvaluationError(f"Failed to evaluate 'when' expresion '{source}': {error}") from error


Stage = Callable[[], Any]


def planned(source: str) -> Stage | None:
    try:
        tokens = tokenized(source)
        check_order(tokens)
        return Planner(tokens).separated()
    except SyntaxRefused as error:
        hint = ' (hint: try wrapping the affected expression in quotes ("))'
        hint = hint if str(error).startswith("Invalid token") else ""
        raise SyntaxRefused(f"Invalid 'when' expression '{source}': {error}{hint}") from error
    except RecursionError as error:
        raise SyntaxRefused(f"'when' expression '{source[:60]}…' nests too deep") from error


class Planner:
    """Plans stages from tokens: `level` for a level of precedence, `operand` for what it joins."""

    def __init__(self, tokens: list[Token]) -> None:
        self.tokens, self.position = tokens, 0

    def separated(self) -> Stage | None:
        return self.level(0)

    @property
    def next(self) -> Token | None:
        return self.tokens[self.position] if self.position < len(self.tokens) else None

    def level(self, number: int) -> Stage | None:
        if number == len(LEVELS):
            return self.operand()
        left = self.level(number + 1)
        while self.next and self.next.kind != "STRING" and self.next.kind != "VARIABLE":
            symbol = self.next.value
            if not isinstance(symbol, str) or symbol not in LEVELS[number]:
                break
            if self.next.kind in ("PREFIX", "CLAUSE", "CLAUSE_CLOSE"):
                break
            self.position += 1
            left = combined(symbol, left, self.level(number + 1))
        return left

    def operand(self) -> Stage | None:
        token = self.next
        if token is None or token.kind == "CLAUSE_CLOSE":
            return None
        self.position += 1
        if token.kind == "CLAUSE":
            inner = self.separated()
            self.position += 1
            return (lambda: None) if inner is None else inner
        if token.kind == "PREFIX":
            return prefixed(token.value, self.operand())
        if token.kind in VALUES:
            return lambda: token.value
        raise SyntaxRefused(f"Unable to plan token kind: '{token.kind}', value: '{token.value}'")


def prefixed(symbol: str, operand: Stage | None) -> Stage:
    def stage() -> Any:
        value: Any = None if operand is None else operand()
        if symbol == "!" and isinstance(value, bool):
            return not value
        if symbol == "-" and is_number(value):
            return -value
        if symbol == "~" and is_number(value):
            return float(~int(value))
        raise EvaluationError(f"Value '{go_text(value)}' cannot be used with the prefix '{symbol}'")

    return stage


def combined(symbol: str, left: Stage | None, right: Stage | None) -> Stage:
    def stage() -> Any:
        first = None if left is None else left()
        if (symbol, first) in (("&&", False), ("||", True)) and isinstance(first, bool):
            return first
        if symbol in (":", "??") and first is not None:
            return first
        if symbol == "?":
            if not isinstance(first, bool):
                raise not_usable(first, "ternary operator", symbol, "bool")
            return right() if first and right is not None else None
        return applied(symbol, first, None if right is None else right())

    return stage


def applied(symbol: str, left: Any, right: Any) -> Any:
    if symbol == ",":
        return [*left, right] if isinstance(left, list) else [left, right]
    if symbol in (":", "??"):
        return right
    if symbol in LOGICAL:
        for side in (left, right):
            if not isinstance(side, bool):
                raise not_usable(side, "logical operator", symbol, "bool")
        return right
    if symbol in ("==", "!="):
        return (type(left) is type(right) and left == right) == (symbol == "==")
    if symbol in COMPARATORS:
        return compared(symbol, left, right)
    return computed(symbol, left, right)


def compared(symbol: str, left: Any, right: Any) -> bool:
    if symbol == "in":
        if not isinstance(right, list):
            raise not_usable(right, "comparator", symbol, "number")
        return any(type(left) is type(member) and left == member for member in right)
    if symbol in ("=~", "!~"):
        for side in (left, right):
            if not isinstance(side, str):
                raise not_usable(side, "comparator", symbol, "number")
        return (go_pattern(right).search(left) is not None) == (symbol == "=~")
    alike = is_number(left) and is_number(right)
    if not alike and not (isinstance(left, str) and isinstance(right, str)):
        raise not_usable(left, "comparator", symbol, "number")
    if not alike:
        left, right = left.encode(), right.encode()
    return bool(ORDERS[symbol](left, right))


ORDERS: dict[str, Callable[[Any, Any], bool]] = {
    ">": lambda left, right: left > right,
    ">=": lambda left, right: left >= right,
    "<": lambda left, right: left < right,
    "<=": lambda left, right: left <= right,
}


def computed(symbol: str, left: Any, right: Any) -> Any:
    if symbol == "+" and (isinstance(left, str) or isinstance(right, str)):
        return go_text(left) + go_text(right)
    for side in (left, right):
        if not is_number(side):
            raise not_usable(side, "modifier", symbol, "number")
    try:
        return float(ARITHMETIC[symbol](left, right))
    except ZeroDivisionError:
        return math.nan if symbol == "%" or not left else math.copysign(math.inf, left)
    except (OverflowError, ValueError) as error:
        raise EvaluationError(f"{go_text(left)} {symbol} {go_text(right)}: {error}") from error


ARITHMETIC: dict[str, Callable[[float, float], float]] = {
    "+": lambda left, right: left + right,
    "-": lambda left, right: left - right,
    "*": lambda left, right: left * right,
    "/": lambda left, right: left / right,
    "%": math.fmod,
    "**": math.pow,
    "&": lambda left, right: int(left) & int(right),
    "|": lambda left, right: int(left) | int(right),
    "^": lambda left, right: int(left) ^ int(right),
    ">>": lambda left, right: int(left) >> int(right),
    "<<": lambda left, right: int(left) << int(right),
}


def is_number(value: Any) -> bool:
    return isinstance(value, float)


def not_usable(value: Any, role: str, symbol: str, expected: str) -> EvaluationError:
    return EvaluationError(
        f"Value '{go_text(value)}' cannot be used with the {role} '{symbol}', "
        f"it is not a {expected}"
    )
