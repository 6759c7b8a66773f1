"""Rules of production for a workflow that Argo would accept: its rights, its limits, its retries.

Each rule yields what is wrong, without the template's name, which `lint.py` puts before it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from runner.expressions import EvaluationError
from runner.language import Object, Retry, Template
from runner.manifests import AS_JSON

ROOT = Path(__file__).parents[1]
SHELLS = {"sh", "bash", "ash", "dash", "zsh"}
SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSWORD|ACCESS_KEY|API_KEY|WEBHOOK|CREDENTIAL")
SECRET = re.compile(
    r"\b(hf_[A-Za-z0-9]{8,}|gh[oprsu]_[A-Za-z0-9]{20,}|sk-[\w-]{20,}|AKIA[0-9A-Z]{16}"
    r"|xox[abprs]-[\w-]{10,})|://[^/\s:@{\"]+:[^/\s@{\"]+@|-----BEGIN [A-Z ]*PRIVATE KEY"
    r"|hooks\.slack\.com/services/\w"
)
"""Tokens by their issuers' prefixes, passwords in addresses, and private keys."""

QUANTITY = re.compile(r"(\d+\.?\d*|\.\d+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?\d+)?")
"""https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/"""

DEVICE = re.compile(r"(nvidia|amd)\.com/")
REGISTRY_STEPS = {"steps/quality_gate.py", "steps/promote.py", "steps/deploy_vllm.py"}
"""Steps that read and change the registry: one at a time for each model."""

GIVEN_AWAY: dict[str, Callable[[Any], bool]] = {
    "allowPrivilegeEscalation": lambda value: value is not False,
    "automountServiceAccountToken": lambda value: value is not False,
    "hostIPC": bool,
    "hostNetwork": bool,
    "hostPID": bool,
    "hostPath": lambda _: True,
    "privileged": bool,
    "procMount": lambda value: value != "Default",
    "readOnlyRootFilesystem": lambda value: value is not True,
    "runAsNonRoot": lambda value: value is not True,
    "runAsUser": lambda value: value == 0,
}
"""Fields at any depth of a pod, and the values that a step must not have."""


def of_spec(document: Object, spec: Object) -> Iterator[str]:
    """Rules for the settings of all pods, and for a schedule."""
    if document["kind"] == "CronWorkflow":
        cron = document["spec"]
        if not cron.get("schedules"):
            yield "a CronWorkflow without schedules never runs"
        if cron.get("concurrencyPolicy") not in ("Forbid", "Replace"):
            yield "concurrencyPolicy is neither Forbid nor Replace, so that runs pile up"
    yield from given_away(spec.get("volumes"), "volumes")
    yield from given_away(spec.get("securityContext"), "securityContext")
    yield from of_patch(spec.get("podSpecPatch", ""))
    if SECRET.search(json.dumps(spec.get("arguments", {}))):
        yield "a parameter holds what looks like a secret"


def of_template(template: Object, read_template: Template) -> Iterator[str]:
    """Rules for a template that runs a container."""
    container = template["container"]
    words = [*container["command"], *container.get("args", [])]
    fields = ("automountServiceAccountToken", "securityContext", "volumes")
    yield from given_away({field: template[field] for field in fields if field in template}, "")
    yield from given_away(container.get("securityContext"), "securityContext")
    yield from of_words(words)
    yield from of_variables(container.get("env", []))
    patch = template.get("podSpecPatch", "")
    yield from of_patch(patch)
    yield from of_quantities(container.get("resources"))
    if read_template.retry:
        yield from of_retry(read_template.retry)
    locks = " ".join(read_template.locks)
    mounts = [mount.get("mountPath") for mount in container.get("volumeMounts", [])]
    if DEVICE.search(patch + json.dumps(container.get("resources", {}))):
        if "semaphore " not in locks:
            yield "it may ask for a GPU and waits for no semaphore"
        if "/dev/shm" not in mounts:
            yield "no volume is mounted at /dev/shm, whose 64 MiB are too few for a data loader"
    if REGISTRY_STEPS & set(words) and "mutex " not in locks:
        yield "it changes what is registered and holds no mutex of the model"
    yield from of_outputs(words, template)


def of_resource(template: Object, read_template: Template) -> Iterator[str]:
    """Rules for a template that makes an object, and for the pods of a Job."""
    yield from of_patch(template.get("podSpecPatch", ""))
    if read_template.retry:
        yield from of_retry(read_template.retry)
    manifest = made_by(template["resource"])
    pod = manifest.get("spec", {}).get("template", {}).get("spec", {})
    yield from (f"manifest: {fault}" for fault in [*given_away(pod, ""), *of_quantities(pod)])
    for container in pod.get("containers", []):
        faults = [*of_words([*container.get("command", []), *container.get("args", [])])]
        faults += of_variables(container.get("env", []))
        resources = json.dumps(container.get("resources", {}))
        mounts = [mount.get("mountPath") for mount in container.get("volumeMounts", [])]
        if DEVICE.search(resources) and "semaphore " not in " ".join(read_template.locks):
            faults.append("it may ask for a GPU and waits for no semaphore")
        if "/dev/shm" not in mounts:
            faults.append("no volume is mounted at /dev/shm, whose 64 MiB are too few")
        yield from (f"manifest: {fault}" for fault in faults)


def made_by(resource: Object) -> Object:
    """The object of a manifest, in which texts stand for its expressions."""
    manifest = AS_JSON.sub(r"'{{inputs.parameters.\1}}'", resource["manifest"])
    content = yaml.safe_load(manifest)
    return content if isinstance(content, dict) else {}


def of_variables(variables: list[Object]) -> Iterator[str]:
    for variable in variables:
        source = variable.get("valueFrom", {})
        literal = variable.get("value") or (source and "secretKeyRef" not in source)
        if literal and SECRET_NAME.search(variable["name"]):
            yield f"env {variable['name']} holds a secret; take it from one with secretKeyRef"


def given_away(part: Any, where: str) -> Iterator[str]:
    """Fields anywhere in a part of a pod that would give a step more than it needs."""
    if isinstance(part, dict):
        for field, value in part.items():
            at = f"{where}.{field}" if where else field
            if field in GIVEN_AWAY and GIVEN_AWAY[field](value):
                yield f"{at} is {json.dumps(value)}"
            elif field == "capabilities" and isinstance(value, dict) and value.get("add"):
                yield f"{at} adds {json.dumps(value['add'])}"
            elif field == "seccompProfile" and value != {"type": "RuntimeDefault"}:
                yield f"{at} is {json.dumps(value)}, not RuntimeDefault"
            else:
                yield from given_away(value, at)
    elif isinstance(part, list):
        for item in part:
            yield from given_away(item, where)


def of_words(words: list[str]) -> Iterator[str]:
    """A parameter must not become a program, and a secret must not be in the file."""
    templated = [number for number, word in enumerate(words) if "{{" in word]
    if templated and any(Path(word).name in SHELLS for word in words[: templated[0] + 1]):
        yield "a parameter goes through a shell, which would run its value"
    elif any(number and words[number - 1] == "-c" for number in templated):
        yield "a parameter is in the code after -c, which would run its value"
    if any(SECRET.search(word) for word in words):
        yield "the arguments hold what looks like a secret; take it from one with secretKeyRef"
    parted = [part for word in words for part in re.split("(?<=^--profile)=", word)]
    for flag, value in pairwise(parted):
        if flag == "--profile" and "{{" not in value:
            profiles = sorted(file.stem for file in (ROOT / "lora_profiles").glob("*.yaml"))
            if value not in profiles:
                yield f"--profile {value} is none of {', '.join(profiles)}"


def literals(patch: str) -> list[str]:
    """The patches among which an expression chooses, or the only patch."""
    return re.findall(r":'(\{.*?\})'[,}]", patch) if patch.startswith("{{=") else [patch]


def of_patch(patch: str) -> Iterator[str]:
    if patch and not literals(patch):
        yield "podSpecPatch is no choice from a table of patches, so that nobody can check it"
    for literal in literals(patch):
        try:
            content = yaml.safe_load(literal) or {}
        except yaml.YAMLError:
            continue
        faults = [*given_away(content, ""), *of_quantities(content)]
        yield from (f"podSpecPatch: {fault}" for fault in faults)


def of_quantities(part: Any) -> Iterator[str]:
    """Amounts in requests and limits, at any depth, that Kubernetes could not read."""
    if isinstance(part, list):
        for item in part:
            yield from of_quantities(item)
    elif isinstance(part, dict):
        for field, value in part.items():
            if field not in ("requests", "limits") or not isinstance(value, dict):
                yield from of_quantities(value)
                continue
            for name, amount in value.items():
                if "{{" not in str(amount) and not QUANTITY.fullmatch(str(amount)):
                    yield f"{field}.{name} {amount!r} is no quantity, such as 4Gi or 500m"


ENDS = {
    "a user's mistake (2)": ("Failed", "2", "Error (exit code 2)", False),
    "a bug (1)": ("Failed", "1", "Error (exit code 1)", False),
    "memory that ran out (137)": ("Failed", "137", "OOMKilled (exit code 137)", False),
    "exit code 75": ("Failed", "75", "Error (exit code 75)", True),
    "a lost pod": ("Error", "0", "pod deleted", True),
}
"""How a pod can end: status, exit code (a text in expressions), message; whether to try again."""


def of_retry(retry: Retry) -> Iterator[str]:
    if not retry.limit:
        yield "retryStrategy.limit 0 tries nothing again"
    if retry.expression is None:
        return
    for attempt, (status, code, message, again) in ENDS.items():
        values = {"exitCode": code, "status": status, "message": message, "duration": "60"}
        try:
            retried = retry.expression.is_true({f"lastRetry.{k}": v for k, v in values.items()})
        except EvaluationError as error:
            yield f"retryStrategy.expression cannot be told after {attempt}: {error}"
            continue
        if (status in retry.phases and retried) != again:
            wrong = "is not tried again" if again else "is tried again"
            hint = "; exitCode is a text, so asInt(lastRetry.exitCode)" if again else ""
            yield f"retryStrategy: {attempt} {wrong}{hint}"


def of_outputs(words: list[str], template: Object) -> Iterator[str]:
    """Output files that the step's source does not name: the step would never write them."""
    step = next((word for word in words[:2] if re.fullmatch(r"steps/[a-z]\w*\.py", word)), "")
    if not step or not (ROOT / step).is_file():
        return
    source = (ROOT / step).read_text(encoding="utf-8")
    for output in template.get("outputs", {}).get("parameters", []):
        name = Path(output["valueFrom"]["path"]).name
        named = rf"""["']{re.escape(name)}["']|\b{re.escape(name.replace("-", "_"))}="""
        if not ("hand_over(" in source if name == "run-id" else re.search(named, source)):
            yield f"output {output['name']}: {step} writes no file {name}"
