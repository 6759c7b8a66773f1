"""Runs a `resource` template: its Job as processes, or nothing where a Job is to be suspended."""

from __future__ import annotations

from runner.controller import Controller
from runner.frames import Invocation
from runner.jobs import RunningJob
from runner.language import Refused, Resource
from runner.manifests import (
    filled,
    holds,
    json_path,
    read_condition,
    read_job,
    read_suspension,
)
from runner.nodes import TOO_LATE, Node
from runner.references import NEVER_ENDS, NodeError, substitute

NOT_DONE = 64
"""Exit code of Argo's executor where kubectl refuses."""


async def run_resource(
    run: Controller, node: Node, resource: Resource, invocation: Invocation
) -> bool:
    """Make an object of a cluster and wait for its end; returns whether the node ended."""
    values = {**run.values, **invocation.values}
    run.show(node)
    try:
        manifest = filled(resource.manifest, values)
        if resource.action == "patch":
            flags = [substitute(word, values) for word in resource.flags]
            suspend(run, node, read_suspension(node.template, flags, manifest))
            return True
        job = read_job(node.template, manifest)
        condition = read_condition(node.template, resource.success)
        run.jobs.add(job.name)
        end = await RunningJob(run.root, job, run.place(node), run.stop, run.programs).run()
    except (NodeError, Refused) as error:
        run.end(node, "Error", getattr(error, "message", str(error)), raised=True)
        return True
    if end is None:
        node.end("Failed", "interrupted" if run.interrupted else TOO_LATE)
        return not run.interrupted
    status = end.status()
    if not holds(condition, status):
        run.end(node, "Error", f"{resource.success} does not hold; {NEVER_ENDS}", raised=True)
        return True
    outputs = invocation.template.outputs.items()
    node.exit_code = 0
    node.outputs = {name: json_path(output.json_path, status) for name, output in outputs}
    run.end(node, "Succeeded")
    run.publish(node)
    return True


def suspend(run: Controller, node: Node, name: str) -> None:
    """End as a suspended Job's node does: the processes of a Job here have ended before."""
    if name in run.jobs:
        node.exit_code = 0
        run.end(node, "Succeeded")
    else:
        node.exit_code = NOT_DONE
        message = (
            f"main: Error (exit code {NOT_DONE}): no more retries Error from server (NotFound): "
            f'jobs.batch "{name}" not found'
        )
        run.end(node, "Failed", message)
