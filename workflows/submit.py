"""Submit a rendered workflow to the cluster, watch it, and end as it ended.

    python workflows/submit.py workflows/pipeline.yaml -p profile=smoke-text
    python workflows/submit.py workflows/pipeline.yaml -p profile=recipes/mine.yaml

Argo accepts unknown parameters and values that an enum does not list, and then a step fails; and
`argo submit --watch` ends with 0 whether the workflow succeeded or not. This program checks both.
It also sends the recipes of this machine along, so that no image has to contain them.
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import yaml

from loraline.errors import UserError
from loraline.profiles import catalog
from loraline.profiles.loading import load_profile
from runner.command import Command, say
from runner.reader import parameter_values, read

NOT_DONE = 1
"""Exit code of a workflow that was submitted and did not succeed."""

UNSEEN = 75
"""Exit code of a workflow that was submitted and of which the cluster told no end."""

RENDERED = Path("outputs", "workflows")
"""Where a workflow is rendered for a profile or a class that the committed file does not list."""


@click.command(cls=Command)
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "-p", "assignments", metavar="NAME=VALUE", multiple=True, help="Set a workflow parameter."
)
@click.option(
    "--classes",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="YAML file with resource classes of this cluster; docs/cluster.md says what it holds.",
)
@click.option("--check", is_flag=True, help="Check the parameters and profiles; submit nothing.")
@click.option("--namespace", default="loraline", show_default=True, help="Namespace to run in.")
@click.option(
    "--no-watch", is_flag=True, help="Print the workflow's name and end; do not wait for it."
)
def submit(
    file: Path,
    assignments: tuple[str, ...],
    classes: Path | None,
    check: bool,
    namespace: str,
    no_watch: bool,
) -> None:
    """Run the workflow in FILE on the cluster of the current context.

    The parameter `profile` may be a file, too. Exit code: 0 if the workflow succeeded, 1 if not, 2
    if it was not submitted, 75 if the cluster was lost meanwhile. With --no-watch, 0 as soon as it
    is submitted.
    """
    try:
        file, parameters = with_recipes(file, assignments, classes)
    except UserError as error:
        raise click.UsageError(str(error)) from error
    parameter_values(read(file), parameters, {})
    if check:
        return
    if not shutil.which("argo"):
        raise click.UsageError(
            "argo, the command line of Argo Workflows, is not installed; its releases are at "
            "https://github.com/argoproj/argo-workflows/releases"
        )
    words = [word for parameter in parameters for word in ("-p", parameter)]
    submitted = subprocess.run(
        ["argo", "submit", "--namespace", namespace, "--output", "name", file, *words],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if submitted.returncode:
        sys.exit(2)
    name = submitted.stdout.strip().rpartition("/")[2]
    if no_watch:
        click.echo(name)
        return
    # `argo watch` redraws the screen each second, which only a terminal can show.
    watch = "watch" if sys.stdout.isatty() else "wait"
    subprocess.run(["argo", watch, "--namespace", namespace, name], check=False)
    fetched = subprocess.run(
        ["argo", "get", "--namespace", namespace, "--output", "json", name],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    status = json.loads(fetched.stdout)["status"] if fetched.returncode == 0 else {}
    phase = status.get("phase", "Pending")
    for line in run_ids(status):
        click.echo(line)
    if phase in ("Pending", "Running"):
        say(submit, f"{name} goes on unseen; see how: argo watch --namespace {namespace} {name}")
        sys.exit(UNSEEN)
    click.echo(f"{name}  {phase}")
    sys.exit(0 if phase == "Succeeded" else NOT_DONE)


def run_ids(status: Mapping[str, Any]) -> list[str]:
    """A line for each step that handed over a run ID, in the order in which they ended."""
    steps = [node for node in status.get("nodes", {}).values() if node["type"] == "Retry"]
    lines = []
    for node in sorted(steps, key=lambda node: node.get("finishedAt") or ""):
        listed_outputs = (node.get("outputs") or {}).get("parameters", [])
        outputs = {each["name"]: each.get("value", "") for each in listed_outputs}
        if outputs.get("run-id"):
            words = (node["displayName"], "run", outputs["run-id"], outputs.get("result", ""))
            lines.append("  ".join(words).rstrip())
    return lines


def with_recipes(
    file: Path, assignments: Sequence[str], classes: Path | None = None
) -> tuple[Path, list[str]]:
    """The workflow to submit, and its parameters with the recipes of the profiles they name.

    For a profile that the workflow does not list, and for a file of `classes`, the workflow is
    rendered again. Raises UserError for a mistake in either, before anything is submitted.
    """
    workflow = read(file)
    values = dict(parameter.partition("=")[::2] for parameter in assignments)
    machines = class_of_machines(values.get("resources", ""), file.stem, classes)
    named = {"profile", "profiles"} & set(values)
    takes_recipes = {"recipes", "profile"} <= set(workflow.parameters)
    if not takes_recipes or "recipes" in values or not named:
        if classes or machines:
            file = rendered(file.stem, {}, classes, machines)
        return file, list(assignments)
    files = catalog.files()
    profile = values.get("profile", workflow.parameters["profile"].preset or "")
    values["profile"] = profile_name(profile, files)
    members = names_in(values["profiles"]) if "profiles" in values else []
    profile_names = list(dict.fromkeys([values["profile"], *members]))
    recipes = {name: catalog.resolve(name, files) for name in profile_names}
    try:
        overrides = shlex.split(values.get("set", ""))
    except ValueError as error:
        raise UserError(f"-p set={values['set']} cannot be read: {error}") from error
    loaded = {
        name: load_profile(name, overrides=overrides, recipes=recipes) for name in profile_names
    }
    models = {name: profile.registered_model for name, profile in loaded.items()}
    if machines and loaded[values["profile"]].train == "full":
        raise UserError(
            f"-p resources={machines}: train: full takes one machine, which may have several cards"
        )
    listed_profiles = workflow.parameters["profile"].enum or ()
    if classes or machines or values["profile"] not in listed_profiles:
        file = rendered(file.stem, models, classes, machines)
    sent = yaml.safe_dump(recipes, sort_keys=False, allow_unicode=True)
    # In a pod's arguments Kubernetes takes `$$` for a dollar and `$(NAME)` for a variable.
    values["recipes"] = sent.replace("$", "$$")
    return file, [f"{name}={value}" for name, value in values.items()]


def profile_name(profile: str, files: dict[str, Path]) -> str:
    """The name of a profile; a profile that is a path is added to `files`."""
    path = Path(profile)
    if path.suffix not in (".yaml", ".yml"):
        return profile
    if not path.is_file():
        raise UserError(f"-p profile={profile}: there is no such file")
    files[path.stem] = path
    return path.stem


def names_in(members: str) -> list[str]:
    """The names of a JSON list, each once: two trainings of the same inputs would take the same
    run from each other."""
    try:
        names = json.loads(members)
    except ValueError:
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"-p profiles={members} is not a JSON list of profiles")
    if not names:
        raise UserError(f"-p profiles={members} names no profile: nothing would be trained")
    if repeated := [name for name in names if names.count(name) > 1]:
        raise UserError(f"-p profiles={members} names {repeated[0]} twice; once is enough")
    return names


def class_of_machines(class_name: str, workflow: str, classes: Path | None) -> str:
    """A class of several machines; empty where one machine trains. UserError where one has to."""
    import pipeline
    import resources

    resource_class = resources.load(classes).get(class_name)
    if resource_class is None or resource_class.machines == 1:
        return ""
    if workflow not in pipeline.ON_SEVERAL_MACHINES:
        raise UserError(
            f"-p resources={class_name}: {workflow} trains on one machine; "
            f"{' and '.join(pipeline.ON_SEVERAL_MACHINES)} train on several"
        )
    return class_name


def rendered(
    name: str, models: Mapping[str, str], classes: Path | None = None, machines: str = ""
) -> Path:
    """The file of a workflow rendered with these registered models by profile and these classes.

    It trains on the class `machines`, if that is not empty. UserError for a workflow of others.
    """
    import pipeline
    import prepare_shares
    import resources
    from templates import Settings

    settings = Settings(sent_models=models, classes=resources.load(classes), machines=machines)
    if name in pipeline.DAGS:
        text = pipeline.render(pipeline.build(name, settings=settings))
    elif name == prepare_shares.RENDERED.stem:
        text = prepare_shares.render(prepare_shares.build(settings))
    else:
        raise UserError(
            f"{name} is no workflow of this project: it cannot be rendered for a profile that it "
            "does not list, or for --classes"
        )
    RENDERED.mkdir(parents=True, exist_ok=True)
    file = RENDERED / f"{name}.yaml"
    file.write_text(text)
    return file


if __name__ == "__main__":
    submit()
