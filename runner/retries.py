"""Runs a template again until it succeeds or may not be retried."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime

from runner.controller import Controller
from runner.expansion import BROKEN
from runner.frames import Invocation
from runner.language import Retry, Values
from runner.nodes import Node
from runner.references import NodeError

FIRST = {"status": "", "message": "", "exitCode": "0", "duration": "0"}
"""Values of `lastRetry.` for the first attempt."""

NO_DURATION = "no base duration specified for retryStrategy"


async def run_attempts(run: Controller, node: Node, retry: Retry, invocation: Invocation) -> bool:
    """Run the attempts, each a child node; returns whether the node ended."""
    run.show(node)
    started = time.monotonic()
    last = FIRST
    for number in range(retry.limit + 1):
        attempt = await run_attempt(run, node, number, last, invocation)
        if attempt is None:
            return False
        node.end_as(attempt)
        if not attempt.failed:
            break
        last = facts_of(attempt)
        try:
            pause = pause_before_next(run, retry, attempt, number, time.monotonic() - started)
        except BROKEN as error:
            node.outputs, node.exit_code = {}, None
            run.end(node, "Error", str(error), raised=True)
            return True
        if isinstance(pause, str):
            node.message, node.hint = pause, explained(attempt) if pause != attempt.message else ""
            break
        node.phase, node.finished = "Running", None
        node.message += f"; attempt {number + 2} of {retry.limit + 1} follows in {pause:g} s"
        run.show(node)
        if not await run.stop.unless_requested(asyncio.sleep(pause)):
            if run.interrupted:
                return False
            node.end_as(attempt)
            node.message = "retry exceeded workflow deadline"
            break
    run.show(node)
    return True


async def run_attempt(
    run: Controller, node: Node, number: int, last: Values, invocation: Invocation
) -> Node | None:
    """One attempt; all attempts share a folder, and its last files are the outputs."""
    template = invocation.template
    attempt = Node(
        f"{node.name}({number})",
        f"{node.display}({number})",
        template.definition.node_type,
        node.template,
        node.name,
        node.folder,
        inputs=node.inputs,
    )
    run.begin(attempt, [node.name])
    values = {f"lastRetry.{word}": text for word, text in last.items()}
    values |= {**invocation.values, "retries": str(number)}
    ended = await run.run_once(attempt, Invocation(template, values, invocation.locks))
    return attempt if ended else None


def facts_of(attempt: Node) -> Values:
    """Values of `lastRetry.` for the container of the next attempt."""
    elapsed = ((attempt.finished or datetime.now(UTC)) - attempt.started).total_seconds()
    return {
        "status": attempt.phase,
        "message": attempt.message,
        "exitCode": "0" if attempt.exit_code is None else str(attempt.exit_code),
        "duration": str(int(elapsed)),
    }


def explained(attempt: Node) -> str:
    """What became of the last attempt, which Argo's message about the whole does not say."""
    return f"{attempt.message}; {attempt.hint}" if attempt.hint else attempt.message


def pause_before_next(
    run: Controller, retry: Retry, attempt: Node, number: int, elapsed: float
) -> float | str:
    """Seconds until the next attempt, or Argo's message if none may follow. Raises one of BROKEN.

    The order of the reasons is that of Argo's `processNodeRetries`.
    """
    if run.stop.requested:
        return attempt.message
    if elapsed > retry.longest:
        return "Max duration limit exceeded"
    if retry.pause is None:
        raise NodeError(NO_DURATION)
    pause = retry.pause * retry.factor**number
    if elapsed + pause > retry.longest:
        return "Backoff would exceed max duration limit"
    if attempt.phase not in retry.phases:
        return attempt.message
    if number == retry.limit:
        return "No more retries left"
    if retry.expression is not None:
        facts = facts_of(attempt)
        # Without an exit code an expression gets -1 and a container gets 0.
        if attempt.exit_code is None:
            facts["exitCode"] = "-1"
        if not retry.expression.is_true({f"lastRetry.{k}": v for k, v in facts.items()}):
            return "retryStrategy.expression evaluated to false"
    return pause
