"""Chat templates of bases: which template is used, and what is replaced in it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from loraline.errors import UserError

TODAY = re.compile(r"strftime_now\(\s*(?P<quote>['\"])(?P<format>[^'\"]*)(?P=quote)\s*\)")

PINNED = (2024, 7, 26)
"""The fixed day that replaces today's date: the default of Llama 3.2's template."""

REASONING = re.compile(r"<(?P<tag>\w+)>\s*</(?P=tag)>")
"""An empty reasoning, as Qwen3's template writes it before the last answer."""


def default(template: Any) -> str | None:
    """The template of a base's tokenizer; of several with names, `default`, as vLLM takes it.

    Raises UserError where there are several and none of that name.
    """
    if not isinstance(template, dict):
        return template or None
    if "default" not in template:
        raise UserError(
            f"the base has chat templates named {', '.join(map(repr, template))} and none named "
            "'default': keep one of them alone, as chat_template.jinja in a folder of its own"
        )
    return str(template["default"])


def pinned(template: str) -> str:
    """The template with a fixed day where it prints today's.

    Otherwise every day trains, measures and serves other prompts. Raises UserError where the date
    is printed in a way that cannot be replaced.
    """
    from datetime import date

    def day(match: re.Match[str]) -> str:
        quote = match["quote"]
        return f"{quote}{date(*PINNED).strftime(match['format'])}{quote}"

    replaced = TODAY.sub(day, template)
    # A template may test whether this function exists before it calls it.
    unpinned = re.sub(r"strftime_now\s+is\s+(not\s+)?defined", "", replaced)
    if "strftime_now" in unpinned:
        raise UserError(
            "the base's chat template prints today's date (strftime_now), so a served model would "
            "see other prompts than it was trained on: write a fixed date into it"
        )
    return replaced


@contextmanager
def refusals(roles: Sequence[str]) -> Iterator[None]:
    """Turn a template's exception about a conversation into a UserError."""
    from jinja2.exceptions import TemplateError

    try:
        yield
    # A template is a program of somebody else's, and computes.
    except (TemplateError, ArithmeticError, LookupError, TypeError, RecursionError) as error:
        raise UserError(
            f"the base's chat template refuses a conversation of the turns {', '.join(roles)}: "
            f"{error}"
        ) from error


def without_preamble(text: str, preamble: str) -> str:
    """An answer without what the template puts before it; a reasoning may have been filled in."""
    if not preamble:
        return text
    if (reasoning := REASONING.fullmatch(preamble)) and text.startswith(f"<{reasoning['tag']}>"):
        before, end, after = text.partition(f"</{reasoning['tag']}>")
        return after.strip() if end else before
    return text.removeprefix(preamble).strip()
