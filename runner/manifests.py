"""The objects of `resource` templates that run here: an Indexed Job, and its suspension.

Of a Job the counts, the policies and its pods' command are obeyed; any other object is refused by
name, since nothing here would make it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from runner.declarations import split_variables
from runner.language import Container, Object, Refused, Resource, listed
from runner.references import substitute
from runner.shapes import (
    ContainerShape,
    ExitCodes,
    FailureRule,
    JobShape,
    ManifestShape,
    ResourceShape,
    RulesShape,
    SuccessRule,
    Variable,
    by_name,
    checked,
)

AS_JSON = re.compile(r"\{\{=\s*toJson\(inputs\.parameters\['([-\w]+)'\]\)\s*\}\}")
"""The one expression that a manifest can have here: an input as a JSON text."""

REQUIREMENT = re.compile(r"([\w.]+)\s*(?:==?\s*([\w-]+)|in\s*\(([^)]*)\))")
STEP_OF_A_PATH = r"(?:\.\w+|\[\d+\])"
JSON_PATH = re.compile(rf"\{{({STEP_OF_A_PATH}+)\}}")

KNOWN = re.compile(r"status conditions [01] (type|status|reason|message)")
"""What is known here of a Job that has ended."""

Condition = list[tuple[str, list[str]]]
"""Paths into an object, each with the values that it may have; all of them have to hold."""


@dataclass(frozen=True)
class ExitRule:
    """What a Job does after a container's exit code; `number` is the rule's place in the policy."""

    number: int
    action: str
    codes: frozenset[int]
    inside: bool
    """Whether the rule is for the codes, or for all others but 0."""

    def applies(self, code: int) -> bool:
        return (code in self.codes) == self.inside


@dataclass(frozen=True)
class Job:
    """A Job whose pods are numbered, all at once."""

    name: str
    subdomain: str
    pods: int
    seconds: float
    backoff_limit: int
    rules: list[ExitRule]
    succeeded_indexes: frozenset[int] | None
    """The pods that have to succeed; None means all."""

    container: Container

    @property
    def needed(self) -> frozenset[int]:
        everything = frozenset(range(self.pods))
        return everything if self.succeeded_indexes is None else self.succeeded_indexes


def filled(manifest: str, values: Mapping[str, str]) -> str:
    """A manifest with its references filled in, as Argo does before it is read as YAML."""

    def as_json(match: re.Match[str]) -> str:
        return json.dumps(values[f"inputs.parameters.{match[1]}"], ensure_ascii=False)

    return substitute(AS_JSON.sub(as_json, manifest), values)


def read_object(where: str, text: str) -> ManifestShape:
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise Refused(f"{where}: manifest is no YAML: {' '.join(str(error).split())}") from error
    return checked(where, "manifest", ManifestShape, document)


def read_job(where: str, text: str) -> Job:
    """The Job of a manifest; Refused for another object, or a Job that would not run here."""
    manifest = read_object(where, text)
    if (manifest.apiVersion, manifest.kind) != ("batch/v1", "Job"):
        raise Refused(
            f"{where}: a resource of kind {manifest.kind or 'nothing'} ({manifest.apiVersion}) "
            "does not run here, only a Job of batch/v1: what makes it is a cluster's own"
        )
    spec = checked(where, "spec", JobShape, manifest.spec)
    if spec.completionMode != "Indexed" or spec.completions != spec.parallelism or spec.suspend:
        raise Refused(
            f"{where}: a Job runs here that is Indexed, all pods at once, and not suspended"
        )
    pod = spec.template.get("spec") or {}
    name = (manifest.metadata or {}).get("name")
    if not isinstance(name, str):
        raise Refused(f"{where}: the Job needs a name: with one made up its pods do not find it")
    return Job(
        name=name,
        subdomain=str(pod.get("subdomain", "")),
        pods=spec.completions,
        seconds=float("inf") if spec.activeDeadlineSeconds is None else spec.activeDeadlineSeconds,
        backoff_limit=spec.backoffLimit,
        rules=read_failure_rules(where, spec.podFailurePolicy),
        succeeded_indexes=read_success_policy(where, spec.successPolicy),
        container=read_container(where, pod),
    )


def read_container(where: str, pod: Object) -> Container:
    containers = pod.get("containers") or []
    if len(containers) != 1 or pod.get("initContainers") or pod.get("restartPolicy") != "Never":
        raise Refused(f"{where}: a Job's pod runs here with one container and restartPolicy Never")
    main = checked(where, "container", ContainerShape, containers[0])
    if not main.command:
        raise Refused(f"{where}: the container needs a command; its image is not used here")
    variables = by_name(where, "env", Variable, main.env)
    volumes = [each for each in pod.get("volumes") or [] if isinstance(each, dict)]
    plain, inherited = split_variables(variables, volumes, main.volumeMounts or [])
    return Container([*main.command, *main.args], plain, inherited, float("inf"))


def read_failure_rules(where: str, raw: Object) -> list[ExitRule]:
    """The rules about exit codes; those about a pod's conditions are a cluster's own."""
    rules = []
    for number, each in enumerate(checked(where, "podFailurePolicy", RulesShape, raw).rules):
        rule = checked(where, "rule", FailureRule, each)
        if rule.action not in ("Count", "FailJob", "Ignore"):
            raise Refused(f"{where}: podFailurePolicy: {rule.action} does not run here")
        if rule.onExitCodes is not None:
            codes = checked(where, "onExitCodes", ExitCodes, rule.onExitCodes)
            if codes.operator not in ("In", "NotIn"):
                raise Refused(f"{where}: onExitCodes: {codes.operator} is neither In nor NotIn")
            inside = codes.operator == "In"
            rules.append(ExitRule(number, rule.action, frozenset(codes.values), inside))
    return rules


def read_success_policy(where: str, raw: Object) -> frozenset[int] | None:
    rules = checked(where, "successPolicy", RulesShape, raw).rules
    if not rules:
        return None
    indexes = checked(where, "rule", SuccessRule, rules[0]).succeededIndexes
    if len(rules) > 1 or not re.fullmatch(r"\d+(,\d+)*", indexes):
        raise Refused(f"{where}: successPolicy runs here with one rule, which lists its indexes")
    return frozenset(map(int, indexes.split(",")))


def read_suspension(where: str, flags: list[str], text: str) -> str:
    """The name of the Job that a patch suspends."""
    try:
        patch = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise Refused(f"{where}: manifest is no YAML: {error}") from error
    if patch != {"spec": {"suspend": True}} or len(flags) != 2 or flags[0] != "job":
        raise Refused(f"{where}: a patch runs here that suspends a job by its name, and no other")
    return flags[1]


def read_condition(where: str, text: str) -> Condition:
    """A successCondition: paths with the values that they need."""
    parts = re.split(r",(?![^(]*\))", text) if text else []
    condition = []
    for part in parts:
        match = REQUIREMENT.fullmatch(part.strip())
        if match is None:
            raise Refused(f"{where}: {part.strip()!r} does not run here, only PATH == VALUE and "
                          "PATH in (VALUE, VALUE)")  # fmt: skip
        path, value, listed_values = match.groups()
        check_path(where, path.split("."))
        condition.append(
            (path, [v.strip() for v in listed_values.split(",")] if listed_values else [value])
        )
    return condition


def holds(condition: Condition, value: Object) -> bool:
    return all(at(value, path.split(".")) in values for path, values in condition)


def check_json_path(where: str, text: str) -> None:
    rest = JSON_PATH.sub("", text)
    if not JSON_PATH.search(text) or "{" in rest or "}" in rest:
        raise Refused(
            f"{where}: jsonPath {text!r} does not run here, only paths such as {{.a.b[0]}}"
        )

    for path in JSON_PATH.findall(text):
        check_path(where, re.findall(r"\w+", path))


def check_path(where: str, steps: list[str]) -> None:
    if not KNOWN.fullmatch(" ".join(steps)):
        raise Refused(
            f"{where}: {'.'.join(steps)} of a Job is not known here, only the type, status, reason "
            "and message of status.conditions 0 and 1"
        )


def json_path(text: str, value: Object) -> str:
    """A text in which kubectl's `{.a.b[0]}` stand for values of an object."""

    def value_of(match: re.Match[str]) -> str:
        return at(value, re.findall(r"\w+", match[1])) or ""

    return JSON_PATH.sub(value_of, text)


def at(value: Any, path: list[str]) -> str | None:
    """The text at a path of fields and positions; None where there is none."""
    for step in path:
        if isinstance(value, list):
            value = value[int(step)] if step.isdigit() and int(step) < len(value) else None
        else:
            value = value.get(step) if isinstance(value, dict) else None
    return None if value is None else str(value)


def without_expressions(where: str, manifest: str, inputs: Mapping[str, object]) -> str:
    """A manifest with empty texts for its expressions; Refused for one that is about no input."""
    for name in AS_JSON.findall(manifest):
        if name not in inputs:
            raise Refused(
                f"{where}: toJson of {name}, which is no input; there are {listed(inputs)}"
            )
    return AS_JSON.sub('""', manifest)


def read_resource(
    where: str, raw: Object, inputs: Mapping[str, object], seconds: float
) -> Resource:
    """A resource template of a Job; its references are checked by the caller."""
    shape = checked(where, "resource", ResourceShape, raw)
    plain = without_expressions(where, shape.manifest, inputs)
    if shape.action == "patch":
        read_suspension(where, shape.flags, plain)
    elif shape.action in ("apply", "create"):
        read_job(where, plain)
        if shape.flags or not shape.successCondition:
            raise Refused(f"{where}: a Job is waited for by a successCondition, without flags")
        read_condition(where, shape.successCondition)
    else:
        raise Refused(
            f"{where}: action {shape.action} does not run here, only apply, create, patch"
        )
    return Resource(shape.action, shape.manifest, shape.flags, shape.successCondition, seconds)
