"""Reads what a template declares: inputs, outputs, retries and locks."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from runner.expressions import RETRY, SyntaxRefused, parse
from runner.language import (
    OF_A_RETRY,
    OUT_DIR,
    Object,
    Output,
    Parameter,
    Refused,
    Retry,
    Values,
    listed,
)
from runner.references import handed_on
from runner.shapes import (
    Backoff,
    ConfigMapKey,
    Mutex,
    OutputShape,
    Parameters,
    ParameterShape,
    RetryStrategy,
    Semaphore,
    Synchronization,
    ValueFrom,
    Variable,
    by_name,
    checked,
    seconds,
)
from runner.values import parameter_text

SOURCES = {
    "container": "path",
    "dag": "parameter",
    "resource": "jsonPath",
    "steps": "parameter",
    "suspend": "supplied",
}
"""The source of an output, by the type of its template."""

POLICIES = {
    "Always": ("Failed", "Error"),
    "OnFailure": ("Failed",),
    "OnError": ("Error",),
}
"""Phases that are tried again, by retryPolicy."""


def or_unbounded(limit: int | None) -> float:
    return math.inf if limit is None else limit


def read_parameters(where: str, raw: Object, *, arguments: bool = False) -> dict[str, Parameter]:
    """Declared inputs, or arguments, whose defaults Argo ignores."""
    shape = checked(where, "parameters", Parameters, raw)
    read = {}
    for name, parameter in by_name(where, "parameter", ParameterShape, shape.parameters).items():
        at = f"{where}: parameter {name}"
        preset = parameter.value
        if preset is None and not arguments:
            preset = parameter.default
        value = None if preset is None else handed_on(at, parameter_text(preset))
        if parameter.enum == []:
            raise Refused(f"{at}: enum has to have at least one value")
        enum = [parameter_text(accepted) for accepted in parameter.enum or []]
        if enum and value is not None and "{{" not in value and value not in enum:
            raise Refused(f"{at}: {value!r} is none of {listed(enum)}")
        read[name] = Parameter(value, enum)
    return read


def read_outputs(where: str, raw: Object, template_type: str) -> dict[str, Output]:
    shape = checked(where, "parameters", Parameters, raw)
    read = {}
    for name, output in by_name(where, "output", OutputShape, shape.parameters).items():
        at = f"{where}: output {name}"
        source = checked(at, "valueFrom", ValueFrom, output.valueFrom)
        source_fields = source.model_fields_set - {"default"}
        if source_fields != {SOURCES[template_type]}:
            expected = SOURCES[template_type]
            raise Refused(
                f"{at} of a {template_type} needs valueFrom.{expected}, not {listed(source_fields)}"
            )
        path = source.path if source.path is not None else f"{OUT_DIR}/"
        if not path.startswith(f"{OUT_DIR}/") or ".." in path:
            raise Refused(f"{at}: path {path!r} has to be a file in {OUT_DIR}")
        if not re.fullmatch(r"[-\w]*", re.sub(r"\{\{.*?\}\}", "", output.globalName)):
            raise Refused(f"{at}: globalName {output.globalName!r} is no plain name")
        read[name] = Output(
            path=path.removeprefix(f"{OUT_DIR}/"),
            reference=source.parameter or "",
            supplied=source.supplied is not None,
            default=None if source.default is None else parameter_text(source.default),
            global_name=output.globalName,
            json_path=source.jsonPath or "",
        )
    return read


def read_retry(where: str, raw: Object) -> Retry:
    where = f"{where}: retryStrategy"
    retry = checked(where, "retryStrategy", RetryStrategy, raw)
    expression = None
    if retry.expression:
        try:
            expression = parse(retry.expression, RETRY)
        except SyntaxRefused as error:
            raise Refused(f"{where}: expression: {error}") from error
        if unknown := set(expression.names) - {f"lastRetry.{word}" for word in OF_A_RETRY}:
            raise Refused(f"{where}: expression has {listed(unknown)}, which does not run here")
    # With an expression and no policy, the expression decides alone.
    policy = retry.retryPolicy or ("Always" if expression else "OnFailure")
    if policy not in POLICIES:
        raise Refused(f"{where}: retryPolicy {policy} does not run here, only {listed(POLICIES)}")
    if retry.limit is None:
        raise Refused(f"{where}.limit has to be a whole number: without one it never ends")
    pause, factor, longest = 0.0, 1, math.inf
    base: float | None = pause
    if retry.backoff is not None:
        backoff = checked(where, "backoff", Backoff, retry.backoff)
        base = seconds(f"{where}: backoff.duration", backoff.duration) if backoff.duration else None
        factor = backoff.factor or 1
        if backoff.maxDuration:
            longest = seconds(f"{where}: maxDuration", backoff.maxDuration)
    return Retry(retry.limit, POLICIES[policy], expression, base, factor, longest)


def read_locks(where: str, raw: Object) -> list[str]:
    where = f"{where}: synchronization"
    synchronization = checked(where, "synchronization", Synchronization, raw)
    locks = []
    for mutex in synchronization.mutexes:
        name = checked(where, "mutex", Mutex, mutex).name
        if not name:
            raise Refused(f"{where}: a mutex needs a name; on Argo the workflow would end in Error")
        locks.append(f"mutex {name}")
    for semaphore in synchronization.semaphores:
        source = checked(where, "semaphore", Semaphore, semaphore).configMapKeyRef
        key = checked(where, "configMapKeyRef", ConfigMapKey, source)
        locks.append(f"semaphore {key.name}/{key.key}")
    if len(set(locks)) < len(locks):
        raise Refused(f"{where}: {listed(locks)}: one of them is there twice")
    return locks


def split_variables(
    variables: Mapping[str, Variable], volumes: Sequence[Object], mounts: Sequence[Object]
) -> tuple[Values, list[str]]:
    """A container's variables with their values, and the names of those that this machine sets.

    The latter come from Secrets and ConfigMaps, or name a place in a claim, such as a cache of
    models: this machine has no claim, and a cache of its own.
    """
    claims = {volume.get("name") for volume in volumes if volume.get("persistentVolumeClaim")}
    places = [mount.get("mountPath", "") for mount in mounts if mount.get("name") in claims]
    inside = tuple(f"{place.rstrip('/')}/" for place in places if place)
    values = {
        name: variable.value
        for name, variable in variables.items()
        if variable.valueFrom is None and not f"{variable.value}/".startswith(inside)
    }
    return values, [name for name in variables if name not in values]


def read_parallelism(where: str, limit: int | None) -> float:
    """How many children may run at once."""
    if limit == 0:
        consequence = (
            "on Argo nothing would ever run" if where == "spec" else "Argo does not obey it"
        )
        raise Refused(f"{where}: parallelism has to be at least 1; {consequence}")
    return or_unbounded(limit)
