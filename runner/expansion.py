"""Expands a task once its dependencies have ended: one child node, several, or none."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from runner import govaluate
from runner.expressions import EvaluationError, SyntaxRefused
from runner.language import Task, Values
from runner.references import NodeError, substitute, substitute_json, unresolved
from runner.values import Item, NoJson, elements

BROKEN = (NodeError, SyntaxRefused, EvaluationError)
"""Exceptions that end a node in Error before any of it runs."""


@dataclass(frozen=True)
class Child:
    """A planned child node: a task itself, or a member of its fan-out (`label`, `index`).

    `skipped` says why it does not run, `error` why that cannot be decided.
    """

    arguments: Values
    label: str = ""
    index: int | None = None
    skipped: str = ""
    error: str = ""


def expand(task: Task, values: Mapping[str, str]) -> list[Child]:
    """The children that a task makes; raises one of BROKEN if the task as a whole is in Error.

    As on Argo, `when` comes first. Where it is false without its items, nothing else of the task
    is filled in: a list that another task hands over is not even read.
    """
    when = substitute(task.when, values)
    runs = True
    try:
        runs = not when or govaluate.is_true(when)
    except BROKEN:
        if task.items is None:
            raise
    if task.items is None:
        return [child(task, values) if runs else skipped(when)]
    if not runs:
        return members_of_the_file(task, when, values)
    return members(task, when, values)


def child(task: Task, values: Mapping[str, str]) -> Child:
    return Child({name: substitute(text, values) for name, text in task.arguments.items()})


def skipped(when: str, label: str = "", index: int | None = None) -> Child:
    return Child({}, label, index, skipped=f"when '{when}' evaluated false")


def members_of_the_file(task: Task, when: str, values: Mapping[str, str]) -> list[Child]:
    """A child for each item that the file and the template's inputs give.

    `when` is read once more with each item: `'{{item}}' == 'x'` is false in its braces, too.
    """
    scope = {n: v for n, v in values.items() if not n.startswith(("tasks.", "steps."))}
    try:
        items = items_of(task, scope, as_written=True)
    except NodeError:
        return []
    return [member(number, item, when, task.arguments, values) for number, item in enumerate(items)]


def members(task: Task, when: str, values: Mapping[str, str]) -> list[Child]:
    items = items_of(task, values)
    arguments = {name: substitute(text, values) for name, text in task.arguments.items()}
    refuse_items_in_values(task, when, arguments)
    rest = " ".join([when, *arguments.values(), *(item.raw for item in items)])
    for item in items:
        if tag := unresolved(rest, item.references()):
            raise NodeError(f"failed to resolve {tag}")
    return [member(number, item, when, arguments, {}) for number, item in enumerate(items)]


ITEM = re.compile(r"\{\{\s*item\b.*?\}\}")


def refuse_items_in_values(task: Task, when: str, arguments: Values) -> None:
    """A value may hold `{{item}}` itself, which Argo would fill in with the item."""
    written = [task.when, *task.arguments.values()]
    if ITEM.findall(" ".join(written)) != ITEM.findall(" ".join([when, *arguments.values()])):
        raise NodeError(
            "a value holds {{item}}; Argo would fill it in with the item, which does not run here"
        )


def member(
    index: int, item: Item, when: str, arguments: Values, values: Mapping[str, str]
) -> Child:
    label, references = f"({index}:{item.label()})", {**values, **item.references()}
    filled = {name: substitute(text, references) for name, text in arguments.items()}
    condition = substitute(when, references)
    try:
        if condition and not govaluate.is_true(condition):
            return skipped(condition, label, index)
    except BROKEN as error:
        return Child({}, label, index, error=str(error))
    return Child(filled, label, index)


def items_of(task: Task, values: Mapping[str, str], *, as_written: bool = False) -> list[Item]:
    """The items of a fan-out; `as_written` leaves references without a value in their braces."""
    if isinstance(task.items, list):
        return [Item(substitute_json(raw, values)) for raw in task.items]
    assert task.items is not None
    source = task.items
    if as_written and unresolved(source, values):
        return []
    source = substitute(source, values)
    if not source:
        raise NodeError(
            "withParam is empty: Argo would run the task once, with {{item}} as it stands in the "
            "file; it does not run here"
        )
    try:
        return elements(source)
    except NoJson as error:
        raise NodeError(
            f"withParam value could not be parsed as a JSON list: {source.strip()}: {error}"
        ) from error
