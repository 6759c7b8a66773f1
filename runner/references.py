"""References in texts: their values, and how they are filled in."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from runner.language import REFERENCE, Refused
from runner.shapes import brief
from runner.values import quoted, survives_quoting

NEVER_ENDS = "on Argo the workflow would wait for it for ever"

OF_A_WORKFLOW = re.compile(r"=|(?:item|steps|inputs|outputs|pod|workflow|tasks)\.")
"""Prefixes of references that Argo looks for at submit, in the values of parameters as well."""

OF_A_RUN = re.compile(
    r"=|(?:steps|inputs|outputs|pod|tasks|node|lastRetry)\.|retries$"
    r"|workflow\.(?!parameters\.|outputs\.parameters\.)"
)
"""Prefixes of references that Argo knows in any place."""


class NodeError(Exception):
    """A node cannot start; the workflow continues as after a failure."""


def substitute(source: str, values: Mapping[str, str], spelled: Callable[[str], str] = str) -> str:
    """Fill in the references of a text, each value as `spelled` writes it.

    One without a value stays unchanged, as on Argo; but for outputs of tasks and steps, for
    which Argo would wait: they end their node in Error.
    """

    def value_of(reference: re.Match[str]) -> str:
        name = reference[1].strip()
        if name in values:
            return spelled(safe(name, values))
        if name.startswith(("tasks.", "steps.")):
            raise NodeError(f"{reference[0]} has no value; {NEVER_ENDS}")
        return reference[0]

    return REFERENCE.sub(value_of, source)


def handed_on(where: str, value: str) -> str:
    """A value from the file or the command line; Refused if Argo cannot fill it in anywhere."""
    if not survives_quoting(value):
        raise Refused(f"{where}: {brief(value)} has a character that Argo cannot hand on")
    return value


def safe(name: str, values: Mapping[str, str]) -> str:
    """A value that may be filled into a text; NodeError if Argo could not fill it in unchanged."""
    value = values[name]
    if not survives_quoting(value):
        # Argo's message about the escape codes of colours, and other invisible characters.
        raise NodeError(
            "cannot finish template replacement because the result was invalid JSON: "
            f"{{{{{name}}}}} has a character that Argo cannot hand on"
        )
    # The failures' messages about references are Argo's text, which it does not read again.
    if name != "workflow.failures" and (tag := filled_again(value, values)):
        raise NodeError(
            f"the value of {{{{{name}}}}} holds {tag}; Argo would take that for a reference of the "
            "workflow and fill it in, which does not run here"
        )
    return value


def filled_again(value: str, values: Mapping[str, str]) -> str:
    """A reference in a value that Argo would fill in after substitution; empty if there is none."""
    for tag in REFERENCE.finditer(value):
        name = tag[1].strip()
        if name in values or OF_A_RUN.match(name):
            return tag[0]
    return ""


def substitute_json(source: str, values: Mapping[str, str]) -> str:
    """Fill in references inside the strings of a JSON text."""
    return substitute(source, values, lambda value: quoted(value)[1:-1])


def unresolved(source: str, values: Mapping[str, str]) -> str:
    """The first reference of a text that has no value; empty if there is none."""
    for reference in REFERENCE.finditer(source):
        if reference[1].strip() not in values:
            return reference[0]
    return ""


def output_of(reference: str, values: Mapping[str, str]) -> str | None:
    """The value of a text that is a single reference; None if it has no value."""
    match = REFERENCE.fullmatch(reference.strip())
    return values.get(match[1].strip()) if match else None
