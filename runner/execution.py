"""A workflow's execution on this machine: nodes begin, run side by side, and end as Argo's would.

Every node is a coroutine. A result of None means that the node has not ended: the run was
interrupted, or the node waits for a person's answer. No node after it begins.
"""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path

from runner.answers import Answers
from runner.containers import LATE, Stop, attempt
from runner.controller import Controller
from runner.dags import run_dag
from runner.frames import Frame, Invocation, semaphore
from runner.language import (
    Container,
    Dag,
    Resource,
    Steps,
    Suspend,
    Template,
    Values,
    Workflow,
)
from runner.lists import run_steps
from runner.mutexes import Mutexes, refuse_deadlock
from runner.nodes import DONE, TOO_LATE, Node, failures
from runner.programs import Programs
from runner.record import progress_of
from runner.references import NodeError, substitute
from runner.resources import run_resource
from runner.retries import run_attempts
from runner.suspension import run_suspend

AT_ONCE = max(8, 2 * (os.cpu_count() or 1))
"""Most containers that run side by side, however wide a fan-out is; a cluster has its nodes."""


class Run(Controller):
    """One execution of a workflow.

    `answers` are for suspended tasks; `only`, if it is not empty, is the one task of the entrypoint
    that runs.
    """

    def __init__(
        self,
        root: Path,
        workflow: Workflow,
        name: str,
        uid: str,
        parameters: Values,
        answers: Values,
        kept: Mapping[str, Node],
        report: Callable[[Node], None],
        only: str = "",
    ) -> None:
        super().__init__(root, workflow, name, uid, parameters, kept, report)
        self.given_answers, self.only = answers, only
        self.mutexes = Mutexes()
        self.waits_for: list[str] = []
        self.jobs: set[str] = set()
        self.interrupted = False
        self.stop = Stop()
        self.programs = Programs()

    async def execute(self) -> None:
        """Run the entrypoint and the exit handler."""
        await self.programs.warm(self.root)
        try:
            await self.all_nodes()
        finally:
            await self.programs.end()

    async def all_nodes(self) -> None:
        self.pods = semaphore(min(self.workflow.parallelism, AT_ONCE))
        self.answers = Answers(self.given_answers, self.stop)
        saving = asyncio.ensure_future(self.keep_saving(self.interrupt))
        root = await self.within_deadline(self.start(self.workflow.entrypoint, self.name))
        if self.only:
            selected = self.nodes.get(f"{self.name}.{self.only}")
            root = selected if selected and selected.phase in DONE else None
        if root is not None:
            self.phase = "Succeeded" if root.phase == "Skipped" else root.phase
            if self.workflow.on_exit and not self.interrupted and not self.only:
                await self.exit_handler()
        if self.interrupted:
            self.phase = "Failed"
            for node in self.nodes.values():
                if node.phase == "Running":
                    node.end("Failed", "interrupted")
        if self.phase in DONE:
            self.finished = datetime.now(UTC)
        saving.cancel()
        if self.unwritable:
            raise self.unwritable
        self.save()

    async def within_deadline(self, work: Awaitable[Node | None]) -> Node | None:
        """Run the entrypoint; past the deadline containers are stopped, and no others begin."""
        if not self.workflow.seconds:
            self.stop.ask(LATE)
        expired = asyncio.get_running_loop().call_later(
            min(self.workflow.seconds, 10**8), self.stop.ask, LATE
        )
        try:
            return await work
        finally:
            expired.cancel()

    async def exit_handler(self) -> None:
        self.values["workflow.status"] = self.phase
        self.values["workflow.failures"] = failures(self.name, self.nodes.values())
        elapsed = datetime.now(UTC) - self.started
        self.values["workflow.duration"] = f"{elapsed.total_seconds():.6f}"
        self.stop.clear()
        node = await self.start(self.workflow.on_exit, f"{self.name}.onExit", "onExit")
        if node is None:
            self.phase = "Running"
        elif self.phase == "Succeeded" and node.failed:
            self.phase = node.phase

    async def start(self, template: str, name: str, folder: str = "") -> Node | None:
        """Run a template that no task calls; its inputs are the workflow's parameters.

        Its files lie in `folder` of the run's.
        """
        inputs = self.workflow.templates[template].inputs
        arguments = {p: value for p, value in self.parameters.items() if p in inputs}
        frame = Frame("", Path(), math.inf, frozenset())
        return await self.call(name, name, template, arguments, frame, folder, [])

    def interrupt(self, *, at_once: bool = False) -> None:
        """Stop all that runs, and begin nothing more; `at_once` gives nothing time for it."""
        self.interrupted = True
        self.stop.ask("interrupted", at_once=at_once)

    async def call(
        self,
        name: str,
        display: str,
        template_name: str,
        arguments: Values,
        frame: Frame,
        folder: str,
        parents: list[str],
    ) -> Node | None:
        """Run a template as the node `name`, as often as its retryStrategy says."""
        if name in self.kept:
            return self.keep(name, parents)
        template = self.workflow.templates[template_name]
        async with AsyncExitStack() as stack:
            if frame.limit and await self.stop.unless_requested(frame.limit.acquire()):
                stack.callback(frame.limit.release)
            if self.interrupted:
                return None
            node_type = "Retry" if template.retry else template.definition.node_type
            place = frame.folder / folder
            node = Node(name, display, node_type, template.name, frame.name, place)
            self.begin(node, parents)
            try:
                node.inputs = self.inputs(template, arguments)
                values = {f"inputs.parameters.{n}": value for n, value in node.inputs.items()}
                locks = [substitute(lock, self.values | values) for lock in template.locks]
                refuse_deadlock(locks, frame.locks)
            except NodeError as error:
                return self.end(node, "Error", str(error), raised=True)
            if not await self.mutexes.acquire(stack, locks, self.stop, template.seconds):
                if self.interrupted:
                    return None
                return self.end(node, "Failed", TOO_LATE if self.stop.requested else "timeout")
            invocation = Invocation(template, values, frame.locks | set(locks))
            if template.retry:
                ended = await run_attempts(self, node, template.retry, invocation)
            else:
                ended = await self.run_once(node, invocation)
        return node if ended else None

    def inputs(self, template: Template, arguments: Values) -> Values:
        """Values of a template's inputs; Argo checks enums only for the workflow's parameters."""
        return {
            name: arguments[name]
            if name in arguments
            else substitute(parameter.preset or "", self.values)
            for name, parameter in template.inputs.items()
        }

    async def run_once(self, node: Node, invocation: Invocation) -> bool:
        """Run the template's container, DAG, steps or wait; returns whether the node ended."""
        match invocation.template.definition:
            case Container() as container:
                return await self.run_container(node, container, invocation)
            case Resource() as resource:
                return await run_resource(self, node, resource, invocation)
            case Dag() as dag:
                return await run_dag(self, node, dag, invocation)
            case Steps(groups):
                return await run_steps(self, node, groups, invocation)
            case Suspend(duration):
                return await run_suspend(self, node, duration, invocation)

    async def run_container(self, node: Node, container: Container, invocation: Invocation) -> bool:
        async with AsyncExitStack() as stack:
            if await self.stop.unless_requested(self.pods.acquire()):
                stack.callback(self.pods.release)
            if self.stop.requested:
                node.end("Failed", "interrupted" if self.interrupted else TOO_LATE)
                return not self.interrupted
            if container.seconds == 0:
                message = "spec.activeDeadlineSeconds: Invalid value: 0: must be between 1 and "
                self.end(node, "Error", f"{message}2147483647, inclusive", raised=True)
                return True
            self.show(node)
            try:
                result = await attempt(
                    self.root,
                    container,
                    invocation.template.outputs,
                    self.place(node),
                    self.values | invocation.values,
                    invocation.template.seconds,
                    self.stop,
                    self.programs,
                )
            except NodeError as error:
                self.end(node, "Error", str(error), raised=True)
                return True
        node.outputs, node.exit_code, node.hint = result.outputs, result.exit_code, result.hint
        node.progress = progress_of(self.root / self.place(node))
        self.end(node, result.phase, result.message)
        # Argo publishes what a pod wrote, even if the pod failed.
        self.publish(node)
        return True
