"""The tokens of govaluate's language, and the order in which they may stand."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from runner.expressions import SyntaxRefused
from runner.values import plain_number

PREFIXES = {"-", "!", "~"}
MODIFIERS = {"+", "-", "*", "/", "%", "**", "&", "|", "^", ">>", "<<"}
LOGICAL = {"&&", "||"}
COMPARATORS = {"==", "!=", ">", ">=", "<", "<=", "=~", "!~", "in"}
TERNARY = {"?", ":", "??"}
VALUES = {"NUMERIC", "BOOLEAN", "VARIABLE", "STRING", "TIME", "CLAUSE"}
AFTER_VALUE = {"MODIFIER", "COMPARATOR", "LOGICALOP", "CLAUSE_CLOSE", "TERNARY", "SEPARATOR"}
MAY_FOLLOW: dict[str, set[str]] = {
    "UNKNOWN": VALUES | {"PREFIX"},
    "CLAUSE": VALUES | {"PREFIX", "CLAUSE_CLOSE"},
    "CLAUSE_CLOSE": AFTER_VALUE | VALUES,
    "NUMERIC": AFTER_VALUE,
    "BOOLEAN": AFTER_VALUE,
    "STRING": AFTER_VALUE,
    "TIME": AFTER_VALUE - {"TERNARY"},
    "VARIABLE": AFTER_VALUE,
    "MODIFIER": (VALUES - {"TIME"}) | {"PREFIX", "CLAUSE_CLOSE"},
    "COMPARATOR": VALUES | {"PREFIX", "CLAUSE_CLOSE"},
    "LOGICALOP": VALUES | {"PREFIX", "CLAUSE_CLOSE"},
    "PREFIX": {"NUMERIC", "BOOLEAN", "VARIABLE", "CLAUSE", "CLAUSE_CLOSE"},
    "TERNARY": VALUES | {"PREFIX", "SEPARATOR"},
    "SEPARATOR": VALUES | {"PREFIX"},
}
"""Kinds of token that may follow each kind; UNKNOWN is the beginning."""

MAY_END = {"CLAUSE_CLOSE", "NUMERIC", "BOOLEAN", "STRING", "TIME", "VARIABLE"}

DATES = (
    "%a %b %d %H:%M:%S %Y",
    "%I:%M%p",
    "%Y-%m-%d",
    "%Y-%m-%d %H:%M",
    "%Y-%m-%d %H:%M:%S",
    "%Y-%m-%d %H:%M:%S%z",
    "%Y-%m-%dT%H%z",
    "%Y-%m-%dT%H:%M%z",
    "%Y-%m-%dT%H:%M:%S%z",
    "%Y-%m-%dT%H:%M:%S.%f%z",
)
"""The date formats that govaluate knows, except two with the zone's name."""


@dataclass(frozen=True)
class Token:
    kind: str
    value: Any


def tokenized(source: str) -> list[Token]:
    tokens: list[Token] = []
    position = 0
    while (position := skip_blanks(source, position)) < len(source):
        before = tokens[-1].kind if tokens else "UNKNOWN"
        token, position = next_token(source, position, before)
        tokens.append(token)
    kinds = [token.kind for token in tokens]
    if kinds.count("CLAUSE") != kinds.count("CLAUSE_CLOSE"):
        raise SyntaxRefused("Unbalanced parenthesis")
    return tokens


def skip_blanks(source: str, position: int) -> int:
    while position < len(source) and source[position].isspace():
        position += 1
    return position


def next_token(source: str, position: int, before: str) -> tuple[Token, int]:
    sign = source[position]
    if sign.isdigit() or sign == ".":
        return number(source, position)
    if sign in ",()":
        kind = {",": "SEPARATOR", "(": "CLAUSE", ")": "CLAUSE_CLOSE"}[sign]
        return Token(kind, sign), position + 1
    if sign == "[":
        text, end = until(source, position + 1, "]", "Unclosed parameter bracket")
        return Token("VARIABLE", text), end
    if sign.isalpha():
        return word(source, position)
    if sign in "'\"":
        text, end = until(source, position + 1, "'\"", "Unclosed string literal")
        moment = date(text)
        return Token("STRING", text) if moment is None else Token("TIME", moment), end
    return operator(source, position, before)


def number(source: str, position: int) -> tuple[Token, int]:
    if source.startswith("0x", position) and position + 2 < len(source):
        digits, end = run_of(source, position + 2, lambda s: s.isdigit() or s.lower() in "abcdef")
        try:
            return Token("NUMERIC", float(int(digits, 16))), end
        except ValueError as error:
            raise SyntaxRefused(f"Unable to parse hex value '{digits}' to uint64") from error
    digits, end = run_of(source, position, lambda s: s.isdigit() or s == ".")
    try:
        return Token("NUMERIC", float(digits)), end
    except ValueError as error:
        raise SyntaxRefused(f"Unable to parse numeric value '{digits}' to float64") from error


def word(source: str, position: int) -> tuple[Token, int]:
    text, end = run_of(source, position, lambda s: s.isalnum() or s in "_.")
    if text in ("true", "false"):
        return Token("BOOLEAN", text == "true"), end
    if text in ("in", "IN"):
        return Token("COMPARATOR", "in"), end
    if "." in text:
        if text.endswith("."):
            raise SyntaxRefused(f"Hanging accessor on token '{text}'")
        for field in text.split(".")[1:]:
            if field[:1].upper() != field[:1]:
                raise SyntaxRefused(
                    f"Unable to access unexported field '{field}' in token '{text}'"
                )
        raise SyntaxRefused(f"'{text}' accesses a field, and there is nothing that has one")
    return Token("VARIABLE", text), end


def operator(source: str, position: int, before: str) -> tuple[Token, int]:
    text, end = run_of(source, position, lambda s: not (s.isalnum() or s in "()[]'\""))
    if text in PREFIXES and "PREFIX" in MAY_FOLLOW[before]:
        return Token("PREFIX", text), end
    kinds = {"MODIFIER": MODIFIERS, "LOGICALOP": LOGICAL, "COMPARATOR": COMPARATORS,
             "TERNARY": TERNARY}  # fmt: skip
    for kind, symbols in kinds.items():
        if text in symbols:
            return Token(kind, text), end
    raise SyntaxRefused(f"Invalid token: '{text}'")


def run_of(source: str, start: int, belongs: Callable[[str], bool]) -> tuple[str, int]:
    """The characters from `start` on that belong together; a backslash escapes any character."""
    text, position = "", start
    while position < len(source):
        sign = source[position]
        if sign == "\\" and position + 1 < len(source):
            text, position = text + source[position + 1], position + 2
        elif not sign.isspace() and belongs(sign):
            text, position = text + sign, position + 1
        elif sign.isspace() and not text:
            position += 1
        else:
            break
    return text, position


def until(source: str, start: int, closing: str, unclosed: str) -> tuple[str, int]:
    text, position = "", start
    while position < len(source):
        sign = source[position]
        if sign == "\\":
            text, position = text + source[position + 1 : position + 2], position + 2
        elif sign in closing:
            return text, position + 1
        else:
            text, position = text + sign, position + 1
    raise SyntaxRefused(unclosed)


def date(text: str) -> float | None:
    """The seconds of a text that is a date: to govaluate it is a number."""
    if not re.match(r"[A-Z][a-z]{2} |\d", text):
        return None
    for form in DATES:
        # Python's %z takes more spellings than Go's layouts do.
        if "%z" in form and not re.search(r"(Z|[+-]\d\d:?\d\d)$", text):
            continue
        try:
            moment = datetime.strptime(text, form)
        except ValueError:
            continue
        if moment.year == 1900:
            moment = moment.replace(year=1)
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return float((moment - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds() // 1)
    return None


def check_order(tokens: list[Token]) -> None:
    """Refuse tokens in an order that govaluate does not allow."""
    before = Token("UNKNOWN", None)
    for token in tokens:
        if token.kind not in MAY_FOLLOW[before.kind]:
            if before.kind == "VARIABLE" and token.kind == "CLAUSE":
                raise SyntaxRefused(f"Undefined function {before.value}")
            first = f"{before.kind} [{go_text(before.value)}]"
            raise SyntaxRefused(
                f"Cannot transition token types from {first} "
                f"to {token.kind} [{go_text(token.value)}]"
            )
        before = token
    if tokens and before.kind not in MAY_END:
        raise SyntaxRefused("Unexpected end of expression")


def go_text(value: Any) -> str:
    """A value as Go's `%v` prints it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return plain_number(value) if 1e-4 <= abs(value) < 1e21 or not value else f"{value:g}"
    if isinstance(value, list):
        return f"[{' '.join(map(go_text, value))}]"
    return "<nil>" if value is None else str(value)
