"""Values as Go spells them: numbers, JSON, and the texts of a fan-out's items.

Argo keeps parameters as texts and items as JSON. Which text a value becomes is decided by Go's
`strconv` and `encoding/json`, and it shows: 1e-4 in a file arrives as 0.0001, in a list of
`withParam` as 1e-4.
"""

from __future__ import annotations

import codecs
import json
import math
import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any

LARGEST_INTEGER, SMALLEST_INTEGER = 2**63 - 1, -(2**63)


class NoJson(ValueError):
    """The text is not JSON to Go."""


def replace_each_byte(error: UnicodeError) -> tuple[str, int]:
    """Decodes invalid UTF-8 as Go does: one U+FFFD for each byte."""
    assert isinstance(error, UnicodeDecodeError)
    return "\ufffd" * (error.end - error.start), error.end


codecs.register_error("go", replace_each_byte)


def decoded(content: bytes) -> str:
    """A file's bytes as Go reads them into a text."""
    return content.decode("utf-8", "go")


def plain_number(number: float) -> str:
    """A number without an exponent, as `strconv.FormatFloat(n, 'f', -1, 64)` writes it."""
    if not math.isfinite(number):
        return {"inf": "+Inf", "-inf": "-Inf"}.get(repr(number), "NaN")
    digits = format(Decimal(repr(number)), "f")
    return digits.rstrip("0").removesuffix(".") if "." in digits else digits


def json_number(number: float) -> str:
    """A number as `encoding/json` writes it: with an exponent below 1e-6 and from 1e21 on."""
    if number and not 1e-6 <= abs(number) < 1e21:
        mantissa, _, exponent = repr(number).partition("e")
        if not exponent:  # repr starts its exponents elsewhere
            mantissa, _, exponent = f"{Decimal(repr(number)):e}".lower().partition("e")
        mantissa = mantissa.removesuffix(".0")
        power = int(exponent)
        return f"{mantissa}e{'-' if power < 0 else '+'}{abs(power):0{1 if power < 0 else 2}d}"
    return "-0" if str(number) == "-0.0" else plain_number(number)


def parameter_text(value: Any) -> str:
    """The text that a parameter of the file has: numbers go through float64, lists are empty."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return plain_number(float(value))
    return ""


def loads(source: str) -> Any:
    """A JSON text as Go reads it into `interface{}`: every number is a float64; raises NoJson."""

    def number(digits: str) -> float:
        if math.isinf(value := float(digits)):
            raise NoJson(f"number {digits} is out of range")
        return value

    return parsed(source, number)


def parsed(source: str, number: Callable[[str], Any]) -> Any:
    """A JSON text, its numbers read by `number`; raises NoJson."""

    def constant(word: str) -> float:
        raise NoJson(f"{word} is no JSON")

    try:
        return json.loads(source, parse_float=number, parse_int=number, parse_constant=constant)
    except (json.JSONDecodeError, RecursionError) as error:
        raise NoJson(str(error)) from error


def dumps(value: Any) -> str:
    """JSON as Go marshals it: keys sorted, no blanks, and safe to stand in HTML."""
    if isinstance(value, dict):
        members = (f"{dumps(key)}:{dumps(value[key])}" for key in sorted(value))
        return "{" + ",".join(members) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(dumps, value)) + "]"
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, int) and SMALLEST_INTEGER <= value <= LARGEST_INTEGER:
        return str(value)
    if isinstance(value, int | float):
        return json_number(float(value))
    # Lone surrogates, which JSON's escapes can spell, are no Unicode to Go.
    sound = re.sub("[\ud800-\udfff]", "\ufffd", str(value))
    return html_safe(json.dumps(sound, ensure_ascii=False).replace("\x7f", "\x7f"))


def without_signed_zeros(value: Any) -> Any:
    """A list's item as the API server keeps it: -0.0 becomes 0; a parameter is already a text."""
    if isinstance(value, dict):
        return {key: without_signed_zeros(member) for key, member in value.items()}
    if isinstance(value, list):
        return [without_signed_zeros(member) for member in value]
    return 0 if isinstance(value, float) and value == 0 else value


def html_safe(source: str) -> str:
    return re.sub("[<>&\u2028\u2029]", lambda sign: f"\\u{ord(sign[0]):04x}", source)


def without_html_escapes(source: str) -> str:
    """Undo what `html_safe` did to the three signs, as Argo does for the texts of items."""
    for sign in "<>&":
        source = source.replace(f"\\u{ord(sign):04x}", sign)
    return source


TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[^"\s]+|\s+', re.DOTALL)


def compact(raw: str) -> str:
    """A JSON text without its blanks; everything else keeps its spelling."""
    return html_safe("".join(part for part in TOKEN.findall(raw) if not part.isspace()))


class Item:
    """An item of a fan-out: a piece of JSON that keeps its spelling."""

    def __init__(self, raw: str) -> None:
        self.raw = compact(raw)

    @property
    def text(self) -> str:
        """The item as text: what is between the quotes of a JSON string, with escapes."""
        source = self.raw[1:-1] if self.raw.startswith('"') else self.raw
        return without_html_escapes(source)

    @property
    def members(self) -> dict[str, Item] | None:
        """The members of a mapping; None if the item is no mapping."""
        return {key: Item(raw) for key, raw in members(self.raw)} if self.raw[0] == "{" else None

    def references(self) -> dict[str, str]:
        """The values of `{{item}}` and, for a mapping, of `{{item.<key>}}`."""
        if (members := self.members) is None:
            # A list goes through the marshaller, which leaves its signs safe for HTML.
            return {"item": self.raw if self.raw[0] in "[n" else self.text}
        listed = ",".join(f"{dumps(key)}:{members[key].raw}" for key in sorted(members))
        return {
            "item": "{" + listed + "}",
            **{f"item.{key}": item.text for key, item in members.items()},
        }

    def label(self) -> str:
        """The part of the item's node name after its index."""
        if (members := self.members) is not None:
            text = ",".join(sorted(f"{key}:{item.text}" for key, item in members.items()))
        elif self.raw == "null":
            text = "[]"
        elif self.raw[0] == "[":
            text = "[" + " ".join(item.text for item in elements(self.raw)) + "]"
        else:
            text = self.text
        return re.sub("[()]", "", text)


def elements(raw: str) -> list[Item]:
    """The elements of a JSON list, each as it is spelled, numbers of any size; raises NoJson."""
    if raw.strip() == "null":
        return []
    if not isinstance(parsed(raw, str), list):
        raise NoJson("it is no list")
    return [Item(part) for part in split(raw)]


def members(raw: str) -> list[tuple[str, str]]:
    pairs = []
    for part in split(raw):
        key = re.match(r'\s*("(?:[^"\\]|\\.)*")\s*:', part, re.DOTALL)
        assert key is not None, raw
        pairs.append((json.loads(key[1]), part[key.end() :]))
    return pairs


def split(raw: str) -> list[str]:
    """The parts of a JSON list or mapping, between its outermost commas."""
    parts, depth, start = [], 0, 0
    inside = raw.strip()[1:-1]
    for token in re.finditer(r'"(?:[^"\\]|\\.)*"|[\[\]{},]', inside, re.DOTALL):
        if token[0] in "[{":
            depth += 1
        elif token[0] in "]}":
            depth -= 1
        elif token[0] == "," and not depth:
            parts.append(inside[start : token.start()])
            start = token.end()
    return [*parts, inside[start:]] if inside.strip() else []


def gathered(texts: list[str]) -> str:
    """A fan-in: a JSON list of lists and mappings if every text is one, else of texts."""
    try:
        values = [loads(text) for text in texts]
    except NoJson:
        values = []
    if len(values) < len(texts) or not all(isinstance(value, list | dict) for value in values):
        return dumps(texts)
    return dumps(values)


SHORT_ESCAPES = {"\a": r"\a", "\b": r"\b", "\f": r"\f", "\n": r"\n", "\r": r"\r", "\t": r"\t",
                 "\v": r"\v", '"': r"\"", "\\": r"\\"}  # fmt: skip


def quoted(text: str) -> str:
    """A text as `strconv.Quote` writes it."""

    def escaped(sign: str) -> str:
        if sign in SHORT_ESCAPES:
            return SHORT_ESCAPES[sign]
        if sign.isprintable():
            return sign
        if ord(sign) < 0x80:
            return f"\\x{ord(sign):02x}"
        return f"\\u{ord(sign):04x}" if ord(sign) < 0x10000 else f"\\U{ord(sign):08x}"

    return '"' + "".join(map(escaped, text)) + '"'


def survives_quoting(text: str) -> bool:
    """Whether JSON can read what `strconv.Quote` makes of a text.

    Argo fills values into its templates' JSON in that spelling. Escapes that JSON does not have
    (of the bell, of colour codes, of tag characters) make it give the node up.
    """
    return not re.search(r"(?<!\\)(?:\\\\)*\\[avxU]", quoted(text))
