"""The part of Argo's workflow language that runs here: read strictly, refused by name otherwise.

A workflow that comes out of `read` can be run as Argo would run it; conditions and references that
only a run can resolve are evaluated and substituted with the functions at the end.
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import click
import yaml

OUT_DIR = "/tmp/outputs"

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

UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}

Object = dict[str, Any]
Values = dict[str, str]
"""Values by name, or by reference such as `tasks.evaluate.outputs.parameters.run-id`."""


class Refused(click.ClickException):
    """A user's mistake, or a construct that does not run here; nothing has been started."""

    exit_code = 2


class NodeError(Exception):
    """A node cannot start; the workflow goes on as after a failure."""


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
