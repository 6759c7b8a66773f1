"""Runs a suspended task until its time is over or somebody answers it."""

from __future__ import annotations

import asyncio

from runner.controller import Controller
from runner.frames import Invocation
from runner.language import Refused, Template, Values
from runner.nodes import TOO_LATE, Node
from runner.references import NodeError, substitute
from runner.shapes import seconds


async def run_suspend(run: Controller, node: Node, duration: str, invocation: Invocation) -> bool:
    """Wait; returns whether the wait ended."""
    run.show(node)
    values = run.values | invocation.values
    try:
        wait = substitute(duration, values)
        pause = seconds("duration", wait) if wait else None
    except (NodeError, Refused) as error:
        run.end(node, "Error", str(error), raised=True)
        return True
    if pause is None:
        if not run.stop.requested and not await answered(run, node, invocation.template):
            return past_the_deadline(run, node)
    else:
        await run.stop.unless_requested(asyncio.sleep(pause))
        take_defaults(run, node, invocation.template, values)
    if run.stop.requested:
        return past_the_deadline(run, node)
    if not node.failed:
        run.end(node, "Succeeded")
    return True


def past_the_deadline(run: Controller, node: Node) -> bool:
    if run.interrupted or not run.stop.requested:
        return False
    node.outputs = {}
    run.end(node, "Failed", TOO_LATE)
    return True


def take_defaults(run: Controller, node: Node, template: Template, values: Values) -> None:
    """If nobody answered in time, outputs have their defaults, or those of their inputs."""
    for name, output in template.outputs.items():
        default = output.default
        if default is None and name in template.inputs:
            default = template.inputs[name].preset
        if default is None:
            message = f"raw output parameter '{name}' has not been set and does not have a default"
            run.end(node, "Error", message, raised=True)
            return
        try:
            node.outputs[name] = substitute(default, values)
        except NodeError as error:
            run.end(node, "Error", str(error), raised=True)
            return


async def answered(run: Controller, node: Node, template: Template) -> bool:
    """Fill in a person's answers; a task without outputs only needs permission to continue."""
    for name, output in template.outputs.items():
        accepted = template.inputs[name].enum if name in template.inputs else []
        question = f"{node.display}.{name}"
        answer = await run.answers.find(question, accepted, output.default)
        if answer is None:
            return wait_for_answer(run, node, question, accepted)
        node.outputs[name] = answer
    if not template.outputs and await run.answers.find(node.display, [], None) is None:
        return wait_for_answer(run, node, node.display, [])
    return True


def wait_for_answer(run: Controller, node: Node, question: str, accepted: list[str]) -> bool:
    run.waits_for.append(question)
    choices = f" ({', '.join(accepted)})" if accepted else ""
    node.message = f"waits for an answer: {question}{choices}"
    run.show(node)
    return False
