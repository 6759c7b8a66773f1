"""The part of Argo's workflow language that runs here: read strictly, refused by name otherwise.

A workflow that comes out of `read` can be run as Argo would run it. What is checked here needs no
run: fields, names, templates, arguments, and that every reference is to something known by then.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import click
import yaml

from runner.expressions import DEPENDS, RETRY, WHEN, Dialect, Expression, SyntaxRefused, parse

OUT_DIR = "/tmp/outputs"

PLACEMENT = (
    "affinity automountServiceAccountToken executor nodeSelector podSpecPatch priorityClassName "
    "securityContext serviceAccountName tolerations volumes"
)
FIELDS = {
    "workflow": ("apiVersion kind metadata spec", ""),
    "metadata": ("generateName name", "annotations labels namespace"),
    "spec": (
        "activeDeadlineSeconds arguments entrypoint onExit parallelism templates",
        f"{PLACEMENT} archiveLogs imagePullSecrets metrics podDisruptionBudget podGC podMetadata "
        "priority ttlStrategy volumeClaimGC workflowMetadata",
    ),
    "cron": (
        "workflowSpec",
        "concurrencyPolicy failedJobsHistoryLimit schedules startingDeadlineSeconds "
        "successfulJobsHistoryLimit suspend timezone workflowMetadata",
    ),
    "template": (
        "activeDeadlineSeconds container dag inputs name outputs parallelism retryStrategy steps "
        "suspend synchronization timeout",
        f"{PLACEMENT} metadata metrics",
    ),
    "container": (
        "args command env",
        "image imagePullPolicy name resources securityContext volumeMounts",
    ),
    "env": ("name value valueFrom", ""),
    "parameters": ("parameters", ""),
    "parameter": ("default enum name value", "description"),
    "output": ("globalName name valueFrom", "description"),
    "valueFrom": ("default parameter path supplied", ""),
    "retryStrategy": ("backoff expression limit retryPolicy", "affinity"),
    "backoff": ("duration factor maxDuration", ""),
    "dag": ("tasks", "failFast"),
    "task": ("arguments dependencies depends name template when withItems withParam", ""),
    "step": ("arguments name template when withItems withParam", ""),
    "suspend": ("duration", ""),
    "synchronization": ("mutexes semaphores", ""),
    "mutex": ("name", "namespace"),
    "semaphore": ("configMapKeyRef", "namespace"),
    "configMapKeyRef": ("key name", "optional"),
}
"""By kind of object: the fields obeyed here, and the fields that only concern Kubernetes."""

TEXT, TEXTS, LIST, OBJECTS, MAPPING = (
    "a text",
    "a list of texts",
    "a list",
    "a list of mappings",
    "a mapping",
)
SHAPES = {
    TEXT: "apiVersion concurrencyPolicy depends entrypoint expression generateName globalName "
    "image key kind name namespace onExit parameter path podSpecPatch retryPolicy "
    "serviceAccountName template when env.value",
    TEXTS: "args command dependencies schedules",
    LIST: "enum steps withItems",
    OBJECTS: "env mutexes parameters semaphores tasks templates tolerations volumeMounts volumes",
    MAPPING: "annotations arguments backoff configMapKeyRef container dag executor inputs labels "
    "metadata metrics nodeSelector outputs podGC podMetadata resources retryStrategy "
    "securityContext spec supplied suspend synchronization ttlStrategy valueFrom workflowSpec",
}
"""What the fields of any kind have to hold, as Argo's types have it; `env.value` is env's alone.

Of the rest, parameters may hold anything, and numbers and durations are read where they are used.
"""
SHAPE_OF = {field: shape for shape, fields in SHAPES.items() for field in fields.split()}
SHAPE_OF |= {"cron.suspend": ""}
LITERAL = ("default", "enum", "value", "withItems")
"""Fields whose value is handed on as it stands."""

BODIES = ("container", "dag", "steps", "suspend")
POLICIES = {
    "Always": ("Failed", "Error"),
    "OnFailure": ("Failed",),
    "OnError": ("Error",),
}
"""Phases that are tried again, by retryPolicy."""

OUTCOMES = {
    "Succeeded": "Succeeded",
    "Failed": "Failed",
    "Errored": "Error",
    "Skipped": "Skipped",
    "Omitted": "Omitted",
}
"""Phase of a node by the word that `depends` has for it."""

OF_A_GROUP = ("AnySucceeded", "AllFailed")
"""Words of `depends` that only a task with items has."""

OF_A_RETRY = ("exitCode", "status", "duration", "message")
UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
REFERENCE = re.compile(r"\{\{(.*?)\}\}")
OUTPUT = re.compile(r"(?:tasks|steps)\.([^.]+)\.outputs\.parameters\.(.+)")

Object = dict[str, Any]
Values = dict[str, str]
"""Values by name, or by reference such as `tasks.evaluate.outputs.parameters.run-id`."""


class Refused(click.ClickException):
    """A user's mistake, or a construct that does not run here; nothing has been started."""

    exit_code = 2


class Parameter(NamedTuple):
    """A declared parameter; without a preset it has to be given, and `enum` may be empty."""

    preset: str | None
    enum: list[str]


class Output(NamedTuple):
    """An output parameter and where its value comes from: one of a file, a reference, a person."""

    path: str
    reference: str
    supplied: bool
    default: str | None
    global_name: str


class Retry(NamedTuple):
    """How often, when, and after how many seconds a template is tried again."""

    limit: int
    phases: tuple[str, ...]
    expression: Expression | None
    pause: int
    factor: int
    longest: float


@dataclass(frozen=True)
class Container:
    """A command; its texts hold their `{{references}}` still. `seconds` bound one attempt."""

    command: list[str]
    environment: Values
    seconds: float


@dataclass(frozen=True)
class Task:
    """A task of a DAG or a step of a list; `upstreams` are the tasks that `depends` names."""

    name: str
    template: str
    arguments: Values
    when: str
    items: list[Any] | str | None
    """A list, or the text that holds one once its references are filled in."""
    depends: Expression
    upstreams: frozenset[str]


@dataclass(frozen=True)
class Dag:
    """Tasks such that each comes after those it depends on."""

    tasks: list[Task]


@dataclass(frozen=True)
class Steps:
    """Groups of steps; those of a group run side by side."""

    groups: list[list[Task]]


@dataclass(frozen=True)
class Suspend:
    """A wait: for so many seconds, or (infinity) for a person."""

    seconds: float


@dataclass(frozen=True)
class Template:
    """A template; `locks` name the mutexes and semaphores that it holds while it runs."""

    name: str
    inputs: dict[str, Parameter]
    outputs: dict[str, Output]
    body: Container | Dag | Steps | Suspend
    retry: Retry | None
    seconds: float
    parallelism: float
    locks: list[str]


@dataclass(frozen=True)
class Workflow:
    """A workflow that runs here."""

    prefix: str
    parameters: dict[str, Parameter]
    templates: dict[str, Template]
    entrypoint: str
    on_exit: str
    seconds: float
    parallelism: float


class Loader(yaml.SafeLoader):
    """Reads YAML as Argo does, to which a date is a text."""


Loader.yaml_implicit_resolvers = {
    sign: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for sign, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read(file: Path) -> Workflow:
    """The workflow in a file; refuses by name what this runner would not do as Argo does."""
    try:
        return understood(load(file))
    except Refused as error:
        raise Refused(f"{file}: {error.message}") from error


def load(file: Path) -> Object:
    """The document in a file, without the fields that are null: to Argo they are not there."""
    try:
        document = yaml.load(file.read_text(encoding="utf-8"), Loader)
        if not isinstance(document, dict):
            raise Refused(f"a workflow has to be a mapping, not {shown(document)}")
        mapping: Object = plain(document)
        return mapping
    except OSError as error:
        raise Refused(f"cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise Refused(f"is not YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise Refused("nests too deep to be read") from error


def plain(found: Any, *, literal: bool = False) -> Any:
    """What JSON can say of a YAML value; inside of a literal nulls are kept."""
    if isinstance(found, dict):
        return {
            text(plain(key)): plain(value, literal=literal or key in LITERAL)
            for key, value in found.items()
            if value is not None or literal
        }
    if isinstance(found, list):
        return [plain(item, literal=literal) for item in found]
    if found is not None and not isinstance(found, str | bool | int | float):
        raise Refused(f"{shown(found)} is a {type(found).__name__}, which JSON has not")
    return found


def understood(document: Object) -> Workflow:
    """The workflow in a loaded document."""
    document = checked("file", "workflow", document)
    metadata = checked("metadata", "metadata", document.get("metadata"))
    spec = document.get("spec")
    match document.get("kind"):
        case "CronWorkflow":
            spec = checked("spec", "cron", spec).get("workflowSpec")
        case "Workflow" | "WorkflowTemplate":
            pass
        case kind:
            raise Refused(f"kind {kind} is no workflow")
    prefix = metadata.get("generateName") or f"{metadata.get('name', 'workflow')}-"
    try:
        return Reader(checked("spec", "spec", spec)).workflow(prefix)
    except RecursionError as error:
        raise Refused("an expression nests too deep to be read") from error


class Reader:
    """Reads a spec; what is known to every template is gathered before the first is read."""

    def __init__(self, spec: Object) -> None:
        self.spec = spec
        self.found = by_name("spec", "template", spec.get("templates"))
        self.parameters = read_parameters("spec", spec.get("arguments"))
        self.globals = {"workflow.name", "workflow.uid"}
        self.globals |= {f"workflow.parameters.{name}" for name in self.parameters}
        self.inputs: dict[str, dict[str, Parameter]] = {}
        self.outputs: dict[str, dict[str, Output]] = {}
        for name, template in self.found.items():
            where = f"template {name}"
            bodies = [body for body in BODIES if body in template]
            if len(bodies) != 1:
                raise Refused(f"{where} needs one of {listed(BODIES)}; it has {listed(bodies)}")
            self.inputs[name] = read_parameters(where, template.get("inputs"))
            self.outputs[name] = read_outputs(where, template.get("outputs"), bodies[0])
            self.globals |= {
                f"workflow.outputs.parameters.{output.global_name}"
                for output in self.outputs[name].values()
                if output.global_name
            }

    def workflow(self, prefix: str) -> Workflow:
        entrypoint, on_exit = text(self.spec.get("entrypoint")), text(self.spec.get("onExit"))
        for role, name in {"entrypoint": entrypoint, "onExit": on_exit or entrypoint}.items():
            if name not in self.found:
                raise Refused(f"spec: {role} {name} is no template; there are {listed(self.found)}")
            for parameter, declared in self.inputs[name].items():
                if declared.preset is None and parameter not in self.parameters:
                    raise Refused(f"template {name}: input {parameter} is given no value")
        self.check_rings()
        at_the_end = self.reached(on_exit) - self.reached(entrypoint)
        told = {"workflow.status", "workflow.failures", "workflow.duration"}
        return Workflow(
            prefix=prefix,
            parameters=self.parameters,
            templates={
                name: self.template(name, self.globals | (told if name in at_the_end else set()))
                for name in self.found
            },
            entrypoint=entrypoint,
            on_exit=on_exit,
            seconds=read_seconds("spec", self.spec),
            parallelism=read_limit("spec", self.spec),
        )

    def calls(self, name: str) -> list[str]:
        template = self.found[name]
        groups = [template.get("dag", {}).get("tasks", []), *template.get("steps", [])]
        tasks = [task for group in groups if isinstance(group, list) for task in group]
        return [text(task.get("template")) for task in tasks if isinstance(task, dict)]

    def reached(self, name: str) -> set[str]:
        names: set[str] = set()
        waiting = [name]
        while waiting:
            name = waiting.pop()
            if name in self.found and name not in names:
                names.add(name)
                waiting += self.calls(name)
        return names

    def check_rings(self) -> None:
        for name in self.found:
            if any(name in self.reached(called) for called in self.calls(name)):
                raise Refused(f"template {name} calls itself, which does not run here")

    def template(self, name: str, known: set[str]) -> Template:
        where, found = f"template {name}", self.found[name]
        for parameter in self.inputs[name].values():
            check_references(where, parameter.preset or "", known)
        known = known | {f"inputs.parameters.{parameter}" for parameter in self.inputs[name]}
        retry = read_retry(where, found["retryStrategy"]) if "retryStrategy" in found else None
        if "activeDeadlineSeconds" in found and "container" not in found:
            raise Refused(f"{where}: activeDeadlineSeconds is for containers; use timeout")
        inside = set[str]()
        body: Container | Dag | Steps | Suspend
        if "container" in found:
            body = self.container(where, found, known, retry)
        elif "dag" in found:
            dag = checked(where, "dag", found["dag"])
            tasks, inside = self.tasks(where, dag, known)
            body = Dag(tasks)
        elif "steps" in found:
            groups, inside = self.groups(where, found["steps"], known)
            body = Steps(groups)
        else:
            suspend = checked(where, "suspend", found["suspend"])
            wait = suspend.get("duration")
            body = Suspend(math.inf if wait is None else seconds(f"{where}: duration", wait))
        for output_name, output in self.outputs[name].items():
            at = f"{where}: output {output_name}"
            check_references(at, output.reference, known | inside)
        return Template(
            name=name,
            inputs=self.inputs[name],
            outputs=self.outputs[name],
            body=body,
            retry=retry,
            seconds=seconds(f"{where}: timeout", found["timeout"])
            if "timeout" in found
            else math.inf,
            parallelism=read_limit(where, found),
            locks=read_locks(where, found.get("synchronization")),
        )

    def container(
        self, where: str, template: Object, known: set[str], retry: Retry | None
    ) -> Container:
        container = checked(where, "container", template["container"])
        if not container.get("command"):
            raise Refused(f"{where}: the container needs a command; its image is not used here")
        command = [*container["command"], *container.get("args", [])]
        variables = by_name(where, "env", container.get("env"))
        # Variables with valueFrom are the namespace's; here this process's environment has them.
        environment = {
            name: variable.get("value", "")
            for name, variable in variables.items()
            if not variable.get("valueFrom")
        }
        if retry:
            known = known | {"retries", *(f"lastRetry.{word}" for word in OF_A_RETRY)}
        for word in [*command, *environment.values()]:
            check_references(where, word, known)
        return Container(command, environment, read_seconds(where, template))

    def tasks(self, where: str, dag: Object, known: set[str]) -> tuple[list[Task], set[str]]:
        """Tasks in an order that respects `depends`, and the references to their outputs."""
        waiting = by_name(where, "task", dag.get("tasks"))
        if not waiting:
            raise Refused(f"{where}: the dag has no tasks")
        spread = {name for name, found in waiting.items() if expands(found)}
        names, ordered, reachable = set(waiting), list[Task](), dict[str, set[str]]()
        while waiting:
            for name, found in waiting.items():
                at = f"{where}: task {name}"
                depends, upstreams = read_depends(at, found, names, spread)
                if not upstreams & waiting.keys():
                    break
            else:
                raise Refused(f"{where}: tasks {listed(waiting)} depend on each other")
            available = known.union(*(reachable[upstream] for upstream in upstreams))
            task = self.task(at, waiting.pop(name), available, depends, upstreams)
            reachable[name] = available | self.made("tasks", task)
            ordered.append(task)
        return ordered, set[str]().union(*reachable.values())

    def groups(self, where: str, found: Any, known: set[str]) -> tuple[list[list[Task]], set[str]]:
        """Groups of steps, and the references to their outputs; a group sees those before it."""
        groups, seen, inside = list[list[Task]](), set[str](), set[str]()
        always = parse("true", DEPENDS)
        for group in found:
            if not isinstance(group, list):
                raise Refused(f"{where}: steps has to be a list of lists, not of {shown(group)}")
            steps = by_name(where, "step", group)
            if seen & steps.keys():
                raise Refused(
                    f"{where}: each step needs a name of its own, {listed(steps)} has not"
                )
            seen |= steps.keys()
            read = []
            for name, step in steps.items():
                at = f"{where}: step {name}"
                read.append(self.task(at, step, known, always, frozenset()))
            groups.append(read)
            for one in read:
                # Argo never ends a list of steps that reads an output of a skipped one.
                inside |= (made := self.made("steps", one))
                known = known | ({f"steps.{one.name}.status"} if one.when else made)
        return groups, inside

    def made(self, kind: str, task: Task) -> set[str]:
        outputs = {
            f"{kind}.{task.name}.outputs.parameters.{output}"
            for output in self.outputs[task.template]
        }
        return outputs if task.items is not None else outputs | {f"{kind}.{task.name}.status"}

    def task(
        self,
        where: str,
        found: Object,
        known: set[str],
        depends: Expression,
        upstreams: frozenset[str],
    ) -> Task:
        name = found.get("template")
        if name not in self.found:
            raise Refused(f"{where}: template {name} is none of {listed(self.found)}")
        declared = self.inputs[name]
        given = read_parameters(where, found.get("arguments"))
        if unknown := given.keys() - declared.keys():
            raise Refused(
                f"{where}: {name} has no input {listed(unknown)}, only {listed(declared)}"
            )
        for parameter in declared:
            if given.get(parameter, declared[parameter]).preset is None:
                raise Refused(f"{where}: input {parameter} of {name} is given no value")
            literal = given[parameter].preset if parameter in given else ""
            accepted = declared[parameter].enum
            if literal and accepted and "{{" not in literal and literal not in accepted:
                raise Refused(
                    f"{where}: input {parameter} of {name} is {literal}, none of {listed(accepted)}"
                )
        items = read_items(where, found)
        if isinstance(items, str):
            check_references(f"{where}: withParam", items, known)
        if items is not None:
            known = known | {"item"}
        arguments = {name: argument.preset or "" for name, argument in given.items()}
        when = found.get("when") or ""
        for source in [*arguments.values(), when]:
            check_references(where, source, known)
        # The references' values come into the text before it is read; any word stands for them.
        if when:
            condition(f"{where}: when", REFERENCE.sub("x", when), WHEN)
        return Task(found["name"], name, arguments, when, items, depends, upstreams)


def expands(task: Object) -> bool:
    return "withItems" in task or "withParam" in task


def read_parameters(where: str, found: Any) -> dict[str, Parameter]:
    declared = by_name(where, "parameter", checked(where, "parameters", found).get("parameters"))
    read = {}
    for name, parameter in declared.items():
        at = f"{where}: parameter {name}"
        preset = parameter.get("value", parameter.get("default"))
        value = None if preset is None else text(preset)
        enum = [text(accepted) for accepted in parameter.get("enum", [])]
        if enum and value is not None and "{{" not in value and value not in enum:
            raise Refused(f"{at}: {value!r} is none of {listed(enum)}")
        read[name] = Parameter(value, enum)
    return read


SOURCES = {"container": "path", "dag": "parameter", "steps": "parameter", "suspend": "supplied"}
"""Where an output comes from, by the body of its template."""


def read_outputs(where: str, found: Any, body: str) -> dict[str, Output]:
    declared = by_name(where, "output", checked(where, "parameters", found).get("parameters"))
    read = {}
    for name, output in declared.items():
        at = f"{where}: output {name}"
        source = checked(at, "valueFrom", output.get("valueFrom"))
        if source.keys() - {"default"} != {SOURCES[body]}:
            raise Refused(f"{at} of a {body} needs valueFrom.{SOURCES[body]}, not {listed(source)}")
        path, default = source.get("path", f"{OUT_DIR}/"), source.get("default")
        if not path.startswith(f"{OUT_DIR}/") or ".." in path:
            raise Refused(f"{at}: path {path!r} has to be a file in {OUT_DIR}")
        read[name] = Output(
            path=path.removeprefix(f"{OUT_DIR}/"),
            reference=source.get("parameter", ""),
            supplied="supplied" in source,
            default=None if default is None else text(default),
            global_name=output.get("globalName", ""),
        )
    return read


def read_retry(where: str, found: Any) -> Retry:
    where = f"{where}: retryStrategy"
    retry = checked(where, "retryStrategy", found)
    backoff = checked(where, "backoff", retry.get("backoff"))
    expression = None
    if "expression" in retry:
        expression = condition(f"{where}: expression", retry["expression"], RETRY)
        if unknown := expression.names - {f"lastRetry.{word}" for word in OF_A_RETRY}:
            raise Refused(f"{where}: expression has {listed(unknown)}, which does not run here")
    # With an expression and no policy, the expression decides alone.
    policy = retry.get("retryPolicy", "Always" if expression else "OnFailure")
    if policy not in POLICIES:
        raise Refused(f"{where}: retryPolicy {policy} does not run here, only {listed(POLICIES)}")
    longest = backoff.get("maxDuration")
    return Retry(
        limit=whole_number(f"{where}.limit", retry.get("limit")),
        phases=POLICIES[policy],
        expression=expression,
        pause=seconds(f"{where}: backoff.duration", backoff.get("duration", 0)),
        factor=whole_number(f"{where}.backoff.factor", backoff.get("factor", 1)),
        longest=math.inf if longest is None else seconds(f"{where}: maxDuration", longest),
    )


def read_depends(
    where: str, task: Object, names: set[str], spread: set[str]
) -> tuple[Expression, frozenset[str]]:
    if "depends" in task and "dependencies" in task:
        raise Refused(f"{where} has both depends and dependencies; one of them is enough")
    source = task.get("depends") or " && ".join(task.get("dependencies") or []) or "true"
    depends = condition(f"{where}: depends", source, DEPENDS)
    upstreams = set()
    for leaf in depends.names:
        name, _, word = leaf.partition(".")
        if name not in names:
            raise Refused(f"{where}: depends on {name}, which is none of {listed(names)}")
        if word in OF_A_GROUP and name not in spread:
            raise Refused(f"{where}: depends on {leaf}, but {name} has neither items nor a list")
        if word and word not in {*OUTCOMES, *OF_A_GROUP}:
            known = listed({*OUTCOMES, *OF_A_GROUP})
            raise Refused(f"{where}: depends on {leaf}; after the dot can be {known}")
        if name == task["name"]:
            raise Refused(f"{where} depends on itself")
        upstreams.add(name)
    return depends, frozenset(upstreams)


def read_items(where: str, task: Object) -> list[Any] | str | None:
    if "withItems" in task and "withParam" in task:
        raise Refused(f"{where} has both withItems and withParam; one of them is enough")
    if "withItems" in task:
        if not isinstance(task["withItems"], list) or not task["withItems"]:
            raise Refused(f"{where}: withItems has to be a list of at least one item")
        return task["withItems"]
    if "withParam" in task:
        return text(task["withParam"])
    return None


def read_locks(where: str, found: Any) -> list[str]:
    where = f"{where}: synchronization"
    synchronization = checked(where, "synchronization", found)
    locks = []
    for mutex in synchronization.get("mutexes") or []:
        locks.append(f"mutex {checked(where, 'mutex', mutex).get('name')}")
    for semaphore in synchronization.get("semaphores") or []:
        source = checked(where, "semaphore", semaphore).get("configMapKeyRef")
        reference = checked(where, "configMapKeyRef", source)
        locks.append(f"semaphore {reference.get('name')}/{reference.get('key')}")
    return locks


def condition(where: str, source: Any, dialect: Dialect) -> Expression:
    try:
        return parse(text(source), dialect)
    except SyntaxRefused as error:
        raise Refused(f"{where}: {error}") from error


def checked(where: str, kind: str, found: Any) -> Object:
    """The object itself, if it has no field that would have to be obeyed and is not."""
    found = {} if found is None else found
    if not isinstance(found, dict):
        raise Refused(f"{where}: {kind} has to be a mapping, not {shown(found)}")
    obeyed, for_kubernetes = FIELDS[kind]
    if unknown := found.keys() - {*obeyed.split(), *for_kubernetes.split()}:
        raise Refused(
            f"{where}: {listed(unknown)} does not run here; {kind} can have "
            f"{listed(obeyed.split())}"
        )
    for field, value in found.items():
        shape = SHAPE_OF.get(f"{kind}.{field}", SHAPE_OF.get(field, ""))
        if shape and not has_shape(value, shape):
            raise Refused(f"{where}: {field} has to be {shape}, not {shown(value)}")
    return found


def has_shape(value: Any, shape: str) -> bool:
    if shape in (TEXT, MAPPING):
        return isinstance(value, str if shape == TEXT else dict)
    members = {TEXTS: str, OBJECTS: dict}.get(shape, object)
    return isinstance(value, list) and all(isinstance(member, members) for member in value)


def shown(value: Any) -> str:
    """A value as far as it fits into a message."""
    told = "nothing" if value is None else repr(value)
    return told if len(told) <= 60 else f"{told[:60]}…"


def by_name(where: str, kind: str, found: Any) -> dict[str, Object]:
    """Objects of a kind by their names, each checked."""
    objects: dict[str, Object] = {}
    for item in found or []:
        name = item.get("name") if isinstance(item, dict) else item
        if not isinstance(name, str) or name in objects or not re.fullmatch(r"\w[\w-]*", name):
            raise Refused(f"{where}: each {kind} needs a plain name of its own, not {shown(name)}")
        at = f"template {name}" if kind == "template" else f"{where}: {kind} {name}"
        objects[name] = checked(at, kind, item)
    return objects


def read_seconds(where: str, found: Object) -> float:
    name = "activeDeadlineSeconds"
    return whole_number(f"{where}: {name}", found[name]) if name in found else math.inf


def read_limit(where: str, found: Object) -> float:
    """How many may run at once."""
    if "parallelism" not in found:
        return math.inf
    if not (limit := whole_number(f"{where}: parallelism", found["parallelism"])):
        raise Refused(f"{where}: parallelism 0 lets nothing run")
    return limit


def seconds(where: str, found: Any) -> int:
    if not (duration := re.fullmatch(r"(\d{1,15})([smhd]?)", str(found))):
        raise Refused(f"{where} {found!r} is not like 10s or 5m")
    return int(duration[1]) * UNITS[duration[2]]


def whole_number(where: str, found: Any) -> int:
    if not re.fullmatch(r"\d{1,15}", str(found)):
        raise Refused(f"{where} has to be a whole number, not {found!r}")
    return int(found)


def text(value: Any) -> str:
    """A YAML value as Argo passes it on."""
    if isinstance(value, str):
        return value
    return "" if value is None else json.dumps(value, separators=(",", ":"))


def listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "nothing"


def check_references(where: str, source: str, known: set[str]) -> None:
    for found in REFERENCE.findall(source):
        reference = found.strip()
        if reference in known or (reference.startswith("item.") and "item" in known):
            continue
        hint = ""
        if (output := OUTPUT.fullmatch(reference)) and output[0] not in known:
            hint = f" (does the task depend on {output[1]}, and has it an output {output[2]}?)"
        raise Refused(f"{where}: {{{{{found}}}}} is not known here{hint}; known: {listed(known)}")


def parameter_values(workflow: Workflow, given: Iterable[str], before: Mapping[str, str]) -> Values:
    """Values of the workflow's parameters: what -p says, else what `before` has, else presets."""
    declared = workflow.parameters
    values = {name: p.preset for name, p in declared.items() if p.preset is not None}
    values |= {name: value for name, value in before.items() if name in declared}
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
