"""Reads a workflow strictly: what this runner would not do as Argo does is refused by name.

What is checked here needs no run: names, templates, arguments, and that every reference is to
something known by then. Fields and their types are in shapes.py, tasks in tasks.py.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from runner import kubernetes
from runner.declarations import (
    or_unbounded,
    read_locks,
    read_outputs,
    read_parallelism,
    read_parameters,
    read_retry,
    split_variables,
)
from runner.documents import load
from runner.language import (
    OF_A_RETRY,
    OUTPUT,
    Container,
    Dag,
    Object,
    Output,
    Parameter,
    Refused,
    Resource,
    Retry,
    Steps,
    Suspend,
    Template,
    Values,
    Workflow,
    listed,
    references,
)
from runner.manifests import check_json_path, read_resource, without_expressions
from runner.references import OF_A_WORKFLOW, handed_on
from runner.schedules import check_times
from runner.shapes import (
    ContainerShape,
    Cron,
    DagShape,
    Document,
    Metadata,
    Spec,
    SuspendShape,
    TemplateShape,
    Variable,
    by_name,
    checked,
    seconds,
)
from runner.tasks import TaskReader, check_references

TEMPLATE_TYPES = ("container", "dag", "resource", "steps", "suspend")
ANY_GLOBAL = "workflow.outputs.parameters.*"
"""Stands for the global outputs whose names hold references: they are known in the run alone."""

AFTER_THE_END = {"workflow.status", "workflow.failures", "workflow.duration"}
"""References that only an exit handler has."""


def read(file: Path) -> Workflow:
    """The workflow in a file; refuses by name what this runner would not do as Argo does."""
    try:
        return understood(load(file))
    except Refused as error:
        raise Refused(f"{file}: {error.message}") from error


def understood(document: Object) -> Workflow:
    """The workflow in a loaded document."""
    file = checked("file", "workflow", Document, document)
    if file.kind not in ("CronWorkflow", "Workflow", "WorkflowTemplate"):
        raise Refused(f"kind {file.kind} is no workflow")
    metadata = checked("metadata", "metadata", Metadata, file.metadata)
    spec = file.spec
    longest = kubernetes.LONGEST_NAME
    if file.kind == "CronWorkflow":
        longest = kubernetes.LONGEST_CRON
        cron = checked("spec", "cron", Cron, spec)
        check_times(cron)
        spec = cron.workflowSpec
    prefix = metadata.generateName or f"{metadata.name}-"
    try:
        workflow = Reader(checked("spec", "spec", Spec, spec)).workflow(prefix)
    except RecursionError as error:
        raise Refused("an expression nests too deep to be read") from error
    labels = metadata.labels or {}
    names = (metadata.name, metadata.generateName)
    if message := kubernetes.fault_of_metadata(*names, labels, longest):
        raise Refused(f"metadata: {message}")
    for name, parameter in workflow.parameters.items():
        if file.kind == "CronWorkflow" and parameter.preset is None:
            raise Refused(
                f"spec: parameter {name} has no value, which Argo refuses of a CronWorkflow"
            )
    return workflow


class Reader:
    """Reads a spec; it collects what all templates share before it reads the first template."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.shapes = by_name("spec", "template", TemplateShape, spec.templates)
        self.parameters = read_parameters("spec", spec.arguments, arguments=True)
        self.globals = {"workflow.name", "workflow.uid"}
        self.globals |= {f"workflow.parameters.{name}" for name in self.parameters}
        self.inputs: dict[str, dict[str, Parameter]] = {}
        self.outputs: dict[str, dict[str, Output]] = {}
        called_by_tasks = {called for name in self.shapes for called in self.calls(name)}
        for name, template in self.shapes.items():
            where = f"template {name}"
            present = [each for each in TEMPLATE_TYPES if getattr(template, each) is not None]
            if len(present) != 1:
                raise Refused(
                    f"{where} needs one of {listed(TEMPLATE_TYPES)}; it has {listed(present)}"
                )
            self.inputs[name] = read_parameters(where, template.inputs)
            self.outputs[name] = read_outputs(where, template.outputs, present[0])
            # Argo's exit handlers do not know the global outputs of the entrypoint itself.
            called = name in called_by_tasks
            for output in self.outputs[name].values():
                if output.global_name and called:
                    literal = "{{" not in output.global_name
                    name_ = f"workflow.outputs.parameters.{output.global_name}"
                    self.globals.add(name_ if literal else ANY_GLOBAL)

    def workflow(self, prefix: str) -> Workflow:
        entrypoint, on_exit = self.spec.entrypoint, self.spec.onExit
        for role, name in {"entrypoint": entrypoint, "onExit": on_exit or entrypoint}.items():
            if name not in self.shapes:
                raise Refused(
                    f"spec: {role} {name} is no template; there are {listed(self.shapes)}"
                )
            for parameter, declared in self.inputs[name].items():
                if declared.preset is None and parameter not in self.parameters:
                    raise Refused(f"template {name}: input {parameter} is given no value")
        self.check_rings()
        of_the_end = self.reached(on_exit)
        only_at_the_end = of_the_end - self.reached(entrypoint)
        templates = {}
        for name in self.shapes:
            scope = self.globals | (AFTER_THE_END if name in only_at_the_end else set())
            # Argo checks the globals of exit handlers at submit, when composed names are unknown.
            templates[name] = self.template(
                name, scope - {ANY_GLOBAL} if name in of_the_end else scope
            )
        for role in (entrypoint, on_exit):
            if role:
                check_locks(templates, role, {})
        return Workflow(
            prefix=prefix,
            parameters=self.parameters,
            templates=templates,
            entrypoint=entrypoint,
            on_exit=on_exit,
            seconds=or_unbounded(self.spec.activeDeadlineSeconds),
            parallelism=read_parallelism("spec", self.spec.parallelism),
        )

    def calls(self, name: str) -> list[str]:
        template = self.shapes[name]
        groups = [(template.dag or {}).get("tasks", []), *(template.steps or [])]
        tasks = [task for group in groups if isinstance(group, list) for task in group]
        return [str(task.get("template")) for task in tasks if isinstance(task, dict)]

    def reached(self, name: str) -> set[str]:
        names: set[str] = set()
        waiting = [name]
        while waiting:
            name = waiting.pop()
            if name in self.shapes and name not in names:
                names.add(name)
                waiting += self.calls(name)
        return names

    def check_rings(self) -> None:
        for name in self.shapes:
            if any(name in self.reached(called) for called in self.calls(name)):
                raise Refused(f"template {name} calls itself, which does not run here")

    def template(self, name: str, scope: set[str]) -> Template:
        where, shape = f"template {name}", self.shapes[name]
        for parameter in self.inputs[name].values():
            check_references(where, parameter.preset or "", scope)
        scope = scope | {f"inputs.parameters.{parameter}" for parameter in self.inputs[name]}
        check_limits(where, shape)
        retry = read_retry(where, shape.retryStrategy) if shape.retryStrategy is not None else None
        reader = TaskReader(self.inputs, self.outputs)
        inside = set[str]()
        definition: Container | Dag | Resource | Steps | Suspend
        if shape.container is not None:
            definition = self.container(where, shape, scope, retry)
        elif shape.resource is not None:
            limit = or_unbounded(shape.activeDeadlineSeconds)
            definition = read_resource(where, shape.resource, self.inputs[name], limit)
            for declared, output in self.outputs[name].items():
                check_json_path(f"{where}: output {declared}", output.json_path)
            plain = without_expressions(where, definition.manifest, self.inputs[name])
            for text in [plain, *definition.flags]:
                check_references(where, text, scope)
        elif shape.dag is not None:
            dag = checked(where, "dag", DagShape, shape.dag)
            tasks, inside = reader.dag(where, dag, scope)
            definition = Dag(tasks, dag.failFast, [task["name"] for task in dag.tasks])
        elif shape.steps is not None:
            groups, inside = reader.steps(where, shape.steps, scope)
            definition = Steps(groups)
        else:
            wait = checked(where, "suspend", SuspendShape, shape.suspend).duration
            check_references(f"{where}: duration", wait, scope)
            if wait and not references(wait):
                seconds(f"{where}: duration", wait)
            definition = Suspend(wait)
        for output_name, output in self.outputs[name].items():
            at = f"{where}: output {output_name}"
            if output.reference:
                check_output(at, output.reference, inside)
            for text in (output.default or "", output.path, output.global_name):
                check_references(at, text, scope)
        timeout = shape.timeout
        locks = read_locks(where, shape.synchronization)
        for lock in locks:
            # An expression is not evaluated: this machine has one lock for any name it may give.
            names = re.sub(r"\{\{=.*?\}\}", "", lock)
            check_references(f"{where}: synchronization", names, scope)
        return Template(
            name=name,
            inputs=self.inputs[name],
            outputs=self.outputs[name],
            definition=definition,
            retry=retry,
            seconds=seconds(f"{where}: timeout", timeout, digits=False) if timeout else math.inf,
            parallelism=read_parallelism(where, shape.parallelism),
            locks=locks,
        )

    def container(
        self, where: str, template: TemplateShape, scope: set[str], retry: Retry | None
    ) -> Container:
        container = checked(where, "container", ContainerShape, template.container)
        if template.name != template.name.lower():
            raise Refused(
                f"{where}: a container's template has a name without capital letters: Argo names "
                "the pod after it, and Kubernetes refuses the pod"
            )
        if not container.image:
            raise Refused(f"{where}: the container needs an image: Argo refuses one without")
        if not container.command:
            raise Refused(f"{where}: the container needs a command; its image is not used here")
        variables = by_name(where, "env", Variable, container.env)
        if retry:
            scope = scope | {"retries", *(f"lastRetry.{word}" for word in OF_A_RETRY)}
        command = [*container.command, *container.args]
        for word in [*command, *(variable.value for variable in variables.values())]:
            check_references(where, word, scope)
        volumes = [*(self.spec.volumes or []), *(template.volumes or [])]
        environment, inherited = split_variables(variables, volumes, container.volumeMounts or [])
        return Container(
            command, environment, inherited, or_unbounded(template.activeDeadlineSeconds)
        )


def check_limits(where: str, template: TemplateShape) -> None:
    """Refuse limits that Argo does not have for a template of this type."""
    if template.container is not None or template.resource is not None:
        if template.parallelism is not None:
            raise Refused(f"{where}: parallelism is for dags and steps; Argo refuses it here")
        if template.timeout and not seconds(f"{where}: timeout", template.timeout, digits=False):
            raise Refused(f"{where}: timeout {template.timeout} leaves a pod no time to start")
        return
    if template.activeDeadlineSeconds is not None:
        reaction = "does not obey it" if template.suspend is not None else "refuses it"
        raise Refused(f"{where}: activeDeadlineSeconds is for containers; Argo {reaction} here")
    if template.timeout is not None:
        raise Refused(f"{where}: timeout is for containers; Argo refuses it here")


def check_output(where: str, reference: str, inside: set[str]) -> None:
    """An output of a DAG or of steps has to be a single reference to an output of a task."""
    names = references(reference)
    if len(names) != 1 or f"{{{{{names[0]}}}}}" != re.sub(r"\{\{\s*|\s*\}\}", brace, reference):
        raise Refused(
            f"{where}: parameter {reference!r} is not one reference to an output of a task; on "
            "Argo the workflow would never end"
        )
    if not OUTPUT.fullmatch(names[0]):
        raise Refused(
            f"{where}: {{{{{names[0]}}}}} is no output parameter of a task; some such references "
            "Argo refuses or never ends, and none runs here"
        )
    check_references(where, reference, inside)


def brace(match: re.Match[str]) -> str:
    return match[0].strip()


def check_locks(templates: Mapping[str, Template], name: str, owners: dict[str, str]) -> None:
    """Refuse a lock that a template's caller holds: the caller waits for the template."""
    template = templates[name]
    for lock in template.locks:
        if lock in owners and "{{" not in lock:
            more = ", unless it lets in several" if lock.startswith("semaphore") else ""
            raise Refused(
                f"template {name}: {lock} is held by template {owners[lock]}, which waits for "
                f"{name}: neither could ever go on{more}"
            )
    owners = owners | dict.fromkeys(template.locks, name)
    for called in dict.fromkeys(task.template for task in template.tasks):
        check_locks(templates, called, owners)


def parameter_values(
    workflow: Workflow, settings: Iterable[str], before: Mapping[str, str]
) -> Values:
    """Values of the workflow's parameters: from -p, else from `before`, else presets."""
    declared = workflow.parameters
    values = {name: p.preset for name, p in declared.items() if p.preset is not None}
    values |= {name: value for name, value in before.items() if name in declared}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or name not in declared:
            raise Refused(f"-p {setting} sets no parameter; they are {listed(declared)}")
        values[name] = value
    for name, parameter in declared.items():
        if name not in values:
            raise Refused(f"parameter {name} has no default: give it with -p {name}=VALUE")
        if parameter.enum and values[name] not in parameter.enum:
            raise Refused(f"-p {name}={values[name]} is none of {listed(parameter.enum)}")
        handed_on(f"-p {name}", values[name])
        for tag in references(values[name]):
            if OF_A_WORKFLOW.match(tag):
                raise Refused(
                    f"parameter {name}: its value holds {{{{{tag}}}}}; Argo would take that for a "
                    "reference, and fill it in or refuse it, which does not run here"
                )
    return values
