"""JSON as models write it: read in one pass, with a note of what was mended and what is unfinished.

Repair libraries are not enough for answers with coordinates: a number that
the token limit cut becomes a valid wrong one, a second block replaces the first, and an object with
repeated keys loses all but the last. So the tree keeps pairs, and says which nodes were closed.
Time is linear in the text, and nesting is bounded: there is no recursion over what a model wrote.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

DEEPEST = 64
"""Levels of nesting that are read; no answer in the known forms has more than six."""

WINDOW, NEAR = 4096, 16
"""Characters of a block that are tried first, and how far from their end an error may come from
their being cut: a word or an escape is shorter."""

LONGEST_INTEGER = 18
LONGEST_NUMBER = 64
"""Characters of a number."""

START = re.compile(r"[\[{]")
FILLER = re.compile(r"[\s,;:]*")
COLON = re.compile(r"\s{0,64}:")
NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
WORD = re.compile(r"[^\W\d][\w.-]*")
HEX = re.compile(r"[0-9a-fA-F]{4}")
PIECE = {
    '"': re.compile(r"[^\\\"]+|\\.|\"", re.DOTALL),
    "'": re.compile(r"[^\\']+|\\.|'", re.DOTALL),
}
CLOSES_STRING = re.compile(
    r"""\s{0,64}(?:\Z|[\]}):]|,\s{0,64}(?:\Z|["'\[{\]}\d-]|true|false|null|True|False|None|[A-Za-z_]\w{0,64}:)"""
    r"""|["'][\w -]{1,64}["']\s{0,8}:)"""
)
"""What follows a quote that ends a string, and is not part of it."""

ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"}
CONSTANTS = {"true": True, "false": False, "null": None, "True": True, "False": False, "None": None}


class Object(list[tuple[str, Any]]):
    """Pairs of an object in their order, repeated keys and all."""

    whole = True
    """Whether it was closed; what the end of the text cut is not."""


class List(list[Any]):
    """Entries of a list."""

    whole = True


class Unsure(str):
    """A string whose end had to be guessed, since quotes stand in it."""


@dataclass
class Block:
    """One JSON value in a text."""

    value: Object | List
    start: int
    end: int
    mended: bool = False
    """Whether it was not valid JSON."""


@dataclass
class Open:
    """A node that is being read."""

    node: Object | List
    key: str | None = None
    loose: List = field(default_factory=List)
    """Values of an object that came without a key, as after a doubled brace."""


def blocks(text: str) -> Iterator[Block]:
    """All JSON objects and lists in a text, outermost ones only, in their order."""
    position = 0
    while match := START.search(text, position):
        block = strict(text, match.start()) or Reader(text, match.start()).block()
        yield block
        position = block.end


def strict(text: str, start: int) -> Block | None:
    """The value at `start` where it is valid JSON, which is ten times as fast.

    Its beginning is tried first: an error of Python's decoder counts the lines before it, so that a
    text with many blocks would take time by the square of its length.
    """
    for piece in (text[start : start + WINDOW], text[start:]):
        try:
            value, length = STRICT.raw_decode(piece)
        except json.JSONDecodeError as error:
            of_the_cut = error.pos > WINDOW - NEAR or error.msg.startswith("Unterminated string")
            if of_the_cut and len(piece) == WINDOW:
                continue
            return None
        except (ValueError, RecursionError):
            return None
        typed = with_lists(value)
        return None if typed is None else Block(typed, start, start + length)
    return None


def with_lists(value: Any) -> Object | List | None:
    """The tree with List for list, for which JSON's decoder has no hook; None if it is too deep."""
    top = List([value])
    level: list[Object | List] = [top]
    for _ in range(DEEPEST + 1):
        below: list[Object | List] = []
        for node in level:
            for index, entry in enumerate(node):
                pair = isinstance(node, Object)
                child = entry[1] if pair else entry
                if isinstance(child, list):
                    if not isinstance(child, Object):
                        child = List(child)
                        replacement: Any = (entry[0], child) if pair else child
                        node[index] = replacement
                    below.append(child)
        if not below:
            root: Object | List = top[0]
            return root
        level = below
    return None


def number(text: str) -> float | int | None:
    """A number that JSON can write; None if it is infinite."""
    return whole_number(text) if text.lstrip("+-").isdigit() else real_number(text)


def whole_number(text: str) -> float | int | None:
    """A whole number; one of more than 64 bits is read as a float, as most readers do."""
    return int(text) if len(text) <= LONGEST_INTEGER else real_number(text)


def real_number(text: str) -> float | None:
    value = float(text) if len(text) <= LONGEST_NUMBER else math.inf
    return value if math.isfinite(value) else None


STRICT = json.JSONDecoder(
    object_pairs_hook=Object,
    parse_int=whole_number,
    parse_float=real_number,
    parse_constant=lambda _: None,
    strict=False,
)


def plain(node: Any) -> Any:
    """A tree as Python's own dicts and lists, without entries of lists that the end cut.

    Of repeated keys the last one counts, as JSON readers have it.
    """
    if isinstance(node, Object):
        return {well_formed(key): plain(value) for key, value in node}
    if isinstance(node, list):
        return [plain(entry) for entry in node if getattr(entry, "whole", True)]
    return well_formed(node) if isinstance(node, str) else node


def well_formed(text: str) -> str:
    """Text that can be written as UTF-8: halves of surrogate pairs are joined or replaced."""
    if text.isascii():
        return str(text)
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


class Reader:
    """Reads one block that is not valid JSON."""

    def __init__(self, text: str, start: int) -> None:
        self.text = text
        self.start = self.position = start
        self.stack: list[Open] = []
        self.result: Object | List = List()

    def block(self) -> Block:
        """The block at the start; what is unclosed at the end of the text is not whole."""
        while not self.at_end:
            if self.step(self.text[self.position]):
                return Block(self.result, self.start, self.position, mended=True)
        while self.stack:
            self.close(whole=False)
        return Block(self.result, self.start, len(self.text), mended=True)

    @property
    def at_end(self) -> bool:
        return self.position >= len(self.text)

    def move(self, pattern: re.Pattern[str]) -> str | None:
        """Skip what matches here."""
        match = pattern.match(self.text, self.position)
        if match is None:
            return None
        self.position = match.end()
        return match.group()

    def step(self, character: str) -> bool:
        """Read what begins with this character; True when the block is complete."""
        if character in "[{(":
            self.position += 1
            if len(self.stack) == DEEPEST:
                # No answer nests this deep, and the rest cannot be parsed.
                self.position = len(self.text)
                return False
            self.stack.append(Open(Object() if character == "{" else List()))
        elif character in "]})":
            self.position += 1
            return self.close_through(Object if character == "}" else List)
        elif character in PIECE:
            self.read_string(character)
        elif digits := self.move(NUMBER):
            # A number at the very end may be cut: half of it would be wrong.
            if not self.at_end:
                self.put(number(digits))
        elif word := self.move(WORD):
            if self.wants_key() and COLON.match(self.text, self.position):
                self.stack[-1].key = word
            elif not self.at_end:
                self.put(CONSTANTS.get(word, word))
        elif not self.move(FILLER):
            self.position += 1
        return False

    def close_through(self, shape: type[Object] | type[List]) -> bool:
        """Close the innermost node of this shape and the unclosed ones within it."""
        if not any(isinstance(level.node, shape) for level in self.stack):
            return False
        closed = False
        while not closed:
            closed = isinstance(self.stack[-1].node, shape)
            self.close(whole=True)
        return not self.stack

    def close(self, *, whole: bool) -> None:
        """Take the innermost node off the stack and give it to the one around it."""
        opened = self.stack.pop()
        # `{ {…}` is an object with one brace too many.
        node = opened.loose if opened.loose and not opened.node else opened.node
        node.whole = whole
        if self.stack:
            self.put(node)
        else:
            self.result = node

    def put(self, value: Any) -> None:
        """Give a value to the innermost node."""
        opened = self.stack[-1]
        if not isinstance(opened.node, Object):
            opened.node.append(value)
        elif opened.key is None:
            opened.loose.append(value)
        else:
            opened.node.append((opened.key, value))
            opened.key = None

    def wants_key(self) -> bool:
        opened = self.stack[-1]
        return isinstance(opened.node, Object) and opened.key is None

    def read_string(self, quote: str) -> None:
        """Read a key or a string; a string without an end was cut and is left out."""
        pieces: list[str] = []
        guessed = False
        self.position += 1
        while piece := self.move(PIECE[quote]):
            if piece != quote:
                pieces.append(self.unescaped(piece))
            elif not CLOSES_STRING.match(self.text, self.position):
                pieces.append(piece)
                guessed = True
            else:
                text = "".join(pieces)
                if self.wants_key() and COLON.match(self.text, self.position):
                    self.stack[-1].key = text
                else:
                    self.put(Unsure(text) if guessed else text)
                return
        self.position = len(self.text)

    def unescaped(self, piece: str) -> str:
        """A piece of a string without its backslash, where that begins an escape."""
        if piece[0] != "\\":
            return piece
        if piece[1] == "u" and (digits := self.move(HEX)):
            return chr(int(digits, 16))
        return ESCAPES.get(piece[1], piece[1] if piece[1] in "\"'\\/\n" else piece)
