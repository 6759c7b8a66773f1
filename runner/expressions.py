"""`depends` and `retryStrategy.expression`: two parts of expr-lang, in which a word is a name.

Anything else is refused, never guessed. `when` is another language: see govaluate.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

Scope = Mapping[str, Any]
Thunk = Callable[[Scope], Any]


class SyntaxRefused(Exception):
    """The source is not a condition, or does not run here; says what and where."""


class EvaluationError(Exception):
    """A condition whose operands do not fit its operators; Argo ends the node in Error."""


@dataclass(frozen=True)
class Expression:
    """A condition; `names` are the variables that it reads, in their order."""

    source: str
    names: tuple[str, ...]
    value: Thunk = field(repr=False)

    def is_true(self, scope: Scope) -> bool:
        value = self.value(scope)
        if not isinstance(value, bool):
            raise EvaluationError(f"{self.source!r} is {value!r}, neither true nor false")
        return value


class Token(NamedTuple):
    """`kind` is name, text, number or operator."""

    kind: str
    word: str


class Dialect(NamedTuple):
    """The differences of the two dialects: their tokens, and their operators."""

    token: re.Pattern[str]
    synonyms: Mapping[str, str]
    comparisons: frozenset[str]
    constants: tuple[str, ...] = ("true", "false")


TEXT = r"""(?P<text>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')"""
NUMBER = r"(?P<number>\d+(?:\.\d+)?)(?![\w.])"

RETRY = Dialect(
    re.compile(
        rf"\s*(?:{TEXT}|{NUMBER}|(?P<name>[A-Za-z_][\w.]*)"
        r"|(?P<operator>&&|\|\||[=!<>]=|-(?=\d)|[!<>(),\[\]]))\s*"
    ),
    {"and": "&&", "or": "||", "not": "!"},
    frozenset(
        ["==", "!=", "<", "<=", ">", ">=", "in", "contains", "startsWith", "endsWith", "matches"]
    ),
)
# Names of tasks have dashes, and nothing is subtracted from them.
# Words such as `and` and `true` are names, too.
DEPENDS = RETRY._replace(
    token=re.compile(r"\s*(?:(?P<name>[A-Za-z0-9_][\w.-]*)|(?P<operator>&&|\|\||[!()]))\s*"),
    synonyms={},
    comparisons=frozenset(),
    constants=(),
)
ALWAYS = Expression("", (), lambda _: True)
"""What a task without `depends` waits for."""


def parse(source: str, dialect: Dialect) -> Expression:
    """Read a whole source; SyntaxRefused names the word where reading stopped."""
    parser = Parser(source, dialect)
    value = parser.either()
    if parser.tokens:
        raise parser.refused()
    return Expression(source, tuple(parser.names), value)


class Parser:
    """Recursive descent: one method for each level of precedence, the loosest first."""

    def __init__(self, source: str, dialect: Dialect) -> None:
        self.source, self.dialect = source, dialect
        self.tokens: list[Token] = []
        self.names: dict[str, None] = {}
        position = 0
        while position < len(source):
            if not (match := dialect.token.match(source, position)):
                raise SyntaxRefused(
                    f"{source[position:].strip()!r} in {source!r} does not run here"
                )
            word = match[match.lastgroup or 0]
            operator = dialect.synonyms.get(word, word)
            named = match.lastgroup == "name" and operator in {
                *dialect.comparisons,
                "&&",
                "||",
                "!",
            }
            kind = "operator" if named else match.lastgroup
            self.tokens.append(Token(kind or "", operator if named else word))
            position = match.end()

    def refused(self) -> SyntaxRefused:
        where = f"at {self.tokens[0].word!r}" if self.tokens else "at its end"
        return SyntaxRefused(f"{self.source!r} is no condition that runs here, {where}")

    def accept(self, *operators: str) -> str:
        if self.tokens and self.tokens[0].kind == "operator" and self.tokens[0].word in operators:
            return self.tokens.pop(0).word
        return ""

    def expect(self, operator: str) -> None:
        if not self.accept(operator):
            raise self.refused()

    def either(self) -> Thunk:
        operands = [self.both()]
        while self.accept("||"):
            operands.append(self.both())
        return operands[0] if len(operands) == 1 else lambda s: any(boolean(o(s)) for o in operands)

    def both(self) -> Thunk:
        operands = [self.comparison()]
        while self.accept("&&"):
            operands.append(self.comparison())
        return operands[0] if len(operands) == 1 else lambda s: all(boolean(o(s)) for o in operands)

    def comparison(self) -> Thunk:
        left = self.operand()
        while operator := self.accept(*self.dialect.comparisons):
            left = self.compared(left, operator)
        return left

    def compared(self, left: Thunk, operator: str) -> Thunk:
        if operator == "in":
            self.expect("[")
            members = self.listed("]")
            return lambda s: left(s) in [member(s) for member in members]
        right, compare = self.operand(), COMPARE[operator]

        def compared(scope: Scope) -> bool:
            try:
                return compare(left(scope), right(scope))
            except (AttributeError, TypeError, re.error) as error:
                raise EvaluationError(f"{self.source!r}: {error}") from error

        return compared

    def operand(self) -> Thunk:
        if self.accept("!"):
            negated = self.operand()
            return lambda s: not boolean(negated(s))
        if self.accept("("):
            inner = self.either()
            self.expect(")")
            return inner
        sign = -1 if self.accept("-") else 1
        if not self.tokens or self.tokens[0].kind == "operator":
            raise self.refused()
        kind, word = self.tokens.pop(0)
        if kind == "number":
            number = sign * float(word)
            return lambda s: number
        if kind == "text":
            literal = re.sub(r"\\(.)", r"\1", word[1:-1])
            return lambda s: literal
        if word in self.dialect.constants:
            return lambda s: word == "true"
        if word in CALLS and self.accept("("):
            argument = self.either()
            self.expect(")")
            return lambda s: CALLS[word](argument(s))
        self.names[word] = None
        return lambda s: s[word]

    def listed(self, closing: str) -> list[Thunk]:
        members = [self.operand()]
        while self.accept(","):
            members.append(self.operand())
        self.expect(closing)
        return members


def go_pattern(source: str) -> re.Pattern[str]:
    """A regular expression of Go's, which knows neither lookarounds nor references back.

    Raises EvaluationError for what Go refuses, and for what only Go knows.
    """
    if foreign := re.search(
        r"\\(?:[1-9QEpPCxk])|\(\?(?![:imsPU-]|<[A-Za-z_])|\[\[:|\(\?P=", source
    ):
        raise EvaluationError(f"the pattern {source!r} has {foreign[0]!r}, which does not run here")
    # In Go, \d is a digit of ASCII, and $ is the very end.
    translated = re.sub(r"(\\.)|\$", lambda sign: sign[1] or r"\Z", source).replace(r"\z", r"\Z")
    try:
        return re.compile(translated, re.ASCII)
    except (re.error, OverflowError) as error:
        raise EvaluationError(f"the pattern {source!r} cannot be read: {error}") from error


def boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise EvaluationError(f"{value!r} is neither true nor false")
    return value


def ordered(compare: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    def compared(left: Any, right: Any) -> bool:
        if isinstance(left, bool) or type(left) is not type(right):
            raise TypeError(f"{left!r} and {right!r} have no order")
        return compare(left, right)

    return compared


def as_int(value: Any) -> float:
    if not re.fullmatch(r"-?\d+", str(value)):
        raise EvaluationError(f"{value!r} is not a whole number")
    return float(value)


def as_float(value: Any) -> float:
    try:
        return float(value)
    except ValueError as error:
        raise EvaluationError(f"{value!r} is not a number") from error


CALLS: Mapping[str, Callable[[Any], Any]] = {"asInt": as_int, "asFloat": as_float}

COMPARE: Mapping[str, Callable[[Any, Any], bool]] = {
    "==": lambda left, right: left == right,
    "!=": lambda left, right: left != right,
    "<": ordered(lambda left, right: left < right),
    "<=": ordered(lambda left, right: left <= right),
    ">": ordered(lambda left, right: left > right),
    ">=": ordered(lambda left, right: left >= right),
    "matches": lambda left, right: go_pattern(right).search(left) is not None,
    "contains": lambda left, right: right in left,
    "startsWith": lambda left, right: left.startswith(right),
    "endsWith": lambda left, right: left.endswith(right),
}
