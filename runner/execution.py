"""A workflow's execution on this machine: nodes begin, run side by side, and end as Argo's would.

Every node is a coroutine. One that gives None has not ended: the run was interrupted, or it waits
for a person's answer; what comes after it does not begin.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import time
from collections import ChainMap
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from runner.answers import Answers
from runner.containers import PROGRESS, Stop, attempt
from runner.expressions import WHEN, EvaluationError, SyntaxRefused, parse
from runner.nodes import DONE, FAILED, LEAVES, SAVE_EVERY, Node, as_list, node_id, save, timestamp
from runner.reader import (
    OUTCOMES,
    REFERENCE,
    Container,
    Dag,
    Retry,
    Steps,
    Suspend,
    Task,
    Template,
    Values,
    Workflow,
)
from runner.references import NodeError, gathered, items_of, label, of_item, substitute

TYPES = {Container: "Pod", Dag: "DAG", Steps: "Steps", Suspend: "Suspend"}
AT_ONCE = max(8, 2 * (os.cpu_count() or 1))
"""Containers that run side by side at most, however wide a fan-out is; a cluster has its nodes."""

WRONG = (NodeError, SyntaxRefused, EvaluationError)


class Frame:
    """A DAG or a list of steps that runs: its node, its values, and how many may run in it.

    `blank` are the references to outputs of tasks that did not run.
    """

    def __init__(
        self, name: str, folder: Path, parallelism: float, *values: dict[str, str]
    ) -> None:
        self.name, self.folder = name, folder
        self.values: ChainMap[str, str] = ChainMap({}, *values)
        self.blank: set[str] = set()
        self.limit = limit(parallelism)


def limit(parallelism: float) -> Any:
    return nullcontext() if math.isinf(parallelism) else asyncio.Semaphore(int(parallelism))


class Run:
    """One execution of a workflow; `folder`/status.json holds its state at any time.

    `kept` are the nodes of an earlier execution of this run that are taken as they are; `only`, if
    it is not empty, is the one task of the entrypoint that runs.
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
        self.root = root
        self.workflow, self.name, self.uid, self.parameters = workflow, name, uid, parameters
        self.given, self.kept, self.report, self.only = answers, kept, report, only
        self.folder = Path("outputs", name)
        """Relative to the root, where the containers' processes run."""
        self.file = root / self.folder / "status.json"
        self.values = {"workflow.name": name, "workflow.uid": uid}
        self.values |= {f"workflow.parameters.{p}": parameters[p] for p in parameters}
        self.outputs: Values = {}
        self.phase, self.started = "Running", datetime.now(UTC)
        self.finished: datetime | None = None
        self.nodes: dict[str, Node] = {}
        self.locks: dict[str, asyncio.Lock] = {}
        self.waits_for: list[str] = []
        self.interrupted = False
        self.lock = -1
        """File descriptor of the lock on the run's folder, once it is taken."""
        self.unwritable: OSError | None = None
        """Why the status could not be written; the run ends with it."""

    async def execute(self) -> None:
        """Run the entrypoint and the exit handler."""
        self.stop = Stop(asyncio.Event())
        self.pods = limit(min(self.workflow.parallelism, AT_ONCE))
        self.answers = Answers(self.given, self.stop)
        saving = asyncio.ensure_future(self.keep_saving())
        root = await self.within_deadline(
            self.start(self.workflow.entrypoint, self.name, self.name)
        )
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
        expired = asyncio.get_running_loop().call_later(
            min(self.workflow.seconds, 10**8), self.stop.ask, "ran past the workflow's deadline"
        )
        try:
            root = await work
        finally:
            expired.cancel()
        if root is None and self.stop.why and not self.interrupted:
            root = self.nodes[self.name]
            for node in self.nodes.values():
                if node.phase == "Running":
                    node.end("Failed", self.stop.why)
        return root

    async def exit_handler(self) -> None:
        failed = [n for n in self.nodes.values() if n.type == "Pod" and n.failed]
        keys = ("displayName", "message", "templateName", "phase", "finishedAt")
        told = [{k: n.status(self.name)[k] for k in keys} for n in failed]
        self.values["workflow.status"] = self.phase
        self.values["workflow.failures"] = json.dumps(told)
        elapsed = datetime.now(UTC) - self.started
        self.values["workflow.duration"] = f"{elapsed.total_seconds():.6f}"
        self.stop.event.clear()
        self.stop.why = ""
        name = f"{self.name}.onExit"
        node = await self.start(self.workflow.on_exit, name, name)
        if node is None:
            self.phase = "Running"
        elif self.phase == "Succeeded" and node.failed:
            self.phase = node.phase

    async def start(self, template: str, name: str, display: str) -> Node | None:
        """Run a template that no task calls; its inputs are the workflow's parameters."""
        inputs = self.workflow.templates[template].inputs
        given = {p: value for p, value in self.parameters.items() if p in inputs}
        frame = Frame("", Path(), math.inf)
        return await self.call(name, display, template, given, frame, Path(display).suffix[1:])

    def interrupt(self) -> None:
        self.interrupted = True
        self.stop.ask("interrupted")

    @property
    def over(self) -> bool:
        return self.stop.event.is_set()

    async def call(
        self,
        name: str,
        display: str,
        template_name: str,
        arguments: Values,
        frame: Frame,
        folder: str,
    ) -> Node | None:
        """Run a template as the node `name`, as often as its retryStrategy says."""
        if name in self.kept:
            return self.keep(name)
        template = self.workflow.templates[template_name]
        async with AsyncExitStack() as held:
            await held.enter_async_context(frame.limit)
            for lock in sorted(template.locks):
                await held.enter_async_context(self.locks.setdefault(lock, asyncio.Lock()))
            if self.over:
                return None
            kind = "Retry" if template.retry else TYPES[type(template.body)]
            place = frame.folder / folder
            node = self.begin(Node(name, display, kind, template.name, frame.name, place))
            try:
                node.inputs = self.inputs(template, arguments)
            except NodeError as error:
                return self.end(node, "Error", str(error))
            values = {f"inputs.parameters.{n}": value for n, value in node.inputs.items()}
            until = time.monotonic() + template.seconds
            if template.retry:
                self.show(node)
                ended = await self.retried(node, template, template.retry, values, until)
            else:
                ended = await self.body(node, template, values, until)
        return node if ended else None

    def inputs(self, template: Template, arguments: Values) -> Values:
        """Values of a template's inputs; Argo holds only the workflow's against their enums."""
        found = {}
        for name, parameter in template.inputs.items():
            value = arguments.get(name)
            if value is None:
                value = substitute(parameter.preset or "", self.values)
            found[name] = value
        return found

    async def body(self, node: Node, template: Template, values: Values, until: float) -> bool:
        """Whether the node ended; what it runs is its template's one of four bodies."""
        match template.body:
            case Container() as container:
                return await self.container(node, template, container, values, until)
            case Dag(tasks):
                return await self.dag(node, template, tasks, values)
            case Steps(groups):
                return await self.steps(node, template, groups, values)
            case Suspend(seconds):
                return await self.suspend(node, template, seconds)

    async def container(
        self, node: Node, template: Template, container: Container, values: Values, until: float
    ) -> bool:
        async with self.pods:
            if self.over:
                node.end("Failed", self.stop.why)
                return not self.interrupted
            folder = self.place(node)
            self.show(node)
            try:
                done = await attempt(
                    self.root,
                    container,
                    template.outputs,
                    folder,
                    self.values | values,
                    until,
                    self.stop,
                    self.lock,
                )
            except NodeError as error:
                self.end(node, "Error", str(error))
                return True
        node.outputs, node.exit_code = done.outputs, done.exit_code
        node.progress = progress_of(self.root / folder)
        self.end(node, done.phase, done.message)
        if node.phase == "Succeeded":
            self.publish(node, template)
        return True

    def place(self, node: Node) -> Path:
        return self.folder / node.folder

    async def retried(
        self, node: Node, template: Template, retry: Retry, values: Values, until: float
    ) -> bool:
        """Run attempts, nodes of their own, until one succeeds or none may follow."""
        started = time.monotonic()
        last: Values = {f"lastRetry.{word}": "" for word in ("message", "status")}
        last |= {"lastRetry.exitCode": "0", "lastRetry.duration": "0"}
        for number in range(retry.limit + 1):
            kind, name = TYPES[type(template.body)], f"{node.name}({number})"
            # Attempts share a folder: what the last one wrote is what the node hands over.
            display = f"{node.display}({number})"
            one = Node(name, display, kind, node.template, node.name, node.folder)
            one.inputs = node.inputs
            self.begin(one)
            now = {**values, **last, "retries": str(number)}
            if not await self.body(one, template, now, until):
                return False
            node.take(one)
            pause = retry.pause * retry.factor**number
            elapsed = time.monotonic() - started
            last = {
                "lastRetry.status": one.phase,
                "lastRetry.exitCode": str(-1 if one.exit_code is None else one.exit_code),
                "lastRetry.message": one.message,
                "lastRetry.duration": str(int((now_utc() - one.started).total_seconds())),
            }
            if (
                one.phase not in retry.phases
                or number == retry.limit
                or elapsed + pause > retry.longest
                or self.over
                or time.monotonic() >= until
            ):
                break
            try:
                if retry.expression and not retry.expression.holds(last):
                    break
            except WRONG as error:
                self.end(node, "Error", str(error))
                return True
            node.phase, node.finished = "Running", None
            node.message += f"; attempt {number + 2} of {retry.limit + 1} follows in {pause} s"
            self.show(node)
            if await self.stopped_within(pause):
                node.end("Failed", self.stop.why)
                break
        self.show(node)
        return not (self.interrupted and node.phase == "Running")

    async def stopped_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(None if math.isinf(seconds) else seconds):
                return await self.stop.event.wait()
        except TimeoutError:
            return False

    async def dag(
        self, node: Node, template: Template, tasks: Iterable[Task], values: Values
    ) -> bool:
        frame = Frame(node.name, node.folder, template.parallelism, values, self.values)
        running: dict[str, asyncio.Future[Node | None]] = {}
        for task in tasks:
            before = {name: running[name] for name in task.upstreams}
            running[task.name] = asyncio.ensure_future(self.dag_task(task, frame, before))
        ended = dict(zip(running, await asyncio.gather(*running.values()), strict=True))
        if any(found is None for found in ended.values()):
            return False
        return self.close(node, template, frame, dag_phase(tasks, ended))

    async def dag_task(
        self, task: Task, frame: Frame, before: Mapping[str, Awaitable[Node | None]]
    ) -> Node | None:
        """Run a task once all that it depends on has ended."""
        facts: dict[str, bool] = {}
        for name in before:
            found = await before[name]
            if found is None and not (self.only and frame.name == self.name):
                return None
            if found is not None:
                facts |= self.outcomes(name, found)
        node_name = f"{frame.name}.{task.name}"
        if self.only and frame.name == self.name and task.name != self.only:
            node = self.keep(node_name) if node_name in self.kept else None
        elif self.interrupted:
            return None
        elif not task.depends.holds(facts):
            message = "omitted: depends condition not met"
            node = self.left_out(node_name, task, frame, "Omitted", message)
        else:
            node = await self.spread("tasks", node_name, task, frame)
        if node is not None:
            self.tell("tasks", task, node, frame)
        return node

    def outcomes(self, name: str, node: Node) -> dict[str, bool]:
        """What `depends` can say of a task that has ended."""
        facts = {f"{name}.{word}": node.phase == phase for word, phase in OUTCOMES.items()}
        members = [member.phase for member in self.members(node)]
        return facts | {
            name: node.phase in ("Succeeded", "Skipped"),
            f"{name}.AnySucceeded": "Succeeded" in members,
            f"{name}.AllFailed": bool(members) and all(phase == "Failed" for phase in members),
        }

    def members(self, group: Node) -> list[Node]:
        """The nodes that a fan-out made, in the order of its items."""
        opening = f"{group.name}("
        found = {
            int(node.name.removeprefix(opening).partition(":")[0]): node
            for node in self.nodes.values()
            if node.boundary == group.boundary and node.name.startswith(opening)
        }
        return [found[index] for index in sorted(found)]

    async def steps(
        self, node: Node, template: Template, groups: list[list[Task]], values: Values
    ) -> bool:
        frame = Frame(node.name, node.folder, template.parallelism, values, self.values)
        for number, group in enumerate(groups):
            name = f"{node.name}[{number}]"
            gathering = self.begin(Node(name, f"[{number}]", "StepGroup", node.template, node.name))
            ended = await asyncio.gather(
                *(self.spread("steps", f"{name}.{step.name}", step, frame) for step in group)
            )
            if any(found is None for found in ended):
                return False
            if failed := [found.display for found in ended if found and found.failed]:
                gathering.end("Failed", f"child {', '.join(failed)} failed")
                node.end("Failed", gathering.message)
                return True
            gathering.end("Succeeded")
            for step, found in zip(group, ended, strict=True):
                assert found is not None
                self.tell("steps", step, found, frame)
        return self.close(node, template, frame, "Succeeded")

    async def spread(self, kind: str, name: str, task: Task, frame: Frame) -> Node | None:
        """Run a task, or one for each of its items."""
        if task.items is None:
            return await self.one(name, task.name, task, frame)
        try:
            items = items_of(task.items, frame.values)
        except NodeError as error:
            return self.left_out(name, task, frame, "Error", str(error))
        if not items:
            return self.left_out(name, task, frame, "Skipped", "Skipped, empty params")
        group = Node(name, task.name, "TaskGroup", task.template, frame.name)
        # A list of steps holds the items' nodes itself.
        if kind == "tasks":
            self.begin(group)
        ended = await asyncio.gather(
            *(
                self.one(name + label(i, item), task.name + label(i, item), task, frame, item, i)
                for i, item in enumerate(items)
            )
        )
        if any(found is None for found in ended):
            return None
        failed = [found.phase for found in ended if found and found.failed]
        group.end(failed[-1] if failed else "Succeeded")
        return group

    async def one(
        self,
        name: str,
        display: str,
        task: Task,
        frame: Frame,
        item: Any = None,
        index: int | None = None,
    ) -> Node | None:
        """Run a task, or the member of a fan-out that an item makes."""
        values = frame.values.new_child({} if index is None else of_item(item))
        folder = task.name if index is None else f"{task.name}.{index}"
        try:
            when = substitute(task.when, values)
            if when and not parse(when, WHEN).holds({}):
                message = f"when '{when}' evaluated false"
                return self.left_out(name, task, frame, "Skipped", message, display)
            arguments = {n: substitute(source, values) for n, source in task.arguments.items()}
        except WRONG as error:
            return self.left_out(name, task, frame, "Error", str(error), display)
        return await self.call(name, display, task.template, arguments, frame, folder)

    def left_out(
        self, name: str, task: Task, frame: Frame, phase: str, message: str, display: str = ""
    ) -> Node:
        """A node of a task that did not run."""
        node = self.begin(Node(name, display or task.name, "Skipped", task.template, frame.name))
        return self.end(node, phase, message)

    def tell(self, kind: str, task: Task, node: Node, frame: Frame) -> None:
        """Make a task's outputs known to those that come after it."""
        told = frame.values.maps[0]
        told[f"{kind}.{task.name}.status"] = node.phase
        for name in self.workflow.templates[task.template].outputs:
            reference = f"{kind}.{task.name}.outputs.parameters.{name}"
            if node.type == "TaskGroup":
                succeeded = [m for m in self.members(node) if m.phase == "Succeeded"]
                found = [m.outputs[name] for m in succeeded if name in m.outputs]
                if found:
                    told[reference] = gathered(found)
            elif name in node.outputs:
                told[reference] = node.outputs[name]
            elif node.phase in ("Skipped", "Omitted"):
                told[reference] = ""
                frame.blank.add(reference)

    def close(self, node: Node, template: Template, frame: Frame, phase: str) -> bool:
        """End a DAG or a list of steps with the outputs that it takes from its tasks."""
        if phase == "Succeeded":
            try:
                for name, output in template.outputs.items():
                    made = {found.strip() for found in REFERENCE.findall(output.reference)}
                    if not made & frame.blank and made <= frame.values.keys():
                        node.outputs[name] = substitute(output.reference, frame.values)
                    elif output.default is not None:
                        node.outputs[name] = output.default
                    else:
                        raise NodeError(f"{output.reference} has no value, and {name} no default")
            except NodeError as error:
                self.end(node, "Error", str(error))
                return True
        self.end(node, phase)
        if phase == "Succeeded":
            self.publish(node, template)
        return True

    def publish(self, node: Node, template: Template) -> None:
        """Make outputs with a globalName known to the whole workflow."""
        for name, output in template.outputs.items():
            if output.global_name and name in node.outputs:
                self.outputs[output.global_name] = node.outputs[name]
                reference = f"workflow.outputs.parameters.{output.global_name}"
                self.values[reference] = node.outputs[name]

    async def suspend(self, node: Node, template: Template, seconds: float) -> bool:
        self.show(node)
        if not math.isinf(seconds):
            if await self.stopped_within(seconds):
                return False
        elif not await self.answered(node, template):
            return False
        self.end(node, "Succeeded")
        self.publish(node, template)
        return True

    async def answered(self, node: Node, template: Template) -> bool:
        """Fill in what a person has to say; without outputs, being told to go on is enough."""
        for name, output in template.outputs.items():
            accepted = template.inputs[name].enum if name in template.inputs else []
            question = f"{node.display}.{name}"
            answer = await self.answers.find(question, accepted, output.default)
            if answer is None:
                return self.wait_for_answer(node, question, accepted)
            node.outputs[name] = answer
        if not template.outputs and await self.answers.find(node.display, [], None) is None:
            return self.wait_for_answer(node, node.display, [])
        return True

    def wait_for_answer(self, node: Node, question: str, accepted: list[str]) -> bool:
        self.waits_for.append(question)
        choices = f" ({', '.join(accepted)})" if accepted else ""
        node.message = f"waits for an answer: {question}{choices}"
        self.show(node)
        return False

    def keep(self, name: str) -> Node:
        """Take over a node of an earlier execution, and all that belongs to it."""
        for other, node in self.kept.items():
            if other == name or other.startswith((f"{name}.", f"{name}(", f"{name}[")):
                self.nodes[other] = node
        node = self.nodes[name]
        if node.template in self.workflow.templates and node.phase == "Succeeded":
            self.publish(node, self.workflow.templates[node.template])
        self.show(node)
        return node

    def begin(self, node: Node) -> Node:
        self.nodes[node.name] = node
        return node

    def end(self, node: Node, phase: str, message: str = "") -> Node:
        node.end(phase, message)
        self.show(node)
        return node

    def is_work(self, node: Node) -> bool:
        """Whether a node stands for work that a person would ask about."""
        if node.boundary in self.nodes and self.nodes[node.boundary].type == "Retry":
            return False
        return node.type in (*LEAVES, "Retry")

    def show(self, node: Node) -> None:
        if self.is_work(node):
            self.report(node)

    async def keep_saving(self) -> None:
        while True:
            for node in self.nodes.values():
                if node.type == "Pod" and node.phase == "Running":
                    node.progress = progress_of(self.root / self.place(node)) or node.progress
            try:
                self.save()
            except OSError as error:
                self.unwritable = error
                return self.interrupt()
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


def dag_phase(tasks: Iterable[Task], ended: Mapping[str, Node | None]) -> str:
    """A DAG fails with its last tasks: one that did not run ends as those before it ended."""
    branches: dict[str, str] = {}
    inner = set[str]()
    for task in tasks:
        node = ended[task.name]
        assert node is not None
        inner |= task.upstreams
        failed = [branches[name] for name in task.upstreams if branches[name] in FAILED]
        passed_on = failed[0] if failed else "Succeeded"
        branches[task.name] = node.phase if node.phase in ("Succeeded", *FAILED) else passed_on
    last = [phase for name, phase in branches.items() if name not in inner and phase in FAILED]
    return last[0] if last else "Succeeded"


def progress_of(folder: Path) -> str:
    """What a step wrote of its progress, `done/total`; empty if it wrote nothing."""
    try:
        lines = (folder / PROGRESS).read_text(encoding="utf-8").split()
    except OSError:
        return ""
    return lines[-1] if lines else ""


def now_utc() -> datetime:
    return datetime.now(UTC)
