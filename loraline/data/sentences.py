"""Messages about refused data: one sentence each, of at most MOST_CHARACTERS."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from loraline.errors import UserError

MOST_CHARACTERS = 300
"""Characters of a sentence."""

PATH = 90
"""Characters of a path from which its beginning is left out."""


@contextmanager
def brief() -> Iterator[None]:
    """Shorten a UserError that the block raises to MOST_CHARACTERS."""
    try:
        yield
    except UserError as error:
        if len(str(error)) <= MOST_CHARACTERS:
            raise
        raise UserError(shortened(str(error), MOST_CHARACTERS)) from error


def refusal(place: str, clause: str, check: str, report: str = "") -> str:
    """The sentence for a refused row: place, clause, check, remedy. A long clause is shortened."""
    where = short_path(place)
    looked = f"all is in {short_path(report)}" if report else "--check-only reports all of them"
    # A clause that says what to do needs no way to do without the rows.
    drop = "" if "; " in clause else f", --on {check}=drop leaves them out"
    hint = f"(check {check}; {looked}{drop})"
    joint = " " if check == "unreadable" else ": "
    by_make = f", with make SET=prepare.checks.{check}=drop)"
    if drop and len(f"{where}{joint}{clause} {hint}{by_make}") <= MOST_CHARACTERS:
        hint = hint.removesuffix(")") + by_make
    room = MOST_CHARACTERS - len(where) - len(hint) - len(joint) - 1
    return f"{where}{joint}{shortened(clause, room)} {hint}"


def shortened(text: str, most: int) -> str:
    """A text of at most `most` characters in one line.

    Where a remedy follows a semicolon, the middle is left out, otherwise the end.
    """
    text = " ".join(text.split())
    if len(text) <= most:
        return text
    if "; " not in text:
        return f"{text[: most - 4]} ..."
    end = (most - 5) * 2 // 3
    return f"{text[: most - 5 - end]} ... {text[-end:]}"


def short_path(text: str) -> str:
    """A path, with its end alone where it is long."""
    return text if len(text) <= PATH else f"...{text[-(PATH - 3) :]}"
