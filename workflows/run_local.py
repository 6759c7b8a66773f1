"""Run a rendered workflow on this machine: the file that Argo takes, container by container.

    python workflows/run_local.py workflows/pipeline.yaml -p profile=smoke-vision

A container becomes a process in the repository's root; its `/tmp/outputs` becomes a folder of the
node's own under outputs/. What this runner would not do as Argo does is refused by name before
anything starts. Tasks run one after another, and a failed one stops only what depends on it.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

import click
from argo_subset import (
    OUT_DIR,
    PHASES,
    NodeError,
    Object,
    Refused,
    Task,
    Template,
    Values,
    Workflow,
    evaluate,
    listed,
    read,
    substitute,
    unquoted,
)

ROOT = Path(__file__).parents[1]

GRACE = 30
"""Seconds between SIGTERM and SIGKILL, as in Kubernetes."""

FAILED = ("Failed", "Error")
STYLES = {"Succeeded": "green", "Failed": "bold red", "Error": "bold red", "Skipped": "yellow"}


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("-p", "given", metavar="NAME=VALUE", multiple=True, help="Set a workflow parameter.")
@click.option("--dry-run", is_flag=True, help="Print the commands; run nothing.")
def run_local(file: Path, given: tuple[str, ...], dry_run: bool) -> None:
    """Run the Argo workflow in FILE on this machine.

    Ends with 0 if the workflow succeeded, else with the exit code of the step that failed.
    """
    workflow = read(file)
    run = Run(workflow, parameter_values(workflow, given))
    if dry_run:
        run.print_commands()
        return
    with run.stopped_by_signals():
        exit_code = run.execute()
    for node in run.nodes:
        click.echo(run.line(node))
    click.echo(f"status  {run.folder / 'status.json'}")
    sys.exit(exit_code)


def parameter_values(workflow: Workflow, given: tuple[str, ...]) -> Values:
    """What -p says, else the file's presets."""
    declared = workflow.parameters
    values = {name: p.preset for name, p in declared.items() if p.preset is not None}
    for setting in given:
        name, equals, value = setting.partition("=")
        if not equals or name not in declared:
            raise Refused(f"-p {setting} sets no parameter; they are {listed(declared)}")
        values[name] = value
    for name, parameter in declared.items():
        if name not in values:
            raise Refused(f"parameter {name} has no default: give it with -p {name}=VALUE")
        if parameter.enum and values[name] not in parameter.enum:
            raise Refused(f"-p {name}={values[name]} is none of {listed(parameter.enum)}")
    return values


@dataclass
class Node:
    """A task of this run, with the facts that Argo has in `status.nodes`."""

    name: str
    template: str
    phase: str = "Running"
    message: str = ""
    inputs: Values = field(default_factory=dict)
    outputs: Values = field(default_factory=dict)
    exit_code: int | None = None
    started: datetime = field(default_factory=lambda: datetime.now(UTC))
    finished: datetime | None = None

    def end(self, phase: str, message: str = "") -> None:
        self.phase, self.message, self.finished = phase, message, datetime.now(UTC)

    def status(self, workflow: str) -> Object:
        outputs: Object = {"parameters": as_list(self.outputs)}
        if self.exit_code is not None:
            outputs["exitCode"] = str(self.exit_code)
        return {
            "id": f"{workflow}.{self.name}",
            "name": f"{workflow}.{self.name}",
            "displayName": self.name,
            "type": self.phase if self.phase in ("Skipped", "Omitted") else "Pod",
            "templateName": self.template,
            "phase": self.phase,
            "message": self.message,
            "startedAt": timestamp(self.started),
            "finishedAt": timestamp(self.finished),
            "inputs": {"parameters": as_list(self.inputs)},
            "outputs": outputs,
        }


def as_list(values: Values) -> list[Values]:
    return [{"name": name, "value": value} for name, value in values.items()]


def timestamp(moment: datetime | None) -> str | None:
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}" if moment else None


class Run:
    """One execution of a workflow; `folder`/status.json holds its state at any time."""

    def __init__(self, workflow: Workflow, parameters: Values) -> None:
        from rich.console import Console

        uid = str(uuid.uuid4())
        self.workflow = workflow
        self.name = f"{workflow.prefix}{datetime.now():%Y%m%d-%H%M%S}-{uid[:4]}"
        self.folder = Path("outputs", self.name)
        """Relative to the root, where the containers' processes run."""
        self.values = {"workflow.name": self.name, "workflow.uid": uid}
        self.values |= {f"workflow.parameters.{name}": parameters[name] for name in parameters}
        self.phase, self.started = "Running", datetime.now(UTC)
        self.finished: datetime | None = None
        self.nodes: list[Node] = []
        self.signals: list[int] = []
        self.until = time.monotonic() + workflow.seconds
        self.console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)

    @contextmanager
    def stopped_by_signals(self) -> Iterator[None]:
        """Let a signal end the container that runs, then the run."""

        def stop(signum: int, frame: FrameType | None) -> None:
            self.signals.append(signum)

        handled = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
        if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
            handled.remove(signal.SIGHUP)  # nohup asked for it
        before = {signum: signal.signal(signum, stop) for signum in handled}
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)

    def execute(self) -> int:
        """Run the tasks; the exit code of this command."""
        (ROOT / self.folder).mkdir(parents=True)
        latest = ROOT / self.folder.with_name(f".{self.name}")
        latest.symlink_to(self.name)
        latest.replace(latest.with_name("latest"))
        done: dict[str, Node] = {}
        ends: dict[str, str] = {}
        for task in self.workflow.tasks:
            if self.signals:
                break
            node = done[task.name] = self.run_task(task, done)
            # A task that did not run ends its branch as the tasks before it ended theirs.
            before = [ends.get(upstream) for upstream in task.upstreams]
            passed_on = "Failed" if any(phase in FAILED for phase in before) else "Succeeded"
            ends[task.name] = passed_on if node.phase in ("Skipped", "Omitted") else node.phase
        inner = set[str]().union(*(task.upstreams for task in self.workflow.tasks))
        failed = any(phase in FAILED for name, phase in ends.items() if name not in inner)
        self.phase = "Failed" if failed or self.signals else "Succeeded"
        self.finished = datetime.now(UTC)
        self.save()
        if self.signals:
            return 128 + self.signals[0]
        codes = [node.exit_code or 1 for node in self.nodes if node.phase in FAILED]
        return codes[0] if failed else 0

    def run_task(self, task: Task, done: dict[str, Node]) -> Node:
        node = Node(task.name, task.template.name)
        self.nodes.append(node)

        def ended_so(leaf: str) -> bool:
            name, _, word = leaf.partition(".")
            wanted = [PHASES[word]] if word else ["Succeeded", "Skipped"]
            return leaf == "true" or done[name].phase in wanted

        try:
            if not evaluate(task.depends, ended_so):
                node.end("Omitted", f"it depends on {listed(task.upstreams)}")
            elif not evaluate(task.when, lambda leaf: substitute(unquoted(leaf), self.values)):
                node.end("Skipped", "its when is false")
            else:
                node.inputs = self.inputs(task)
                for name, value in node.inputs.items():
                    accepted = task.template.inputs[name].enum
                    if accepted and value not in accepted:
                        raise NodeError(f"input {name}={value} is none of {listed(accepted)}")
                self.report(node)
                self.run_container(node, task.template)
        except NodeError as error:
            node.end("Error", str(error))
        defaults = {name: output.default for name, output in task.template.outputs.items()}
        node.outputs = {n: d for n, d in defaults.items() if d is not None} | node.outputs
        for name, value in node.outputs.items():
            self.values[f"tasks.{task.name}.outputs.parameters.{name}"] = value
        self.report(node)
        return node

    def inputs(self, task: Task) -> Values:
        declared = task.template.inputs.items()
        given = {name: task.arguments.get(name, p.preset or "") for name, p in declared}
        return {name: substitute(value, self.values) for name, value in given.items()}

    def run_container(self, node: Node, template: Template) -> None:
        retry = template.retry
        for attempt in range(retry.limit + 1):
            self.attempt(node, template)
            last = {
                "lastRetry.status": node.phase,
                "lastRetry.exitCode": str(-1 if node.exit_code is None else node.exit_code),
            }

            def fact(leaf: str, last: Values = last) -> str | int:
                return int(leaf) if re.fullmatch(r"-?\d+", leaf) else last.get(leaf, unquoted(leaf))

            over = self.signals or time.monotonic() >= self.until or attempt == retry.limit
            if node.phase == "Succeeded" or over or not evaluate(retry.expression, fact):
                return
            pause = retry.pause * retry.factor**attempt
            node.phase, node.finished = "Running", None
            node.message += f"; attempt {attempt + 2} of {retry.limit + 1} follows in {pause} s"
            self.report(node)
            resume = time.monotonic() + pause
            while time.monotonic() < resume and not self.signals:
                time.sleep(0.05)
            if self.signals:
                return node.end("Failed", "interrupted")

    def attempt(self, node: Node, template: Template) -> None:
        """Run a container's process to its end."""
        folder = self.folder / node.name
        # A file that an earlier attempt left must not pass for a result of this one.
        shutil.rmtree(ROOT / folder, ignore_errors=True)
        (ROOT / folder).mkdir()
        command, environment = self.command(node, template)
        until = min(self.until, time.monotonic() + template.seconds)
        try:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=os.environ | environment,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError as error:
            node.exit_code = 127
            return node.end("Failed", f"cannot start {command[0]}: {error.strerror}")
        stopped = self.wait(process, until)
        # Death by a signal is reported as a shell and Kubernetes do it: 128 and the signal.
        code = process.returncode
        node.exit_code = 128 - code if code < 0 else code
        node.outputs = {}
        missing = []
        for name, output in template.outputs.items():
            file = ROOT / folder / output.path
            if file.is_file():
                node.outputs[name] = file.read_text("utf-8", "replace").removesuffix("\n")
            elif output.default is None:
                missing.append(name)
        if stopped or code:
            node.end("Failed", stopped or f"exit code {node.exit_code}")
        elif missing:
            node.end("Error", f"output {listed(missing)} has no default and was not written")
        else:
            node.end("Succeeded")

    def command(self, node: Node, template: Template) -> tuple[list[str], Values]:
        """A container's command line and its own variables, as they are on this machine."""
        values = self.values | {f"inputs.parameters.{n}": v for n, v in node.inputs.items()}
        folder = str(self.folder / node.name)

        def here(word: str) -> str:
            return substitute(re.sub(rf"{OUT_DIR}(?![\w.-])", folder, word), values)

        command = [here(word) for word in template.command]
        if command[0] == "python":
            command[0] = sys.executable
        return command, {name: here(value) for name, value in template.environment.items()}

    def wait(self, process: subprocess.Popen[bytes], until: float) -> str:
        """Wait for a process and end what it leaves behind; why it was stopped, if it was."""
        stopped = ""
        while not stopped:
            try:
                process.wait(timeout=0.5)
                break
            except subprocess.TimeoutExpired:
                if self.signals:
                    stopped = "interrupted"
                elif time.monotonic() >= until:
                    stopped = "ran longer than activeDeadlineSeconds"
        if stopped:
            os.killpg(process.pid, signal.SIGTERM)
            # A second signal asks for no more patience.
            killed_at = time.monotonic() + GRACE
            while process.poll() is None and time.monotonic() < killed_at and len(self.signals) < 2:
                time.sleep(0.05)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return stopped

    def report(self, node: Node) -> None:
        self.save()
        self.console.print(self.line(node), style=STYLES.get(node.phase))

    def line(self, node: Node) -> str:
        width = max(len(task.name) for task in self.workflow.tasks)
        seconds = ((node.finished or datetime.now(UTC)) - node.started).total_seconds()
        return f"{node.name:{width}}  {node.phase:9}  {seconds:7.1f} s  {node.message}".rstrip()

    def save(self) -> None:
        """Write status.json as a whole or not at all."""
        status = {
            "metadata": {"name": self.name, "uid": self.values["workflow.uid"]},
            "status": {
                "phase": self.phase,
                "startedAt": timestamp(self.started),
                "finishedAt": timestamp(self.finished),
                "nodes": {f"{self.name}.{n.name}": n.status(self.name) for n in self.nodes},
            },
        }
        part = ROOT / self.folder / ".status.json.part"
        part.write_text(json.dumps(status, indent=2) + "\n", encoding="utf-8")
        part.replace(part.with_name("status.json"))

    def print_commands(self) -> None:
        """Print each task's command; what only a run can know stays a reference."""
        for task in self.workflow.tasks:
            for name in task.template.outputs:
                reference = f"tasks.{task.name}.outputs.parameters.{name}"
                self.values[reference] = f"{{{{{reference}}}}}"
            node = Node(task.name, task.template.name, inputs=self.inputs(task))
            click.echo(f"{task.name}: {shlex.join(self.command(node, task.template)[0])}")


if __name__ == "__main__":
    run_local()
