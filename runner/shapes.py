"""The fields that a workflow's file may have, and their types.

A field that is not here would have no effect, so it is refused by name. Fields that
only concern Kubernetes have no effect here; `kubernetes.py` checks their types as Argo does.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from runner import kubernetes
from runner.language import Object, Refused, listed

SECONDS_OF = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1, "m": 60, "h": 3600}
DURATION = re.compile(r"(\d+\.?\d*|\.\d+)(ns|us|µs|ms|s|m|h)")
LONGEST = 10**9
"""Seconds; Go's durations end at 292 years."""

Anything = Any
Text = Annotated[str, "a text"]
Texts = Annotated[list[str], "a list of texts"]
List = Annotated[list[Any], "a list"]
Objects = Annotated[list[dict[str, Any]], "a list of mappings"]
Mapping = Annotated[dict[str, Any], "a mapping"]
Truth = Annotated[bool, "true or false"]


def whole(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < LONGEST:
        raise ValueError("a whole number")
    return value


def whole_or_digits(value: Any) -> Any:
    """Argo's IntOrString: 3 and "3" are the same."""
    return whole(int(value) if isinstance(value, str) and re.fullmatch(r"\d+", value) else value)


Whole = Annotated[int, BeforeValidator(whole)]
WholeOrDigits = Annotated[int, BeforeValidator(whole_or_digits)]


class Shape(BaseModel):
    """Fields of one type of object; no others are accepted."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)

    @classmethod
    def obeyed(cls) -> list[str]:
        """The fields that have an effect here."""
        return [
            field.alias or name
            for name, field in cls.model_fields.items()
            if "of Kubernetes" not in field.metadata
        ]


KubernetesMapping = Annotated[dict[str, Any] | None, "a mapping", "of Kubernetes"]
KubernetesObjects = Annotated[list[dict[str, Any]] | None, "a list of mappings", "of Kubernetes"]
KubernetesText = Annotated[str | None, "a text", "of Kubernetes"]
KubernetesInteger = Annotated[int | None, "a whole number", "of Kubernetes"]
KubernetesAny = Annotated[Any, "of Kubernetes"]
"""Types of fields that have no effect here."""


class Placement(Shape):
    """Where and as whom pods run: the same for a spec and for a template."""

    affinity: KubernetesAny = None
    automountServiceAccountToken: KubernetesAny = None
    executor: KubernetesMapping = None
    nodeSelector: KubernetesMapping = None
    podSpecPatch: KubernetesText = None
    priorityClassName: KubernetesAny = None
    securityContext: KubernetesMapping = None
    serviceAccountName: KubernetesText = None
    tolerations: KubernetesObjects = None
    volumes: KubernetesObjects = None


class Metadata(Shape):
    generateName: Text = ""
    name: Text = ""
    annotations: KubernetesMapping = None
    labels: KubernetesMapping = None
    namespace: KubernetesText = None


class Document(Shape):
    apiVersion: Text = ""
    kind: Text = ""
    metadata: Mapping = {}
    spec: Mapping = {}


class Spec(Placement):
    activeDeadlineSeconds: Whole | None = None
    arguments: Mapping = {}
    entrypoint: Text = ""
    onExit: Text = ""
    parallelism: Whole | None = None
    templates: Objects = []
    archiveLogs: KubernetesAny = None
    imagePullSecrets: KubernetesAny = None
    metrics: KubernetesMapping = None
    podDisruptionBudget: KubernetesAny = None
    podGC: KubernetesMapping = None
    podMetadata: KubernetesMapping = None
    priority: KubernetesAny = None
    ttlStrategy: KubernetesMapping = None
    volumeClaimGC: KubernetesAny = None
    workflowMetadata: KubernetesAny = None


class Cron(Shape):
    workflowSpec: Mapping = {}
    concurrencyPolicy: KubernetesText = None
    failedJobsHistoryLimit: KubernetesInteger = None
    schedules: Annotated[list[str] | None, "a list of texts", "of Kubernetes"] = None
    startingDeadlineSeconds: Annotated[Whole | None, "of Kubernetes"] = None
    successfulJobsHistoryLimit: KubernetesInteger = None
    suspend: Annotated[bool | None, "true or false", "of Kubernetes"] = None
    timezone: KubernetesAny = None
    workflowMetadata: KubernetesMapping = None


class TemplateShape(Placement):
    activeDeadlineSeconds: WholeOrDigits | None = None
    container: Mapping | None = None
    dag: Mapping | None = None
    inputs: Mapping = {}
    name: Text = ""
    outputs: Mapping = {}
    parallelism: Whole | None = None
    resource: Mapping | None = None
    retryStrategy: Mapping | None = None
    steps: List | None = None
    suspend: Mapping | None = None
    synchronization: Mapping = {}
    timeout: Text | None = None
    metadata: KubernetesMapping = None
    metrics: KubernetesMapping = None


class ContainerShape(Shape):
    args: Texts = []
    command: Texts = []
    env: Objects = []
    image: KubernetesText = None
    imagePullPolicy: KubernetesAny = None
    name: KubernetesText = None
    resources: KubernetesMapping = None
    securityContext: KubernetesMapping = None
    volumeMounts: KubernetesObjects = None


class Variable(Shape):
    name: Text = ""
    value: Text = ""
    valueFrom: Mapping | None = None


class Parameters(Shape):
    parameters: Objects = []


class ParameterShape(Shape):
    default: Anything = None
    enum: List | None = None
    name: Text = ""
    value: Anything = None
    description: KubernetesAny = None


class OutputShape(Shape):
    globalName: Text = ""
    name: Text = ""
    valueFrom: Mapping = {}
    description: KubernetesAny = None


class ValueFrom(Shape):
    default: Anything = None
    jsonPath: Text | None = None
    parameter: Text | None = None
    path: Text | None = None
    supplied: Mapping | None = None


class RetryStrategy(Shape):
    backoff: Mapping | None = None
    expression: Text = ""
    limit: WholeOrDigits | None = None
    retryPolicy: Text = ""
    affinity: KubernetesAny = None


class Backoff(Shape):
    duration: Text = ""
    factor: WholeOrDigits = 1
    maxDuration: Text = ""


class DagShape(Shape):
    tasks: Objects = []
    failFast: Truth = True


class StepShape(Shape):
    arguments: Mapping = {}
    name: Text = ""
    template: Text = ""
    when: Text = ""
    withItems: List | None = None
    withParam: Text | None = None


class TaskShape(StepShape):
    dependencies: Texts | None = None
    depends: Text = ""


class SuspendShape(Shape):
    duration: Text = ""


class Synchronization(Shape):
    mutexes: Objects = []
    semaphores: Objects = []


class Mutex(Shape):
    name: Text = ""
    namespace: KubernetesText = None


class Semaphore(Shape):
    configMapKeyRef: Mapping = {}
    namespace: KubernetesText = None


class ConfigMapKey(Shape):
    key: Text = ""
    name: Text = ""
    optional: KubernetesAny = None


class ResourceShape(Shape):
    action: Text = ""
    flags: Texts = []
    manifest: Text = ""
    successCondition: Text = ""
    mergeStrategy: KubernetesText = None
    setOwnerReference: KubernetesAny = None


class ManifestShape(Shape):
    apiVersion: Text = ""
    kind: Text = ""
    metadata: KubernetesMapping = None
    spec: Mapping = {}


class JobShape(Shape):
    activeDeadlineSeconds: Whole | None = None
    backoffLimit: Whole = 6
    completionMode: Text = ""
    completions: Whole = 1
    parallelism: Whole = 1
    podFailurePolicy: Mapping = {}
    successPolicy: Mapping = {}
    suspend: Truth = False
    template: Mapping = {}
    ttlSecondsAfterFinished: KubernetesAny = None


class RulesShape(Shape):
    rules: Objects = []


class FailureRule(Shape):
    action: Text = ""
    onExitCodes: Mapping | None = None
    onPodConditions: KubernetesAny = None


class ExitCodes(Shape):
    containerName: Text = ""
    operator: Text = ""
    values: List = []


class SuccessRule(Shape):
    succeededIndexes: Text = ""


S = TypeVar("S", bound=Shape)


def checked(where: str, part: str, shape: type[S], raw: Any) -> S:
    """The object in its shape; Refused if a field is unknown or of the wrong type."""
    if not isinstance(raw, dict):
        raise Refused(f"{where}: {part} has to be a mapping, not {brief(raw)}")
    try:
        valid = shape.model_validate(raw)
    except ValidationError as error:
        errors = error.errors(include_url=False)
        unknown = [str(e["loc"][0]) for e in errors if e["type"] == "extra_forbidden"]
        if unknown:
            raise Refused(
                f"{where}: {listed(unknown)} does not run here; {part} can have "
                f"{listed(shape.obeyed())}"
            ) from None
        field = str(errors[0]["loc"][0])
        needed = expected(shape, field)
        raise Refused(f"{where}: {field} has to be {needed}, not {brief(raw[field])}") from None
    if message := kubernetes.fault(part, raw):
        raise Refused(f"{where}: {message}: Argo refuses the workflow")
    return valid


def expected(shape: type[Shape], field: str) -> str:
    """The type that a field has to have, in words."""
    words = [text for text in shape.model_fields[field].metadata if isinstance(text, str)]
    annotation = str(shape.model_fields[field].annotation)
    for text in (*words, *re.findall(r"'(an? [a-z ]+|true or false)'", annotation)):
        if text != "of Kubernetes":
            return text
    return "a whole number"


def brief(value: Any) -> str:
    """A value, cut to fit into a message."""
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


NAMES = {
    "parameter": r"[-\w]+",
    "output": r"[-\w]+",
    "env": r"[-._A-Za-z][-._\w]*",
}
TEMPLATES_NAME = r"[A-Za-z0-9][-A-Za-z0-9]*"
"""Names of templates, tasks and steps; parameters may have underscores and any first character."""


def by_name(where: str, part: str, shape: type[S], raw: Iterable[Object]) -> dict[str, S]:
    """Objects of one type by their names, each in its shape."""
    objects: dict[str, S] = {}
    for item in raw:
        name = item.get("name")
        pattern = NAMES.get(part, TEMPLATES_NAME)
        if not isinstance(name, str) or name in objects:
            raise Refused(f"{where}: each {part} needs a plain name of its own, not {brief(name)}")
        if not re.fullmatch(pattern, name, re.ASCII) or len(name) > 128:
            more = ", underscores" if part in NAMES else ""
            raise Refused(
                f"{where}: each {part} needs a plain name of its own, not {brief(name)}: Argo "
                f"takes at most 128 letters, digits and dashes{more}"
            )
        at = f"template {name}" if part == "template" else f"{where}: {part} {name}"
        objects[name] = checked(at, part, shape, item)
    return objects


def seconds(where: str, text: str, *, digits: bool = True) -> float:
    """A duration as Go reads it, such as 90s or 1h30m; where `digits` may, 90 is seconds, too."""
    if digits and re.fullmatch(r"\d{1,9}", text):
        return int(text)
    parts = DURATION.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        bare = ", which needs a unit" if re.fullmatch(r"\d+", text) else ""
        raise Refused(f"{where} {text!r} is not like 10s or 5m{bare}")
    total = sum(float(number) * SECONDS_OF[unit] for number, unit in parts)
    if total >= LONGEST:
        raise Refused(f"{where} {text!r} is longer than Argo can count")
    return int(total) if total == int(total) else total
