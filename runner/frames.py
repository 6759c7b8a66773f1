"""The surroundings of a running node: its DAG or list of steps, and its inputs."""

from __future__ import annotations

import asyncio
import math
from collections import ChainMap
from dataclasses import dataclass
from pathlib import Path

from runner.language import Task, Template, Values
from runner.nodes import Node
from runner.record import Record
from runner.values import gathered


@dataclass(frozen=True)
class Invocation:
    """A call of a template: the values of its inputs, and the locks held meanwhile."""

    template: Template
    values: Values
    locks: frozenset[str]


class Frame:
    """A DAG or a list of steps that runs: its node, its values, and how many may run in it.

    `not_run` are the references to outputs of tasks that did not run.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        parallelism: float,
        locks: frozenset[str],
        *values: dict[str, str],
    ) -> None:
        self.name, self.folder, self.locks = name, folder, locks
        self.values: ChainMap[str, str] = ChainMap({}, *values)
        self.not_run: set[str] = set()
        self.limit = None if math.isinf(parallelism) else semaphore(parallelism)

    def learn(self, record: Record, family: str, task: Task, node: Node) -> None:
        """Make a task's outputs known to later tasks; `family` is tasks or steps."""
        values = self.values.maps[0]
        values[f"{family}.{task.name}.status"] = node.phase
        for name in record.workflow.templates[task.template].outputs:
            reference = f"{family}.{task.name}.outputs.parameters.{name}"
            if node.type == "TaskGroup":
                succeeded = [m for m in record.members(node) if m.phase == "Succeeded"]
                texts = [m.outputs[name] for m in succeeded if name in m.outputs]
                if texts:
                    values[reference] = gathered(texts)
            elif name in node.outputs:
                values[reference] = node.outputs[name]
            elif node.phase in ("Skipped", "Omitted"):
                values[reference] = ""
                self.not_run.add(reference)


def semaphore(limit: float) -> asyncio.Semaphore:
    return asyncio.Semaphore(int(limit))
