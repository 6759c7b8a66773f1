"""Runs the tasks of a DAG: each task starts once all its dependencies have ended."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping

from runner.controller import Controller
from runner.expansion import BROKEN, expand
from runner.frames import Frame, Invocation
from runner.groups import hand_over, run_child, run_group
from runner.language import OUTCOMES, Dag, Task
from runner.nodes import Node
from runner.phases import NEVER, dag_phase, outbound
from runner.references import NEVER_ENDS


async def run_dag(run: Controller, node: Node, dag: Dag, invocation: Invocation) -> bool:
    """Whether the DAG ended."""
    frame = Frame(
        node.name,
        node.folder,
        invocation.template.parallelism,
        invocation.locks,
        invocation.values,
        run.values,
    )
    running: dict[str, asyncio.Future[Node | None]] = {}
    for task in dag.tasks:
        dependencies = {name: running[name] for name in task.upstreams}
        running[task.name] = asyncio.ensure_future(run_task(run, task, frame, dependencies))
    children = dict(zip(running, await asyncio.gather(*running.values()), strict=True))
    if any(child is None for child in children.values()):
        return False
    upstreams = {name for task in dag.tasks for name in task.upstreams}
    targets = sorted(children.keys() - upstreams)
    phase = dag_phase(run.nodes, node.name, targets, fail_fast=dag.fail_fast)
    if phase == NEVER:
        message = f"{', '.join(targets)} cannot be reached past a node in Error; "
        run.end(node, "Error", message + NEVER_ENDS, raised=True)
        return True
    if phase == "Succeeded":
        for name in dag.order:
            child = children[name]
            assert child is not None
            run.publish(child)
        if not hand_over(run, node, invocation, frame):
            return True
    node.outbound = [
        name for target in targets for name in outbound(run.nodes, f"{node.name}.{target}")
    ]
    run.end(node, phase)
    return True


async def run_task(
    run: Controller, task: Task, frame: Frame, dependencies: Mapping[str, Awaitable[Node | None]]
) -> Node | None:
    """Run a task once all its dependencies have ended."""
    facts: dict[str, bool] = {}
    parents: list[str] = []
    for name in dependencies:
        upstream = await dependencies[name]
        if upstream is None and not (run.only and frame.name == run.name):
            return None
        if upstream is not None:
            facts |= outcomes(run, name, upstream)
            parents += outbound(run.nodes, upstream.name)
    node_name = f"{frame.name}.{task.name}"
    parents = parents if dependencies else [frame.name]
    if run.only and frame.name == run.name and task.name != run.only:
        node = run.keep(node_name, parents) if node_name in run.kept else None
    elif run.interrupted:
        return None
    elif not task.depends.is_true(facts):
        message = "omitted: depends condition not met"
        node = run.left_out(node_name, task, frame.name, parents, "Omitted", message)
    else:
        node = await run_expanded(run, node_name, task, frame, parents)
    if node is not None:
        frame.learn(run, "tasks", task, node)
    return node


async def run_expanded(
    run: Controller, name: str, task: Task, frame: Frame, parents: list[str]
) -> Node | None:
    """Run a task, or a group of one node for each of its items."""
    try:
        children = expand(task, frame.values)
    except BROKEN as error:
        return run.left_out(name, task, frame.name, parents, "Error", str(error))
    if task.items is None:
        return await run_child(run, name, task, children[0], frame, parents)
    if not children:
        message = "Skipped, empty params"
        return run.left_out(name, task, frame.name, parents, "Skipped", message)
    return await run_group(run, name, task, children, frame, parents)


def outcomes(run: Controller, name: str, node: Node) -> dict[str, bool]:
    """The facts about an ended task that `depends` can name."""
    facts = {f"{name}.{word}": node.phase == phase for word, phase in OUTCOMES.items()}
    members = []
    if node.type == "TaskGroup":
        members = [member.phase for member in run.members(node)]
    return facts | {
        name: node.phase in ("Succeeded", "Skipped"),
        f"{name}.AnySucceeded": "Succeeded" in members,
        f"{name}.AllFailed": bool(members) and all(phase == "Failed" for phase in members),
    }
