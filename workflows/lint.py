"""Check rendered workflows against what Argo would do and what production needs.

    python workflows/lint.py
    python workflows/lint.py workflows/sweep.yaml

Needs no cluster. The local runner's reader checks fields, names, references and arguments. The
rules here add what production needs. Where `argo` is installed, its own linter runs, too.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click
import production
import yaml

from runner.documents import load
from runner.language import (
    OUT_DIR,
    OUTCOMES,
    OUTPUT,
    REFERENCE,
    Dag,
    Object,
    Refused,
    Task,
    Workflow,
    listed,
)
from runner.reader import understood

ROOT = Path(__file__).parents[1]
NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


@click.command()
@click.argument("files", nargs=-1, type=click.Path(exists=True, dir_okay=False, path_type=Path))
def lint(files: tuple[Path, ...]) -> None:
    """Check rendered workflows; FILES are by default all of them. Ends with 1 if one is refused."""
    chosen = files or tuple(sorted(Path(__file__).parent.glob("*.yaml")))
    all_findings = [f"{file.name}: {finding}" for file in chosen for finding in findings(file)]
    all_findings += argo_findings(chosen)
    if not shutil.which("argo"):
        click.echo("argo is not installed, so `argo lint` was not run", err=True)
    for finding in all_findings:
        click.echo(finding, err=True)
    if all_findings:
        sys.exit(1)
    click.echo(f"{len(chosen)} workflows: no findings")


def findings(file: Path) -> list[str]:
    """What is wrong with a workflow, each with the template's name."""
    try:
        document = load(file)
        workflow = understood(document)
    except Refused as error:
        return [error.message]
    spec = document["spec"].get("workflowSpec", document["spec"])
    lines = [*of_workflow(document, spec), *unused(workflow)]
    lines += [f"spec: {message}" for message in production.of_spec(document, spec)]
    for template in spec["templates"]:
        where = f"template {template['name']}"
        lines += [f"{where}: {message}" for message in of_template(template, spec)]
        if "container" in template:
            messages = production.of_template(template, workflow.templates[template["name"]])
            lines += [f"{where}: {message}" for message in messages]
        if "resource" in template:
            messages = production.of_resource(template, workflow.templates[template["name"]])
            lines += [f"{where}: {message}" for message in of_resource(template, spec)]
            lines += [f"{where}: {message}" for message in messages]
    for name, read_template in workflow.templates.items():
        if isinstance(read_template.definition, Dag):
            messages = of_dag(workflow, read_template.definition.tasks)
            lines += [f"template {name}: {message}" for message in messages]
    return lines


def of_workflow(document: Object, spec: Object) -> Iterator[str]:
    metadata = document.get("metadata", {})
    annotations = metadata.get("annotations", {})
    for key in ("title", "description"):
        if not annotations.get(f"workflows.argoproj.io/{key}"):
            yield f"metadata: no annotation workflows.argoproj.io/{key} for the UI"
    for field in ("activeDeadlineSeconds", "podGC", "ttlStrategy", "serviceAccountName", "onExit"):
        if not spec.get(field):
            yield f"spec: no {field}"
    if spec.get("automountServiceAccountToken") is not False:
        yield "spec: automountServiceAccountToken is not false, so every step gets a token"
    if within(spec, "securityContext", "runAsNonRoot") is not True:
        yield "spec: securityContext.runAsNonRoot is not true"
    if within(spec, "securityContext", "seccompProfile", "type") != "RuntimeDefault":
        yield "spec: securityContext.seccompProfile is not RuntimeDefault"
    for parameter in within(spec, "arguments", "parameters") or []:
        where = f"spec: parameter {parameter['name']}"
        if not parameter.get("description"):
            yield f"{where} has no description"
        if "value" not in parameter:
            yield f"{where} has no default"
        if "image" in parameter["name"] and (fault := untagged(str(parameter.get("value")))):
            yield f"{where}: {fault}"
    name = metadata.get("generateName", metadata.get("name", ""))
    # A pod's name also has the template's name and a hash; it has at most 63 characters.
    if not NAME.fullmatch(name.rstrip("-")) or len(name) > 40:
        yield f"metadata: {name!r} is no name of at most 40 letters, digits and dashes"


def within(value: Any, *path: str) -> Any:
    """The value at a path of fields; None where there is none."""
    for field in path:
        value = value.get(field) if isinstance(value, dict) else None
    return value


def unused(workflow: Workflow) -> Iterator[str]:
    called = {workflow.entrypoint, workflow.on_exit}
    for template in workflow.templates.values():
        called |= {task.template for task in template.tasks}
    for name in workflow.templates.keys() - called:
        yield f"template {name}: nothing calls it"


def of_template(template: Object, spec: Object) -> Iterator[str]:
    """Names and outputs of any template, and the rules for container templates."""
    if not NAME.fullmatch(template["name"]):
        yield "its name is not made of at most 63 small letters, digits and dashes"
    dag: Any = template.get("dag") or {}
    groups = [dag.get("tasks") or [], *(template.get("steps") or [])]
    for task in (task for group in groups for task in group):
        if not NAME.fullmatch(task["name"]):
            yield f"the name {task['name']} is not made of small letters, digits and dashes"
    for output in (template.get("outputs") or {}).get("parameters") or []:
        if "default" not in output["valueFrom"]:
            yield f"output {output['name']} has no default, so a lost file ends the workflow"
    if "container" in template:
        yield from of_container(template, template["container"], spec)
        yield from of_pod(template, template["container"], spec)


def of_resource(template: Object, spec: Object) -> Iterator[str]:
    """Rules for objects that Argo creates: they belong to the workflow, and their pods are safe."""
    yield from of_pod(template, {}, spec)
    resource = template["resource"]
    if resource["action"] not in ("apply", "create"):
        return
    if resource.get("setOwnerReference") is not True:
        yield "resource: setOwnerReference is not true, so that it outlives the workflow"
    if resource["action"] == "create":
        yield "resource: create makes another one when Argo's pod is lost; use apply"
    manifest = production.made_by(resource)
    pod = within(manifest, "spec", "template", "spec")
    if not within(manifest, "spec", "activeDeadlineSeconds"):
        yield "manifest: no activeDeadlineSeconds, so it can run for ever"
    if "container" not in template and pod:
        (container,) = pod["containers"]
        at = {"outputs": template.get("outputs"), "volumes": pod.get("volumes", [])}
        messages = of_container(at, container, {})
        yield from (f"manifest: {message}" for message in messages)
        if within(pod, "securityContext", "runAsNonRoot") is not True:
            yield "manifest: securityContext.runAsNonRoot is not true"
        resources = container.get("resources", {})
        bounded = resources.get("requests", {}).keys() & resources.get("limits", {}).keys()
        if "memory" not in bounded:
            yield "manifest: it does not request and limit memory"


def of_container(template: Object, container: Object, spec: Object) -> Iterator[str]:
    words = [*container["command"], *container.get("args", [])]
    image = container.get("image", "")
    if "{{" not in image and (fault := untagged(image)):
        yield fault
    if "{{" in json.dumps(container.get("resources") or {}):
        yield "resources take no parameters; use podSpecPatch"
    mounts = {
        str(m.get("name")): str(m.get("mountPath")) for m in container.get("volumeMounts", [])
    }
    volumes = {str(v.get("name")) for v in [*spec.get("volumes", []), *template.get("volumes", [])]}
    if missing := mounts.keys() - volumes:
        yield f"it mounts {listed(missing)}, which is no volume of it"
    security = container.get("securityContext", {})
    if security.get("readOnlyRootFilesystem") is not True:
        yield "securityContext.readOnlyRootFilesystem is not true"
    elif (template.get("outputs") or {}).get("parameters") and not any(
        path == OUT_DIR or OUT_DIR.startswith(f"{path}/") for path in mounts.values()
    ):
        yield f"no volume is mounted at or above {OUT_DIR}, and nothing else can be written"
    if security.get("allowPrivilegeEscalation") is not False:
        yield "securityContext.allowPrivilegeEscalation is not false"
    if within(security, "capabilities", "drop") != ["ALL"]:
        yield "securityContext.capabilities does not drop ALL"
    yield from of_command_line(words)


def of_pod(template: Object, container: Object, spec: Object) -> Iterator[str]:
    deadline, whole = template.get("activeDeadlineSeconds"), spec.get("activeDeadlineSeconds")
    if not deadline:
        yield "no activeDeadlineSeconds, so it can run for ever"
    elif whole and int(deadline) > int(whole):
        yield f"activeDeadlineSeconds {deadline} is more than the workflow's {whole}"
    retry = template.get("retryStrategy") or {}
    if "expression" not in retry:
        yield "no retryStrategy.expression that tells a lost pod from a user's mistake"
    elif "backoff" not in retry:
        yield "no retryStrategy.backoff, so that it is tried again at once"
    patch = template.get("podSpecPatch", "")
    if not patch and not container.get("resources"):
        yield "neither resources nor a podSpecPatch with them"
    for literal in production.literals(patch):
        try:
            content = yaml.safe_load(literal) or {}
            main = next(c for c in content["containers"] if c["name"] == "main")
            bounded = main["resources"]["requests"].keys() & main["resources"]["limits"].keys()
            if literal and "memory" not in bounded:
                yield "podSpecPatch does not request and limit memory"
        except (yaml.YAMLError, KeyError, StopIteration, TypeError, AttributeError):
            if literal:
                yield "podSpecPatch holds no resources of the container main"


def untagged(image: str) -> str:
    """Why an image's reference is not fixed; empty if it is."""
    tag = image.rpartition("/")[2].partition("@")[0].partition(":")[2]
    if "@sha256:" in image or (tag and tag != "latest"):
        return ""
    return f"image {image!r} has no tag of its own"


def of_command_line(words: list[str]) -> Iterator[str]:
    """Errors of the arguments, checked with the step's own parser."""
    if words[0] != "python" or not words[1:] or not words[1].startswith("steps/"):
        return
    if not re.fullmatch(r"steps/[a-z]\w*\.py", words[1]) or not (ROOT / words[1]).is_file():
        yield f"{words[1]} is no file of the repository"
        return
    command, arguments = step_command(ROOT / words[1]), words[2:]
    context = click.Context(command, info_name=words[1])
    try:
        values, rest, _ = command.make_parser(context).parse_args(arguments)
        if rest:
            yield f"{words[1]} takes no {' '.join(rest)}"
        for parameter in command.params:
            value = values.get(parameter.name or "")
            if parameter.required and parameter.name not in values:
                yield f"{words[1]} needs {parameter.opts[0]}"
            elif isinstance(value, str) and "{{" not in value and "$(" not in value:
                parameter.type_cast_value(context, value)
    except click.UsageError as error:
        yield f"{words[1]}: {error.format_message()}"


def step_command(file: Path) -> click.Command:
    """The click command of a step."""
    spec = importlib.util.spec_from_file_location(f"steps_{file.stem}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    command = getattr(module, file.stem)
    assert isinstance(command, click.Command)
    return command


def of_dag(workflow: Workflow, tasks: list[Task]) -> Iterator[str]:
    """References whose value depends on Argo's release, or that `when` could not read."""
    by_name = {task.name: task for task in tasks}
    for task in tasks:
        read = REFERENCE.findall(" ".join([task.when, *task.arguments.values(), str(task.items)]))
        for reference in (name.strip() for name in read):
            if not (output := OUTPUT.fullmatch(reference)) or output[1] not in by_name:
                continue
            upstream = by_name[output[1]]
            declared = workflow.templates[upstream.template].outputs[output[2]]
            if declared.default and runs_without(task.name, upstream.name, tasks):
                yield (
                    f"task {task.name} reads {{{{{reference}}}}} even where {upstream.name} did "
                    f"not run: Argo 3 gives an empty text then, Argo 4 the default"
                )
        for reference in re.findall(r"""(?<!['"\w])\{\{(tasks\.[^}]*)\}\}(?!['"\w])""", task.when):
            output = OUTPUT.fullmatch(reference.strip())
            if output is None or output[1] not in by_name:
                continue
            default = workflow.templates[by_name[output[1]].template].outputs[output[2]].default
            if default is not None and not re.fullmatch(r"[A-Za-z]\w*|\d+", default):
                yield (
                    f"task {task.name}: when has {{{{{reference}}}}} without quotes, and its "
                    f"default {default!r} is no word that can stand there"
                )


def runs_without(name: str, missing: str, tasks: list[Task]) -> bool:
    """Whether a task would run although another was skipped, or omitted after a failure."""
    skippable = [missing] if next(task for task in tasks if task.name == missing).when else []
    for failing in [*skippable, *(task.name for task in tasks if task.name != missing)]:
        phases = {failing: "Skipped" if failing == missing else "Failed"}
        for task in tasks:
            facts = {
                leaf: phases[leaf.partition(".")[0]] in phases_of(leaf)
                for leaf in task.depends.names
            }
            runs = task.depends.is_true(facts)
            phases.setdefault(task.name, "Succeeded" if runs else "Omitted")
            if task.name == failing and not runs:
                phases[task.name] = "Omitted"
        if phases[missing] in ("Skipped", "Omitted") and phases[name] == "Succeeded":
            return True
    return False


def phases_of(leaf: str) -> Iterable[str]:
    """Phases for which a name in `depends` holds."""
    word = leaf.partition(".")[2]
    if not word:
        return ("Succeeded", "Skipped")
    return (OUTCOMES.get(word) or {"AnySucceeded": "Succeeded", "AllFailed": "Failed"}[word],)


def argo_findings(files: Iterable[Path]) -> list[str]:
    """The complaints of `argo lint`, one line for each file, if it is installed."""
    if not shutil.which("argo"):
        return []
    lines = []
    for file in files:
        command = ["argo", "lint", "--offline", "--no-color", str(file)]
        linted = subprocess.run(command, capture_output=True, text=True, check=False)
        if linted.returncode:
            output = " ".join((linted.stdout + linted.stderr).split())
            lines.append(f"{file.name}: argo lint: {output}")
    return lines


if __name__ == "__main__":
    lint()
