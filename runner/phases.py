"""The phase of a DAG, computed as Argo does: along the children of its nodes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping

from runner.nodes import FAILED, Node

COMPLETED = ("Succeeded", *FAILED)

NEVER = ""
"""The phase of a DAG that Argo would never end: its last tasks cannot be reached."""


def outbound(nodes: Mapping[str, Node], name: str) -> list[str]:
    """The last nodes of a node: the parents of whatever comes after it.

    A node that the controller ended has none: Argo does not find what comes after it.
    """
    node = nodes[name]
    if node.type in ("Pod", "Skipped", "Suspend"):
        return [name]
    if node.type == "Retry":
        return node.children[-1:]
    after = node.children if node.type == "TaskGroup" else node.outbound
    if node.type == "TaskGroup" and not after:
        return [name]
    return [last for child in after if child in nodes for last in outbound(nodes, child)]


def dag_phase(
    nodes: Mapping[str, Node], dag: str, targets: Iterable[str], *, fail_fast: bool
) -> str:
    """The phase of a DAG all of whose tasks have ended; `targets` are its last tasks by name.

    A target that did not run has the phase of the first branch that leads to it, and a failed
    branch goes before one that succeeded.
    """
    phases = dict.fromkeys((f"{dag}.{target}" for target in sorted(targets)), NEVER)
    queue = deque((child, "Succeeded") for child in nodes[dag].children)
    visited = set(queue)
    while queue:
        name, branch = queue.popleft()
        if name not in nodes:
            continue  # a task of a resumed run that does not run this time
        node = nodes[name]
        branch = node.phase if node.phase in COMPLETED else branch
        if name in phases and phases[name] not in FAILED:
            phases[name] = branch
        for child in children(nodes, node):
            if (child, branch) not in visited:
                visited.add((child, branch))
                queue.append((child, branch))
    return combined(phases.values(), fail_fast=fail_fast)


def children(nodes: Mapping[str, Node], node: Node) -> list[str]:
    """A node's children; those of a retried one are its attempts', the last attempt's first."""
    if node.type != "Retry":
        return node.children
    attempts = [nodes[name] for name in reversed(node.children) if name in nodes]
    return [child for attempt in attempts for child in attempt.children]


def combined(phases: Iterable[str], *, fail_fast: bool) -> str:
    """The first failure of the targets; without failFast the last, once all have ended."""
    result = "Succeeded"
    for phase in phases:
        if phase == NEVER:
            result = NEVER
            if not fail_fast:
                break
        elif phase in FAILED:
            result = phase
            if fail_fast:
                break
    return result
