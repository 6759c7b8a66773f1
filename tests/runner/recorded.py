"""What a real Argo controller made of small workflows, and what the runner makes of them.

`cases.json` has, by name, a workflow and the controller's record: phase, outputs, and each node's
type, phase, exit code, inputs and outputs; or `refused`, with what Argo said at submit; or `stuck`,
where the workflow was not over after 150 seconds. What is marked `slow` runs in `make test-slow`.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import yaml

from runner.execution import Run
from runner.language import Refused
from runner.nodes import Node
from runner.reader import parameter_values, read

Object = dict[str, Any]
CASES: dict[str, Object] = json.loads(Path(__file__).with_name("cases.json").read_text())
SAYS_WHAT_ARGO_WOULD_DO = re.compile(r"\b[Oo]n Argo\b|\bArgo would\b")
LONG = 2000
"""Signs of a value from which on the record has its digest."""


def written(case: Object, folder: Path) -> Path:
    """The case's workflow as a file; some are kept as YAML, since how it is spelled matters."""
    workflow = case["workflow"]
    file = folder / "w.yaml"
    file.write_text(workflow if isinstance(workflow, str) else json.dumps(workflow))
    return file


def document(case: Object) -> Object:
    workflow = case["workflow"]
    result: Object = yaml.safe_load(workflow) if isinstance(workflow, str) else workflow
    return result


async def run_here(case: Object, folder: Path) -> Run:
    """Run a case in a folder of its own; raises Refused as the command line would end."""
    workflow = read(written(case, folder))
    run = Run(
        folder, workflow, "wf", "uid", parameter_values(workflow, (), {}), {}, {}, lambda _: None
    )
    (folder / run.folder).mkdir(parents=True)
    await run.execute()
    return run


async def run_all(cases: dict[str, Object], folder: Path, at_once: int = 6) -> dict[str, Any]:
    """The run of each case, or the refusal; those that only wait cost nothing meanwhile."""
    slots = asyncio.Semaphore(at_once)

    async def run(name: str) -> Run | Refused:
        place = folder / name
        place.mkdir()
        async with slots:
            try:
                return await run_here(cases[name], place)
            except Refused as refused:
                return refused

    return dict(zip(cases, await asyncio.gather(*map(run, cases)), strict=True))


def facts(run: Run) -> Object:
    """What a run and a record have to agree on."""
    return {
        "phase": run.phase,
        "outputs": {name: spelled(value) for name, value in run.outputs.items()},
        "nodes": {node.name.removeprefix("wf"): of_node(node) for node in run.nodes.values()},
    }


def of_node(node: Node) -> Object:
    return {
        "type": node.type,
        "phase": node.phase,
        "exitCode": None if node.exit_code is None else str(node.exit_code),
        "inputs": {name: spelled(value) for name, value in node.inputs.items()},
        "outputs": {name: spelled(value) for name, value in node.outputs.items()},
    }


def spelled(value: str) -> str:
    if len(value) < LONG:
        return value
    return f"sha256:{hashlib.sha256(value.encode()).hexdigest()[:16]} of {len(value)}"


def recorded_facts(record: Object) -> Object:
    nodes = {
        path: {key: node[key] for key in ("type", "phase", "exitCode", "inputs", "outputs")}
        for path, node in record["nodes"].items()
    }
    return {"phase": record["phase"], "outputs": record["outputs"], "nodes": nodes}


def verdict(case: Object, ended: Run | Refused) -> str:
    """`equal`; `refused` or `stopped`, with the sentence; or `different`, which is a fault."""
    record = case["argo"]
    if isinstance(ended, Refused):
        return f"refused: {ended.message.partition('w.yaml: ')[2] or ended.message}"
    if "refused" not in record and "stuck" not in record and recorded_facts(record) == facts(ended):
        return "equal"
    for node in ended.nodes.values():
        if node.phase == "Error" and SAYS_WHAT_ARGO_WOULD_DO.search(node.message):
            return f"stopped: {node.message}"
    return "different"
