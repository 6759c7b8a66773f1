"""How far a workflow is, as the page shows it, wherever it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

MOST_LINES = 200
"""Lines at the end of a log that are shown."""

SHOWN = ("Pod", "Suspend", "Skipped")
"""Types of nodes that are steps, and no groups of steps."""


def described(
    name: str, status: Mapping[str, Any], *, running: bool, log: Sequence[str]
) -> dict[str, Any]:
    """Phase, nodes and log of a workflow, from the status that Argo and the local runner write."""
    return {
        "name": name,
        "phase": status.get("phase", "Pending"),
        "running": running,
        "started": status.get("startedAt"),
        "finished": status.get("finishedAt"),
        "nodes": [
            {
                "name": node["displayName"],
                "phase": node["phase"],
                "message": node.get("message", ""),
                "started": node.get("startedAt"),
                "finished": node.get("finishedAt"),
            }
            for node in (status.get("nodes") or {}).values()
            if node["type"] in SHOWN
        ],
        "log": list(log),
    }
