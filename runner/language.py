"""The objects of a workflow that has been read: templates, tasks, parameters.

The words are Argo's. A workflow of these parts can be run as Argo would run it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import click

from runner.expressions import Expression

Object = dict[str, Any]
Values = dict[str, str]
"""Values by name, or by reference such as `tasks.evaluate.outputs.parameters.run-id`."""

OUT_DIR = "/tmp/outputs"
REFERENCE = re.compile(r"\{\{(.*?)\}\}")
OUTPUT = re.compile(r"(?:tasks|steps)\.([^.]+)\.outputs\.parameters\.(.+)")

OUTCOMES = {
    "Succeeded": "Succeeded",
    "Failed": "Failed",
    "Errored": "Error",
    "Skipped": "Skipped",
    "Omitted": "Omitted",
}
"""Phase of a node by its word in `depends`."""

OF_A_GROUP = ("AnySucceeded", "AllFailed")
"""Words of `depends` that only apply to a task with items."""

OF_A_RETRY = ("exitCode", "status", "duration", "message")
"""Fields of `lastRetry.`, about the previous attempt."""


class Refused(click.ClickException):
    """A user's mistake, or a construct that does not run here; nothing has been started."""

    exit_code = 2


class Parameter(NamedTuple):
    """A declared parameter; without a preset it has to be given, and `enum` may be empty."""

    preset: str | None
    enum: list[str]


class Output(NamedTuple):
    """An output parameter and where its value comes from: one of a file, a reference, a person.

    `path`, `default` and `global_name` may hold references, too.
    """

    path: str
    reference: str
    supplied: bool
    default: str | None
    global_name: str
    json_path: str = ""
    """Paths into the object of a resource template."""


class Retry(NamedTuple):
    """How often, when, and after how many seconds a template is tried again.

    A `pause` of None is a backoff without duration, which ends in Error at the first failure.
    """

    limit: int
    phases: tuple[str, ...]
    expression: Expression | None
    pause: float | None
    factor: int
    longest: float


@dataclass(frozen=True)
class Container:
    """A command; its texts hold their `{{references}}` still. `seconds` bound one attempt."""

    node_type: ClassVar[str] = "Pod"
    command: list[str]
    environment: Values
    inherited: list[str]
    """Variables from Secrets and ConfigMaps, and places in claims; here they come from this
    process's environment."""
    seconds: float


@dataclass(frozen=True)
class Resource:
    """An object of a cluster; its texts hold their `{{references}}` still."""

    node_type: ClassVar[str] = "Pod"
    action: str
    manifest: str
    flags: list[str]
    success: str
    """The condition that the object fulfils at its end."""
    seconds: float


@dataclass(frozen=True)
class Task:
    """A task of a DAG or a step of a list; `upstreams` are the tasks that `depends` names."""

    name: str
    template: str
    arguments: Values
    when: str
    items: list[str] | str | None
    """The items' JSON, or the text that holds a list once its references are filled in."""
    depends: Expression
    upstreams: tuple[str, ...]


@dataclass(frozen=True)
class Dag:
    """Tasks in topological order: each comes after its dependencies."""

    node_type: ClassVar[str] = "DAG"
    tasks: list[Task]
    fail_fast: bool
    order: list[str]
    """The names of the tasks in the file's order."""


@dataclass(frozen=True)
class Steps:
    """Groups of steps; the steps of a group run side by side."""

    node_type: ClassVar[str] = "Steps"
    groups: list[list[Task]]


@dataclass(frozen=True)
class Suspend:
    """A wait: for a time, whose text may hold `{{references}}`, or (empty) for a person."""

    node_type: ClassVar[str] = "Suspend"
    duration: str


@dataclass(frozen=True)
class Template:
    """A template; `locks` name the mutexes and semaphores that it holds while it runs."""

    name: str
    inputs: dict[str, Parameter]
    outputs: dict[str, Output]
    definition: Container | Dag | Resource | Steps | Suspend
    retry: Retry | None
    seconds: float
    parallelism: float
    locks: list[str]

    @property
    def tasks(self) -> list[Task]:
        """The tasks of a DAG, or the steps of all groups."""
        match self.definition:
            case Dag(tasks=tasks):
                return tasks
            case Steps(groups):
                return [step for group in groups for step in group]
            case _:
                return []


@dataclass(frozen=True)
class Workflow:
    """A workflow that runs here."""

    prefix: str
    parameters: dict[str, Parameter]
    templates: dict[str, Template]
    entrypoint: str
    on_exit: str
    seconds: float
    parallelism: float


def listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "nothing"


def references(source: str) -> list[str]:
    """The names between the double braces of a text."""
    return [name.strip() for name in REFERENCE.findall(source)]
