"""Asks a real controller what it makes of workflows, and writes the record of cases.json anew.

    python tests/runner/record.py NEW.json     # adds the workflows of a file, by name
    python tests/runner/record.py              # asks about all cases again

Needs `argo` and `kubectl`, and a namespace in which pods may report their results and a ConfigMap
`locks` says how many the semaphores let in; tests/cluster/test_conformance.py makes both.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

Object = dict[str, Any]
FILE = Path(__file__).with_name("cases.json")
IMAGE = "docker.io/library/python:3.11-slim-bookworm"
PATIENCE = 150
"""Seconds after which a workflow counts as one that never ends."""

QUIET = 45
"""Seconds after which the controller is made to look at a workflow again, as it does by itself
every twenty minutes (workflowResyncPeriod). It has to be where a deadline passes: in the second
after it, the controller makes no pod for a node that it has set to Pending, so no pod's event
follows; and its own change of the workflow it has in its cache already, so that the event of
that change, too, counts as seen. Both are in Argo 3.7.14 (createWorkflowPod, persistUpdates).
"""

AT_ONCE = 6
DONE = ("Succeeded", "Failed", "Error")
LONG = 2000


def submitted(workflow: Object | str, account: str, namespace: str) -> tuple[str, str]:
    """The name of a submitted workflow, or what Argo said against it."""
    text = workflow if isinstance(workflow, str) else json.dumps(workflow)
    text = text.replace("localhost/steps:dev", IMAGE)
    command = ["argo", "submit", "-n", namespace, "-o", "name", "--serviceaccount", account, "-"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        return "", " ".join(done.stderr.split())
    return done.stdout.strip().rpartition("/")[2], ""


def status_within(seconds: float, name: str, namespace: str) -> Object:
    """The status of a workflow once it has ended, or after some seconds."""
    last = time.monotonic() + seconds
    while True:
        get = ["kubectl", "-n", namespace, "get", "workflow", name, "-o", "json"]
        result = json.loads(subprocess.run(get, capture_output=True, text=True, check=True).stdout)
        status: Object = result.get("status", {})
        left = last - time.monotonic()
        if status.get("phase") in DONE or left <= 0:
            return status
        wait = ["timeout", f"{max(1, left):.0f}", "argo", "wait", "-n", namespace, name]
        subprocess.run(wait, capture_output=True, check=False)


def record(workflow: Object | str, account: str, namespace: str) -> Object:
    """What the controller makes of a workflow: `refused`, or its status; `stuck` if it waits."""
    name, refusal = submitted(workflow, account, namespace)
    if not name:
        return {"refused": refusal}
    status = status_within(QUIET, name, namespace)
    if status.get("phase") not in DONE:
        look = ["kubectl", "-n", namespace, "annotate", "workflow", name, "loraline.test/look=yes"]
        subprocess.run(look, capture_output=True, check=True)
        status = status_within(PATIENCE - QUIET, name, namespace)
    stuck = {} if status.get("phase") in DONE else {"stuck": True}
    delete = ["kubectl", "-n", namespace, "delete", "workflow", name, "--wait=false"]
    subprocess.run(delete, capture_output=True, check=False)
    return {**of_status(status, name), **stuck}


def of_status(status: Object, name: str) -> Object:
    nodes = {
        node["name"].removeprefix(name): {
            "type": node["type"],
            "phase": node["phase"],
            "message": node.get("message", "").replace(name, "WF"),
            "exitCode": (node.get("outputs") or {}).get("exitCode"),
            "inputs": values(node.get("inputs")),
            "outputs": values(node.get("outputs")),
        }
        for node in (status.get("nodes") or {}).values()
    }
    return {
        "phase": status.get("phase", "Running"),
        "message": status.get("message", "").replace(name, "WF"),
        "outputs": values(status.get("outputs")),
        "nodes": dict(sorted(nodes.items())),
    }


def values(of: Object | None) -> dict[str, str]:
    parameters = (of or {}).get("parameters") or []
    return {p["name"]: spelled(str(p["value"])) for p in parameters if "value" in p}


def spelled(value: str) -> str:
    if len(value) < LONG:
        return value
    return f"sha256:{hashlib.sha256(value.encode()).hexdigest()[:16]} of {len(value)}"


def write(cases: dict[str, Object]) -> None:
    """One case a line, so that a change shows which one it is about."""
    lines = (
        f"{json.dumps(name)}: {json.dumps(case, separators=(',', ':'), sort_keys=True)}"
        for name, case in cases.items()
    )
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def main(account: str = "conformance", namespace: str = "default") -> None:
    cases = json.loads(FILE.read_text())
    asked = {name: case["workflow"] for name, case in cases.items()}
    if sys.argv[1:]:
        asked = json.loads(Path(sys.argv[1]).read_text())
    with ThreadPoolExecutor(AT_ONCE) as pool:
        records = pool.map(lambda workflow: record(workflow, account, namespace), asked.values())
        for name, result in zip(asked, records, strict=True):
            before = cases.get(name, {}).get("argo")
            if before is not None and facts(before) != facts(result):
                print(
                    f"{name}: changed from {json.dumps(before)[:300]} to {json.dumps(result)[:300]}"
                )
            cases[name] = cases.get(name, {}) | {"argo": result, "workflow": asked[name]}
    write(cases)


def facts(found: Object) -> Object:
    """A record without messages, which have names and times in them."""
    nodes = {
        path: {key: value for key, value in node.items() if key != "message"}
        for path, node in found.get("nodes", {}).items()
    }
    return {
        "phase": found.get("phase"),
        "outputs": found.get("outputs"),
        "nodes": nodes,
        "refused": "refused" in found,
        "stuck": "stuck" in found,
    }


if __name__ == "__main__":
    main()
