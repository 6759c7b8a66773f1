"""The nodes of a run and its status.json, in the shape of Argo's `status`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from runner.language import Object, Values
from runner.values import html_safe, quoted

FAILED = ("Failed", "Error")
DONE = ("Succeeded", "Skipped", "Omitted", *FAILED)
LEAVES = ("Pod", "Skipped", "Suspend")

TOO_LATE = "Step exceeded its deadline"
"""Argo's message for a node that would have begun after the workflow's deadline."""

SAVE_EVERY = 0.2
"""Seconds between two writes of the file, so that many nodes do not cause many writes."""


@dataclass
class Node:
    """What Argo has in `status.nodes`: `name` is the path from the workflow, `display` its end."""

    name: str
    display: str
    type: str
    template: str = ""
    boundary: str = ""
    folder: Path = Path()
    """Where its container's outputs are, from the run's folder."""
    phase: str = "Running"
    message: str = ""
    inputs: Values = field(default_factory=dict)
    outputs: Values = field(default_factory=dict)
    exit_code: int | None = None
    children: list[str] = field(default_factory=list)
    """Names of the nodes that came after this node, or that it consists of."""
    outbound: list[str] = field(default_factory=list)
    """Of an ended DAG or list of steps: its last nodes, the parents of the nodes after it."""
    raised: bool = False
    """Whether the controller ended the node, and not a container."""
    hint: str = ""
    """An explanation in addition to Argo's message."""
    progress: str = ""
    started: datetime = field(default_factory=lambda: datetime.now(UTC))
    finished: datetime | None = None

    @property
    def failed(self) -> bool:
        return self.phase in FAILED

    def end(self, phase: str, message: str = "") -> None:
        self.phase, self.message, self.finished = phase, message, datetime.now(UTC)

    def end_as(self, attempt: Node) -> None:
        """End as an attempt ended, with its outputs."""
        self.outputs, self.exit_code, self.hint = attempt.outputs, attempt.exit_code, attempt.hint
        self.end(attempt.phase, attempt.message)

    def status(self, workflow: str) -> Object:
        outputs: Object = {"parameters": as_list(self.outputs)}
        if self.exit_code is not None:
            outputs["exitCode"] = str(self.exit_code)
        return {
            "id": node_id(workflow, self.name),
            "name": self.name,
            "displayName": self.display,
            "type": self.type,
            "templateName": self.template,
            "boundaryID": node_id(workflow, self.boundary) if self.boundary else "",
            "phase": self.phase,
            "message": self.message,
            "children": [node_id(workflow, child) for child in self.children],
            "outboundNodes": [node_id(workflow, node) for node in self.outbound],
            "progress": self.progress,
            "startedAt": timestamp(self.started),
            "finishedAt": timestamp(self.finished),
            "inputs": {"parameters": as_list(self.inputs)},
            "outputs": outputs,
        }


def from_status(status: Object, names: dict[str, str]) -> Node:
    """The node of an entry of `status.nodes`; `names` are the nodes' names by ID."""
    code = status["outputs"].get("exitCode")
    return Node(
        name=status["name"],
        display=status["displayName"],
        type=status["type"],
        template=status["templateName"],
        boundary=names.get(status["boundaryID"], ""),
        phase=status["phase"],
        message=status["message"],
        inputs=as_values(status["inputs"]["parameters"]),
        outputs=as_values(status["outputs"]["parameters"]),
        exit_code=None if code is None else int(code),
        children=[names[child] for child in status.get("children", []) if child in names],
        outbound=[names[node] for node in status.get("outboundNodes", []) if node in names],
        progress=status["progress"],
        started=moment(status["startedAt"]) or datetime.now(UTC),
        finished=moment(status["finishedAt"]),
    )


def node_id(workflow: str, name: str) -> str:
    """Argo's: the workflow's name and the 32-bit FNV-1a hash of the node's, but for the root."""
    if name == workflow:
        return name
    digest = 0x811C9DC5
    for byte in name.encode():
        digest = (digest ^ byte) * 0x01000193 % 2**32
    return f"{workflow}-{digest}"


def pod_name(workflow: str, node: Node) -> str:
    """The name that Argo would give a node's pod."""
    if node.name == workflow:
        return workflow
    prefix = f"{workflow}-{node.template}"[: 253 - 11]
    return f"{prefix}-{node_id(workflow, node.name).rpartition('-')[2]}"


def failures(workflow: str, nodes: Iterable[Node]) -> str:
    """`workflow.failures`: Argo's JSON list of the failed nodes, once more quoted as a text."""
    failed = [
        {
            "displayName": node.display,
            "message": node.message,
            "templateName": node.template,
            "phase": node.phase,
            "podName": pod_name(workflow, node),
            "finishedAt": timestamp(node.finished),
        }
        for node in nodes
        if node.failed
    ]
    return quoted(html_safe(json.dumps(failed or None, separators=(",", ":"), ensure_ascii=False)))


def as_list(values: Values) -> list[Values]:
    return [{"name": name, "value": value} for name, value in values.items()]


def as_values(parameters: list[Values]) -> Values:
    return {parameter["name"]: parameter["value"] for parameter in parameters}


def timestamp(moment: datetime | None) -> str | None:
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}" if moment else None


def moment(stamp: str | None) -> datetime | None:
    return datetime.fromisoformat(stamp) if stamp else None


def save(file: Path, document: Object) -> None:
    """Write status.json whole or not at all."""
    part = file.with_name(f".{file.name}.part")
    part.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    part.replace(file)
