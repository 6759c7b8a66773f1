"""The record of a run while it goes on: its nodes, its values, and its status.json."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from runner.containers import PROGRESS
from runner.language import Task, Values, Workflow
from runner.nodes import LEAVES, SAVE_EVERY, Node, as_list, node_id, save, timestamp
from runner.references import NodeError, substitute


class Record:
    """The nodes of a run; `folder`/status.json holds them at any time.

    `kept` are the nodes of an earlier execution of this run that stay as they are.
    """

    def __init__(
        self,
        root: Path,
        workflow: Workflow,
        name: str,
        uid: str,
        parameters: Values,
        kept: Mapping[str, Node],
        report: Callable[[Node], None],
    ) -> None:
        self.root, self.workflow, self.name, self.uid = root, workflow, name, uid
        self.parameters, self.kept, self.report = parameters, kept, report
        self.folder = Path("outputs", name)
        """Relative to the root, where the containers' processes run."""
        self.file = root / self.folder / "status.json"
        self.values = {"workflow.name": name, "workflow.uid": uid}
        self.values |= {f"workflow.parameters.{p}": parameters[p] for p in parameters}
        self.outputs: Values = {}
        self.phase, self.started = "Running", datetime.now(UTC)
        self.finished: datetime | None = None
        self.nodes: dict[str, Node] = {}
        self.unwritable: OSError | None = None
        """Why the status could not be written; the run ends with it."""

    def begin(self, node: Node, parents: list[str]) -> Node:
        """Add a node as a child of others."""
        self.nodes[node.name] = node
        for parent in parents:
            if node.name not in self.nodes[parent].children:
                self.nodes[parent].children.append(node.name)
        return node

    def end(self, node: Node, phase: str, message: str = "", *, raised: bool = False) -> Node:
        node.end(phase, message)
        node.raised = raised
        self.show(node)
        return node

    def left_out(
        self,
        name: str,
        task: Task,
        boundary: str,
        parents: list[str],
        phase: str,
        message: str,
        display: str = "",
    ) -> Node:
        """The node of a task that did not run."""
        node = Node(name, display or task.name, "Skipped", task.template, boundary)
        return self.end(self.begin(node, parents), phase, message)

    def members(self, group: Node) -> list[Node]:
        """The nodes that a fan-out made, in the order of its items."""
        opening = f"{group.name}("
        by_index = {
            int(node.name.removeprefix(opening).partition(":")[0]): node
            for node in self.nodes.values()
            if node.boundary == group.boundary and node.name.startswith(opening)
        }
        return [by_index[index] for index in sorted(by_index)]

    def publish(self, node: Node) -> None:
        """Make outputs with a globalName known to the whole workflow."""
        template = self.workflow.templates.get(node.template)
        values = self.values | {f"inputs.parameters.{k}": v for k, v in node.inputs.items()}
        for name, output in (template.outputs if template else {}).items():
            if not output.global_name or name not in node.outputs:
                continue
            try:
                global_name = substitute(output.global_name, values)
            except NodeError:
                continue  # on Argo, too, no template can refer to such a name
            self.outputs[global_name] = node.outputs[name]
            self.values[f"workflow.outputs.parameters.{global_name}"] = node.outputs[name]

    def keep(self, name: str, parents: list[str]) -> Node:
        """Keep a node of an earlier execution, and all nodes that belong to it."""
        for other, node in self.kept.items():
            if other == name or other.startswith((f"{name}.", f"{name}(", f"{name}[")):
                self.nodes[other] = node
        node = self.begin(self.nodes[name], parents)
        if node.phase == "Succeeded":
            self.publish(node)
        self.show(node)
        return node

    def place(self, node: Node) -> Path:
        return self.folder / node.folder

    def is_work(self, node: Node) -> bool:
        """Whether a node is work that a person would ask about."""
        if node.boundary in self.nodes and self.nodes[node.boundary].type == "Retry":
            return False
        return node.type in (*LEAVES, "Retry")

    def show(self, node: Node) -> None:
        if self.is_work(node):
            self.report(node)

    async def keep_saving(self, unwritable: Callable[[], Any]) -> None:
        """Write the file repeatedly; call `unwritable` and stop if a write fails."""
        while True:
            for node in self.nodes.values():
                if node.type == "Pod" and node.phase == "Running":
                    node.progress = progress_of(self.root / self.place(node)) or node.progress
            try:
                self.save()
            except OSError as error:
                self.unwritable = error
                unwritable()
                return
            await asyncio.sleep(SAVE_EVERY)

    def save(self) -> None:
        save(
            self.file,
            {
                "metadata": {"name": self.name, "uid": self.uid},
                "spec": {"arguments": {"parameters": as_list(self.parameters)}},
                "status": {
                    "phase": self.phase,
                    "startedAt": timestamp(self.started),
                    "finishedAt": timestamp(self.finished),
                    "outputs": {"parameters": as_list(self.outputs)},
                    "nodes": {
                        node_id(self.name, node.name): node.status(self.name)
                        for node in self.nodes.values()
                    },
                },
            },
        )


def progress_of(folder: Path) -> str:
    """The progress that a step wrote last, `done/total`; empty if it wrote none."""
    try:
        written = (folder / PROGRESS).read_bytes().split()
    except OSError:
        return ""
    last = written[-1] if written else b""
    return last.decode() if re.fullmatch(rb"[0-9]+/[0-9]+", last) else ""
