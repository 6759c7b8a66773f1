"""Run a rendered workflow on this machine: the file that Argo takes, container by container.

    python workflows/run_local.py workflows/pipeline.yaml -p profile=smoke-vision

A container becomes a process in the repository's root; its `/tmp/outputs` becomes a folder of the
node's own under outputs/. What this runner would not do as Argo does is refused by name before
anything starts. Tasks run one after another, and a failed one stops only what depends on it.
"""

from __future__ import annotations

import ast
import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import click
import yaml

ROOT = Path(__file__).parents[1]
OUT_DIR = "/tmp/outputs"

GRACE = 30
"""Seconds between SIGTERM and SIGKILL, as in Kubernetes."""

PLACEMENT = (
    "affinity automountServiceAccountToken executor nodeSelector podSpecPatch securityContext "
    "serviceAccountName tolerations volumes"
)
FIELDS = {
    "workflow": ("apiVersion kind metadata spec", ""),
    "metadata": ("generateName name", "annotations labels namespace"),
    "spec": (
        "activeDeadlineSeconds arguments entrypoint templates",
        f"{PLACEMENT} imagePullSecrets podGC podMetadata ttlStrategy workflowMetadata",
    ),
    "container template": (
        "activeDeadlineSeconds container inputs name outputs retryStrategy",
        f"{PLACEMENT} metadata priorityClassName",
    ),
    "container": (
        "args command env",
        "image imagePullPolicy name resources securityContext volumeMounts",
    ),
    "env": ("name value valueFrom", ""),
    "parameters": ("parameters", ""),
    "parameter": ("default enum name value", "description"),
    "output": ("name valueFrom", "description"),
    "valueFrom": ("default path", ""),
    "retryStrategy": ("backoff expression limit", "affinity"),
    "backoff": ("duration factor", ""),
    "dag template": ("dag name", "metadata"),
    "dag": ("tasks", ""),
    "task": ("arguments dependencies depends name template when", ""),
}
"""By kind of object: the fields obeyed here, and the fields that only concern Kubernetes."""

PHASES = {
    "Succeeded": "Succeeded",
    "Failed": "Failed",
    "Errored": "Error",
    "Skipped": "Skipped",
    "Omitted": "Omitted",
}
"""Phase of a node by the word that `depends` has for it."""

FAILED = ("Failed", "Error")
STYLES = {"Succeeded": "green", "Failed": "bold red", "Error": "bold red", "Skipped": "yellow"}
UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}

Object = dict[str, Any]
Values = dict[str, str]
"""Values by name, or by reference such as `tasks.evaluate.outputs.parameters.run-id`."""


class Refused(click.ClickException):
    """A user's mistake, or a construct that does not run here; nothing has been started."""

    exit_code = 2


class NodeError(Exception):
    """A node cannot start; the workflow goes on as after a failure."""


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


class Parameter(NamedTuple):
    """A declared parameter; without a preset it has to be given, and `enum` may be empty."""

    preset: str | None
    enum: list[str]


class Output(NamedTuple):
    """A file under `/tmp/outputs` that becomes a parameter, and what it is when it is missing."""

    path: str
    default: str | None


class Retry(NamedTuple):
    """How often, when, and after how many seconds a container is started again."""

    limit: int
    expression: ast.expr
    pause: int
    factor: int


@dataclass(frozen=True)
class Template:
    """A container template; texts hold their `{{references}}` still."""

    name: str
    inputs: dict[str, Parameter]
    outputs: dict[str, Output]
    command: list[str]
    environment: Values
    seconds: float
    retry: Retry


@dataclass(frozen=True)
class Task:
    """A task of the DAG; `upstreams` are the tasks that `depends` names."""

    name: str
    template: Template
    depends: ast.expr
    upstreams: set[str]
    when: ast.expr
    arguments: Values


@dataclass(frozen=True)
class Workflow:
    """A workflow that runs here; its tasks stand in an order that respects `depends`."""

    prefix: str
    parameters: dict[str, Parameter]
    tasks: list[Task]
    seconds: float


def read(file: Path) -> Workflow:
    """The workflow in a file; refuses by name what this runner would not do as Argo does."""
    try:
        document = checked(str(file), "workflow", yaml.safe_load(file.read_text(encoding="utf-8")))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise Refused(f"{file} is not YAML: {' '.join(str(error).split())}") from error
    if document.get("kind") != "Workflow":
        raise Refused(f"{file}: kind {document.get('kind')} does not run here, only Workflow")
    metadata = checked("metadata", "metadata", document.get("metadata"))
    spec = checked("spec", "spec", document.get("spec"))
    parameters = read_parameters("spec", spec.get("arguments"))
    known = {"workflow.name", "workflow.uid", *(f"workflow.parameters.{p}" for p in parameters)}
    templates: dict[str, Template] = {}
    dags: dict[str, Object] = {}
    for name, template in by_name("spec", "template", spec.get("templates")).items():
        where = f"template {name}"
        if "dag" in template:
            dags[name] = checked(where, "dag template", template)
        elif "container" in template:
            checked(where, "container template", template)
            templates[name] = read_template(where, template, known)
        else:
            raise Refused(f"{where}: {listed(template)} does not run here, only container and dag")
    entrypoint = spec.get("entrypoint")
    if len(dags) != 1 or entrypoint not in dags:
        raise Refused(
            f"spec: entrypoint {entrypoint} has to be the workflow's only dag; "
            f"dags are {listed(dags)}"
        )
    return Workflow(
        prefix=metadata.get("generateName") or f"{metadata.get('name', 'workflow')}-",
        parameters=parameters,
        tasks=read_tasks(f"template {entrypoint}", dags[entrypoint], templates, known),
        seconds=read_seconds("spec", spec),
    )


def read_template(where: str, template: Object, known: set[str]) -> Template:
    inputs = read_parameters(where, template.get("inputs"))
    for parameter in inputs.values():
        check_references(where, parameter.preset or "", known)
    known = known | {f"inputs.parameters.{name}" for name in inputs}
    container = checked(where, "container", template["container"])
    if not container.get("command"):
        raise Refused(f"{where}: the container needs a command; its image is not used here")
    command = [*container["command"], *(text(word) for word in container.get("args", []))]
    variables = by_name(where, "env", container.get("env"))
    # Variables with valueFrom are the namespace's; here this process's own environment has them.
    environment = {
        name: text(variable.get("value"))
        for name, variable in variables.items()
        if not checked(f"{where}: env {name}", "env", variable).get("valueFrom")
    }
    for word in [*command, *environment.values()]:
        check_references(where, word, known)
    return Template(
        name=template["name"],
        inputs=inputs,
        outputs=read_outputs(where, template.get("outputs")),
        command=command,
        environment=environment,
        seconds=read_seconds(where, template),
        retry=read_retry(where, template.get("retryStrategy", {"limit": 0})),
    )


def read_parameters(where: str, found: Any) -> dict[str, Parameter]:
    declared = by_name(where, "parameter", checked(where, "parameters", found).get("parameters"))
    read = {}
    for name, parameter in declared.items():
        checked(f"{where}: parameter {name}", "parameter", parameter)
        preset = parameter.get("value", parameter.get("default"))
        enum = [text(value) for value in parameter.get("enum", [])]
        read[name] = Parameter(None if preset is None else text(preset), enum)
    return read


def read_outputs(where: str, found: Any) -> dict[str, Output]:
    declared = by_name(where, "output", checked(where, "parameters", found).get("parameters"))
    read = {}
    for name, output in declared.items():
        at = f"{where}: output {name}"
        source = checked(at, "valueFrom", checked(at, "output", output).get("valueFrom"))
        path = source.get("path", "")
        if not path.startswith(f"{OUT_DIR}/") or ".." in path:
            raise Refused(f"{at}: path {path!r} has to be a file in {OUT_DIR}")
        default = source.get("default")
        read[name] = Output(
            path.removeprefix(f"{OUT_DIR}/"), None if default is None else text(default)
        )
    return read


def read_retry(where: str, found: Any) -> Retry:
    where = f"{where}: retryStrategy"
    retry = checked(where, "retryStrategy", found)
    backoff = checked(where, "backoff", retry.get("backoff"))
    pause = re.fullmatch(r"(\d+)([smhd]?)", str(backoff.get("duration", 0)))
    if not pause:
        raise Refused(f"{where}: backoff.duration {backoff['duration']!r} is not like 10s or 5m")
    expression = parse(where, retry.get("expression", "true"))
    for leaf in leaves(expression):
        variable = leaf in ("lastRetry.exitCode", "lastRetry.status")
        if not (variable or leaf in ("true", "false") or re.match(r"['\"]|-?\d+$", leaf)):
            raise Refused(f"{where}: expression has {leaf}, which does not run here")
    return Retry(
        limit=whole_number(f"{where}.limit", retry.get("limit")),
        expression=expression,
        pause=int(pause[1]) * UNITS[pause[2]],
        factor=whole_number(f"{where}.backoff.factor", backoff.get("factor", 1)),
    )


def read_tasks(
    where: str, template: Object, templates: dict[str, Template], known: set[str]
) -> list[Task]:
    """Tasks such that each comes after those it depends on, else as they stand in the file."""
    dag = checked(where, "dag", template["dag"])
    waiting = by_name(where, "task", dag.get("tasks"))
    names = set(waiting)
    ordered: list[Task] = []
    reachable: dict[str, set[str]] = {}
    while waiting:
        for name, found in waiting.items():
            at = f"{where}: task {name}"
            depends = read_depends(at, checked(at, "task", found), names)
            upstreams = {leaf.partition(".")[0] for leaf in leaves(depends)} - {"true"}
            if not upstreams & waiting.keys():
                break
        else:
            raise Refused(f"{where}: tasks {listed(waiting)} depend on each other")
        task = read_task(at, waiting.pop(name), templates, depends, upstreams)
        available = known.union(*(reachable[upstream] for upstream in upstreams))
        for leaf in [*task.arguments.values(), *leaves(task.when)]:
            check_references(at, leaf, available)
        made = {f"tasks.{name}.outputs.parameters.{output}" for output in task.template.outputs}
        reachable[name] = available | made
        ordered.append(task)
    return ordered


def read_task(
    where: str, task: Object, templates: dict[str, Template], depends: ast.expr, upstreams: set[str]
) -> Task:
    if task.get("template") not in templates:
        raise Refused(
            f"{where}: template {task.get('template')} is none of the containers "
            f"{listed(templates)}"
        )
    template = templates[task["template"]]
    given = read_parameters(where, task.get("arguments"))
    if unknown := given.keys() - template.inputs.keys():
        raise Refused(
            f"{where}: {template.name} has no input {listed(unknown)}, only "
            f"{listed(template.inputs)}"
        )
    for name, parameter in template.inputs.items():
        if given.get(name, parameter).preset is None:
            raise Refused(f"{where}: input {name} of {template.name} is given no value")
    return Task(
        name=task["name"],
        template=template,
        depends=depends,
        upstreams=upstreams,
        when=parse(f"{where}: when", task.get("when", "true")),
        arguments={name: argument.preset or "" for name, argument in given.items()},
    )


def read_depends(where: str, task: Object, names: set[str]) -> ast.expr:
    if "depends" in task and "dependencies" in task:
        raise Refused(f"{where} has both depends and dependencies; one of them is enough")
    source = task.get("depends") or " && ".join(task.get("dependencies", [])) or "true"
    depends = parse(f"{where}: depends", source)
    for leaf in leaves(depends):
        name, _, word = leaf.partition(".")
        if leaf != "true" and name not in names:
            raise Refused(f"{where}: depends on {name}, which is none of {listed(names)}")
        if word and word not in PHASES:
            raise Refused(f"{where}: depends on {leaf}; after the dot can be {listed(PHASES)}")
    return depends


def checked(where: str, kind: str, found: Any) -> Object:
    """The object itself, if it has no field that would have to be obeyed and is not."""
    found = {} if found is None else found
    if not isinstance(found, dict):
        raise Refused(f"{where}: {kind} has to be a mapping, not {found!r}")
    obeyed, for_kubernetes = FIELDS[kind]
    if unknown := found.keys() - {*obeyed.split(), *for_kubernetes.split()}:
        raise Refused(
            f"{where}: {listed(unknown)} does not run here; {kind} can have "
            f"{listed(obeyed.split())}"
        )
    return found


def by_name(where: str, kind: str, found: Any) -> dict[str, Object]:
    objects: dict[str, Object] = {}
    for item in found or []:
        name = text(item.get("name")) if isinstance(item, dict) else ""
        if name in objects or not re.fullmatch(r"\w[\w-]*", name):
            raise Refused(f"{where}: each {kind} needs a plain name of its own, not {name!r}")
        objects[name] = item
    return objects


def read_seconds(where: str, found: Object) -> float:
    name = "activeDeadlineSeconds"
    return whole_number(f"{where}: {name}", found[name]) if name in found else math.inf


def whole_number(where: str, found: Any) -> int:
    if not re.fullmatch(r"\d+", str(found)):
        raise Refused(f"{where} has to be a whole number, not {found!r}")
    return int(found)


def text(value: Any) -> str:
    """A YAML value as Argo passes it on."""
    return "" if value is None else value if isinstance(value, str) else json.dumps(value)


def listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "nothing"


REFERENCE = re.compile(r"\{\{(.*?)\}\}")


def check_references(where: str, source: str, known: set[str]) -> None:
    for reference in REFERENCE.findall(source):
        if reference.strip() not in known:
            raise Refused(f"{where}: {{{{{reference}}}}} is not known here; known: {listed(known)}")


def substitute(source: str, values: Values) -> str:
    """Fill in the references; an output of a task that did not run may have no value."""

    def value_of(reference: re.Match[str]) -> str:
        if (name := reference[1].strip()) not in values:
            raise NodeError(f"{reference[0]} has neither a value nor a default")
        return values[name]

    return REFERENCE.sub(value_of, source)


TOKEN = re.compile(
    r"""\s*(?:(?P<operator>&&|\|\||==|!=|!|[()\[\],]|(?:in|asInt)\b)"""
    r"""|(?P<leaf>"[^"]*"|'[^']*'|(?:\{\{.*?\}\}|[\w.+-])+))\s*"""
)
IN_PYTHON = {"&&": " and ", "||": " or ", "!": " not ", "in": " in "}


def parse(where: str, source: str) -> ast.expr:
    """Read a condition: `&&`, `||`, `!`, `==`, `!=`, `in [..]`, `asInt(..)`, over leaves.

    The tree is Python's, in which each leaf is a string constant.
    """
    python, position = "", 0
    while position < len(source):
        if not (token := TOKEN.match(source, position)):
            raise Refused(f"{where}: {source[position:]!r} does not run here")
        operator, leaf = token["operator"], token["leaf"]
        # In parentheses, since Python would join two strings that follow each other.
        python += IN_PYTHON.get(operator, operator) if operator else f"({leaf!r})"
        position = token.end()
    try:
        condition = ast.parse(python.strip(), mode="eval").body
        list(leaves(condition))
    except (SyntaxError, TypeError) as error:
        raise Refused(f"{where}: {source!r} is not a condition that runs here") from error
    return condition


def leaves(condition: ast.expr) -> Iterator[str]:
    """Leaves of a condition; raises TypeError for anything else that Python could say."""
    match condition:
        case ast.Constant(str(leaf)):
            yield leaf
            operands: list[ast.expr] = []
        case ast.BoolOp(_, operands) | ast.List(operands):
            pass
        case ast.UnaryOp(ast.Not(), operand) | ast.Call(ast.Name("asInt"), [operand], []):
            operands = [operand]
        case ast.Compare(left, [ast.Eq() | ast.NotEq()], [right]):
            operands = [left, right]
        case ast.Compare(left, [ast.In()], [ast.List(_) as right]):
            operands = [left, right]
        case _:
            raise TypeError(ast.dump(condition))
    for operand in operands:
        yield from leaves(operand)


def evaluate(condition: ast.expr, leaf: Callable[[str], Any]) -> bool:
    """Whether a condition holds whose leaves have the values that `leaf` gives."""

    def value(node: ast.expr) -> Any:
        match node:
            case ast.Constant(str(source)):
                return leaf(source)
            case ast.BoolOp(ast.And(), operands):
                return all(holds(operand) for operand in operands)
            case ast.BoolOp(ast.Or(), operands):
                return any(holds(operand) for operand in operands)
            case ast.UnaryOp(ast.Not(), operand):
                return not holds(operand)
            case ast.Compare(left, [ast.Eq()], [right]):
                return value(left) == value(right)
            case ast.Compare(left, [ast.NotEq()], [right]):
                return value(left) != value(right)
            case ast.Compare(left, [ast.In()], [ast.List(items)]):
                return value(left) in [value(item) for item in items]
            case ast.Call(_, [operand], []):
                number = value(operand)
                if not re.fullmatch(r"-?\d+", str(number)):
                    raise NodeError(f"{number!r} is not a whole number")
                return int(number)

    def holds(node: ast.expr) -> bool:
        found = value(node)
        if found not in (True, False, "true", "false"):
            raise NodeError(f"{found!r} is neither true nor false")
        return found in (True, "true")

    return holds(condition)


def unquoted(leaf: str) -> str:
    return leaf[1:-1] if leaf[0] in "'\"" else leaf


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
