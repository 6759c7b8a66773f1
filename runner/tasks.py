"""Reads the tasks of a DAG and the steps of a list: templates, dependencies and arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runner import govaluate
from runner.expressions import (
    ALWAYS,
    DEPENDS,
    EvaluationError,
    Expression,
    SyntaxRefused,
    parse,
)
from runner.language import (
    OF_A_GROUP,
    OUTCOMES,
    OUTPUT,
    REFERENCE,
    Object,
    Output,
    Parameter,
    Refused,
    Task,
    listed,
)
from runner.references import handed_on
from runner.shapes import (
    DagShape,
    Parameters,
    ParameterShape,
    StepShape,
    TaskShape,
    brief,
    by_name,
    checked,
)
from runner.values import Item, dumps, parameter_text, without_signed_zeros

RESERVED = {"and", "contains", "else", "endsWith", "false", "if", "in", "let", "matches", "nil",
            "not", "or", "startsWith", "true"}  # fmt: skip
"""Words of expr-lang, which `depends` cannot read as the name of a task."""


class TaskReader:
    """Reads tasks, given the inputs and outputs of each template."""

    def __init__(
        self, inputs: Mapping[str, dict[str, Parameter]], outputs: Mapping[str, dict[str, Output]]
    ) -> None:
        self.inputs, self.outputs = inputs, outputs

    def dag(self, where: str, dag: DagShape, scope: set[str]) -> tuple[list[Task], set[str]]:
        """Tasks in the order in which Argo visits them, and the references to their outputs."""
        shapes = by_name(where, "task", TaskShape, dag.tasks)
        if not shapes:
            raise Refused(f"{where}: the dag has no tasks")
        check_words(where, shapes)
        depends = {
            name: read_depends(f"{where}: task {name}", shape, shapes)
            for name, shape in shapes.items()
        }
        upstreams = {
            name: tuple(dict.fromkeys(leaf.partition(".")[0] for leaf in expression.names))
            for name, expression in depends.items()
        }
        ordered, reachable = list[Task](), dict[str, set[str]]()
        for name in in_order(where, upstreams):
            available = scope.union(*(reachable[upstream] for upstream in upstreams[name]))
            at = f"{where}: task {name}"
            task = self.task(at, shapes[name], available, depends[name], upstreams[name])
            reachable[name] = available | self.handed_over("tasks", task)
            ordered.append(task)
        return ordered, set[str]().union(*reachable.values())

    def steps(
        self, where: str, raw_groups: list[Any], scope: set[str]
    ) -> tuple[list[list[Task]], set[str]]:
        """Groups of steps, and the references to their outputs; a group sees the earlier groups."""
        groups, names, inside = list[list[Task]](), set[str](), set[str]()
        for group in raw_groups:
            if not isinstance(group, list) or not all(isinstance(step, dict) for step in group):
                raise Refused(f"{where}: steps has to be a list of lists, not of {brief(group)}")
            shapes = by_name(where, "step", StepShape, group)
            if names & shapes.keys():
                raise Refused(
                    f"{where}: each step needs a name of its own, {listed(shapes)} has not"
                )
            names |= shapes.keys()
            steps = [
                self.task(f"{where}: step {name}", step, scope, ALWAYS, ())
                for name, step in shapes.items()
            ]
            groups.append(steps)
            for step in steps:
                # Argo never ends a list of steps that reads an output of a skipped step.
                inside |= (handed := self.handed_over("steps", step))
                scope = scope | ({f"steps.{step.name}.status"} if step.when else handed)
        return groups, inside

    def handed_over(self, prefix: str, task: Task) -> set[str]:
        outputs = {
            f"{prefix}.{task.name}.outputs.parameters.{output}"
            for output in self.outputs[task.template]
        }
        return outputs if task.items is not None else outputs | {f"{prefix}.{task.name}.status"}

    def task(
        self,
        where: str,
        shape: StepShape,
        scope: set[str],
        depends: Expression,
        upstreams: tuple[str, ...],
    ) -> Task:
        template = shape.template
        if template not in self.inputs:
            raise Refused(f"{where}: template {template} is none of {listed(self.inputs)}")
        arguments = read_arguments(where, shape.arguments)
        self.check_arguments(where, template, arguments)
        items = read_items(where, shape)
        if items is not None:
            source = items if isinstance(items, str) else " ".join(items)
            check_references(f"{where}: withParam", source, scope)
            scope = scope | references_of_items(items)
        for source in [*arguments.values(), shape.when]:
            check_references(where, source, scope)
        if shape.when:
            check_when(f"{where}: when", shape.when)
        return Task(shape.name, template, arguments, shape.when, items, depends, upstreams)

    def check_arguments(self, where: str, template: str, arguments: dict[str, str]) -> None:
        declared = self.inputs[template]
        if unknown := arguments.keys() - declared.keys():
            raise Refused(
                f"{where}: {template} has no input {listed(unknown)}, only {listed(declared)}"
            )
        for name, parameter in declared.items():
            if arguments.get(name, parameter.preset) is None:
                raise Refused(f"{where}: input {name} of {template} is given no value")
            value = arguments.get(name, "")
            if value and parameter.enum and "{{" not in value and value not in parameter.enum:
                raise Refused(
                    f"{where}: input {name} of {template} is {value}, "
                    f"none of {listed(parameter.enum)}"
                )


def check_words(where: str, shapes: Mapping[str, TaskShape]) -> None:
    """Refuse the mixtures and names that Argo refuses in a DAG."""
    depends = [name for name, shape in shapes.items() if shape.depends]
    older = [name for name, shape in shapes.items() if shape.dependencies]
    for name in set(depends) & set(older):
        raise Refused(f"{where}: task {name} has both depends and dependencies; one is enough")
    if depends and older:
        raise Refused(
            f"{where}: Argo refuses depends and dependencies in one dag; {listed(older)} has the "
            "older word"
        )
    named = {upstream for name in older for upstream in shapes[name].dependencies or []}
    for name in shapes:
        if name[0].isdigit() and (depends or name in older or name in named):
            raise Refused(
                f"{where}: task {name}: a name cannot begin with a digit where depends or "
                "dependencies are used"
            )


def in_order(where: str, upstreams: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Tasks in Argo's order: targets by name, each after its dependencies."""
    upstream_of_any = {name for names in upstreams.values() for name in names}
    ordered: dict[str, None] = {}
    path: dict[str, None] = {}

    def visit(name: str) -> None:
        if name in path:
            raise Refused(f"{where}: tasks {listed(path)} depend on each other")
        path[name] = None
        for upstream in upstreams[name]:
            if upstream not in ordered:
                visit(upstream)
        del path[name]
        ordered[name] = None

    for name in [*sorted(upstreams.keys() - upstream_of_any), *upstreams]:
        if name not in ordered:
            visit(name)
    return list(ordered)


def read_depends(where: str, task: TaskShape, shapes: Mapping[str, TaskShape]) -> Expression:
    source = task.depends or " && ".join(task.dependencies or [])
    try:
        depends = parse(source, DEPENDS) if source else ALWAYS
    except SyntaxRefused as error:
        raise Refused(f"{where}: depends: {error}") from error
    for leaf in depends.names:
        name, _, word = leaf.partition(".")
        if name not in shapes:
            raise Refused(f"{where}: depends on {name}, which is none of {listed(shapes)}")
        if name in RESERVED:
            raise Refused(f"{where}: depends on {name}, which is a word of Argo's expressions")
        upstream = shapes[name]
        if word in OF_A_GROUP and upstream.withItems is None and upstream.withParam is None:
            raise Refused(f"{where}: depends on {leaf}, but {name} has neither items nor a list")
        if word and word not in {*OUTCOMES, *OF_A_GROUP}:
            accepted = listed({*OUTCOMES, *OF_A_GROUP})
            raise Refused(f"{where}: depends on {leaf}; after the dot can be {accepted}")
        if name == task.name:
            raise Refused(f"{where} depends on itself")
    return depends


def read_arguments(where: str, raw: Object) -> dict[str, str]:
    shape = checked(where, "parameters", Parameters, raw)
    arguments = {}
    for name, parameter in by_name(where, "parameter", ParameterShape, shape.parameters).items():
        if parameter.value is None:
            raise Refused(f"{where}: argument {name} has no value, which Argo refuses")
        arguments[name] = handed_on(f"{where}: argument {name}", parameter_text(parameter.value))
    return arguments


def read_items(where: str, task: StepShape) -> list[str] | str | None:
    """The items' JSON, or the text that will hold a list; None without a fan-out."""
    if task.withItems is not None and task.withParam is not None:
        raise Refused(f"{where} has both withItems and withParam; one of them is enough")
    if task.withItems is not None:
        if not task.withItems:
            raise Refused(f"{where}: withItems has to be a list of at least one item")
        return [dumps(without_signed_zeros(item)) for item in task.withItems]
    if task.withParam == "":
        raise Refused(f"{where}: withParam is empty; Argo would run the task once, without an item")
    return task.withParam


def references_of_items(items: list[str] | str) -> set[str]:
    """References that the items give; a list that is known only at run time may give any."""
    if isinstance(items, str):
        return {"item", "item.*"}
    return {"item"}.union(*(Item(raw).references() for raw in items))


def check_when(where: str, source: str) -> None:
    """Refuse a condition that is invalid for all values of its references.

    Values are put into the text before it is read; here a word takes their place.
    """
    try:
        if REFERENCE.search(source):
            govaluate.check_syntax(REFERENCE.sub("x", source))
        else:
            govaluate.is_true(source)
    except (SyntaxRefused, EvaluationError) as error:
        raise Refused(f"{where}: {error}") from error


def check_references(where: str, source: str, scope: set[str]) -> None:
    if "{{" in REFERENCE.sub("", source):
        raise Refused(
            f"{where}: {brief(source)} opens a reference and does not close it; Argo would read on "
            "to the next }} of the file"
        )
    for written in REFERENCE.findall(source):
        reference = written.strip()
        if reference in scope:
            continue
        family = "item.*" if reference.startswith("item.") else "workflow.outputs.parameters.*"
        if reference.startswith(family.removesuffix("*")) and family in scope:
            continue
        hint = ""
        if output := OUTPUT.fullmatch(reference):
            hint = f" (does the task depend on {output[1]}, and has it an output {output[2]}?)"
        raise Refused(f"{where}: {{{{{written}}}}} is not known here{hint}; known: {listed(scope)}")
