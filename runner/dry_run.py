"""What a run would do, without doing it: each container's command, each resource's processes."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import click

from runner.containers import command_line
from runner.language import (
    REFERENCE,
    Container,
    Dag,
    Refused,
    Resource,
    Steps,
    Task,
    Values,
    Workflow,
)
from runner.manifests import AS_JSON, read_job


def print_commands(workflow: Workflow, parameters: Values, chosen: set[str] | None) -> None:
    """Print each container's command; values that only a run can give stay references.

    `chosen` are the tasks of the entrypoint that would run; None means all.
    """
    scope = {f"workflow.parameters.{name}": value for name, value in parameters.items()}

    def walk(path: str, template_name: str, arguments: Values, folder: Path) -> None:
        template = workflow.templates[template_name]
        inputs = {
            f"inputs.parameters.{name}": arguments.get(name, p.preset or "")
            for name, p in template.inputs.items()
        }
        match template.definition:
            case Container() as container:
                values = scope | inputs
                command, _ = command_line(container, str(folder), filler(values))
                click.echo(f"{path or template_name}: {shlex.join(command)}")
            case Resource() as resource:
                click.echo(f"{path}: {resource_line(resource, scope | inputs)}")
            case Dag() | Steps():
                walk_tasks(template.tasks, path, inputs, folder)
            case _:
                click.echo(f"{path}: waits for an answer")

    def walk_tasks(steps: list[Task], path: str, inputs: Values, folder: Path) -> None:
        fill = filler(scope | inputs)
        for task in steps:
            refuse_no_list(task, fill)
            arguments = {name: fill(text) for name, text in task.arguments.items()}
            inner = f"{path}.{task.name}" if path else task.name
            if chosen is not None and not path and task.name not in chosen:
                continue
            walk(inner, task.template, arguments, folder / task.name)

    walk("", workflow.entrypoint, dict(parameters), Path("outputs", f"{workflow.prefix}…"))


def refuse_no_list(task: Task, fill: Callable[[str], str]) -> None:
    """Refuse items that are no JSON list, as far as the values are known before a run."""
    if not isinstance(task.items, str):
        return
    items = fill(task.items)
    if REFERENCE.search(items):
        return
    try:
        wrong = not isinstance(json.loads(items), list)
    except ValueError:
        wrong = True
    if wrong:
        raise Refused(f"{task.name} runs once for each of {items!r}, which is no JSON list")


def resource_line(resource: Resource, values: Values) -> str:
    """What a resource template does, in a line."""
    if resource.action == "patch":
        return f"suspends {' '.join(filler(values)(word) for word in resource.flags)}"
    manifest = AS_JSON.sub(r"'{{inputs.parameters.\1}}'", resource.manifest)
    job = read_job(resource.action, filler(values)(manifest))
    return f"{job.pods} processes of {shlex.join(job.container.command)}"


def filler(values: Values) -> Callable[[str], str]:
    """Fills in the references that have a value, and keeps the others unchanged."""

    def value_of(reference: re.Match[str]) -> str:
        return values.get(reference[1].strip(), reference[0])

    return lambda text: REFERENCE.sub(value_of, text)
