"""Runs a list of steps: the groups one after the other, the steps of a group side by side."""

from __future__ import annotations

import asyncio

from runner.controller import Controller
from runner.expansion import BROKEN, Child, expand
from runner.frames import Frame, Invocation
from runner.groups import hand_over, run_child
from runner.language import Task
from runner.nodes import Node, node_id
from runner.phases import outbound


async def run_steps(
    run: Controller, node: Node, groups: list[list[Task]], invocation: Invocation
) -> bool:
    """Whether the list ended."""
    frame = Frame(
        node.name,
        node.folder,
        invocation.template.parallelism,
        invocation.locks,
        invocation.values,
        run.values,
    )
    before = node
    for number, steps in enumerate(groups):
        name = f"{node.name}[{number}]"
        parents = after(run, before) if number else [node.name]
        group = Node(name, f"[{number}]", "StepGroup", boundary=node.name)
        run.begin(group, parents)
        if not await run_group(run, group, steps, frame):
            return False
        node.outbound = [n for child in group.children for n in outbound(run.nodes, child)]
        if group.failed:
            node.end("Failed", group.message)
            node.hint = group.hint
            return True
        before = group
    if hand_over(run, node, invocation, frame):
        run.end(node, "Succeeded")
        run.publish(node)
    return True


def after(run: Controller, group: Node) -> list[str]:
    """The parents of the nodes after a group; an empty group is a parent itself."""
    if not group.children:
        return [group.name]
    return [name for child in group.children for name in outbound(run.nodes, child)]


async def run_group(run: Controller, group: Node, steps: list[Task], frame: Frame) -> bool:
    """Whether the steps of a group ended; the group has a phase then."""
    try:
        planned = [(step, expand(step, frame.values)) for step in steps]
    except BROKEN as error:
        # None of the steps has a node then, on Argo either.
        group.end("Error", str(error))
        return True
    broken = ""
    running = []
    for step, children in planned:
        name = f"{group.name}.{step.name}"
        if not children:
            message = "Skipped, empty params"
            run.left_out(name, step, frame.name, [group.name], "Skipped", message)
        for child in children:
            if not broken:
                running.append(run_child(run, name, step, child, frame, [group.name]))
                broken = child.error
                if broken and len(running) > 1:
                    broken += "; on Argo the steps beside it would be left as they are"
    ended = await asyncio.gather(*running)
    if any(child is None for child in ended):
        return False
    failed = [child for child in ended if child and child.failed]
    if broken or any(child.raised for child in failed):
        group.end("Error", broken or failed[0].message)
    elif failed:
        group.end("Failed", f"child '{node_id(run.name, failed[0].name)}' failed")
        group.hint = ", ".join(child.display for child in failed)
    else:
        group.end("Succeeded")
        for step, children in planned:
            learn(run, group, step, children, frame)
    return True


def learn(run: Controller, group: Node, step: Task, children: list[Child], frame: Frame) -> None:
    """Make a step's outputs known; a fan-out's outputs come from a group without a node."""
    name = f"{group.name}.{step.name}"
    if step.items is None or not children:
        node = run.nodes[name]
    else:
        node = Node(name, step.name, "TaskGroup", step.template, frame.name, phase="Succeeded")
    frame.learn(run, "steps", step, node)
