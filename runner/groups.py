"""The child nodes of a task: itself, or a group with a member for each item."""

from __future__ import annotations

import asyncio

from runner.controller import Controller
from runner.expansion import Child
from runner.frames import Frame, Invocation
from runner.language import Task
from runner.nodes import Node
from runner.references import NEVER_ENDS, output_of, substitute


async def run_child(
    run: Controller, name: str, task: Task, child: Child, frame: Frame, parents: list[str]
) -> Node | None:
    """Run a child of a task, or record why it does not run; `name` is the task's node."""
    display = task.name + child.label
    if child.skipped or child.error:
        phase, message = ("Error", child.error) if child.error else ("Skipped", child.skipped)
        return run.left_out(name + child.label, task, frame.name, parents, phase, message, display)
    folder = task.name if child.index is None else f"{task.name}.{child.index}"
    return await run.call(
        name + child.label, display, task.template, child.arguments, frame, folder, parents
    )


async def run_group(
    run: Controller, name: str, task: Task, children: list[Child], frame: Frame, parents: list[str]
) -> Node | None:
    """Run the members of a DAG's fan-out side by side; the group ends as the last that failed."""
    group = run.begin(Node(name, task.name, "TaskGroup", task.template, frame.name), parents)
    ended = await asyncio.gather(
        *(run_child(run, name, task, child, frame, [name]) for child in children)
    )
    if any(node is None for node in ended):
        return None
    failed = [node.phase for node in ended if node and node.failed]
    group.end(failed[-1] if failed else "Succeeded")
    return group


def hand_over(run: Controller, node: Node, invocation: Invocation, frame: Frame) -> bool:
    """Give a DAG or a list of steps the outputs of its tasks; False if one has no value.

    A task that did not run has no value: its default counts, or there is an error.
    """
    scope = {k: v for k, v in frame.values.items() if k not in frame.not_run}
    for name, output in invocation.template.outputs.items():
        value = output_of(output.reference, scope)
        if value is None and output.default is not None:
            value = substitute(output.default, run.values | invocation.values)
        if value is None:
            message = f"Unable to resolve: {output.reference}, and output {name} has no default; "
            run.end(node, "Error", message + NEVER_ENDS, raised=True)
            return False
        node.outputs[name] = value
    return True
