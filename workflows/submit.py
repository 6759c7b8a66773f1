"""Submit a rendered workflow to the cluster, watch it, and end as it ended.

    python workflows/submit.py workflows/pipeline.yaml -p profile=smoke-text
    python workflows/submit.py workflows/pipeline.yaml -p profile=recipes/mine.yaml

Argo takes parameters that no workflow has and values that its enums do not list, and finds out when
a step has failed of them; and `argo submit --watch` ends with 0 whatever came of the workflow. The
recipes of this machine go with the workflow, so that the image on the cluster need not hold them.
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

from loraline import profile_files, profiles
from loraline.errors import UserError
from runner.command import Command
from runner.reader import parameter_values, read

NOT_DONE = 1
"""Exit code of a workflow that was submitted and did not succeed."""

RENDERED = Path("outputs", "workflows")
"""Where a workflow is rendered whose profile is no file of ours."""


@click.command(cls=Command)
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("-p", "given", metavar="NAME=VALUE", multiple=True, help="Set a workflow parameter.")
@click.option(
    "--classes",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="YAML file with resource classes of this cluster; docs/cluster.md says what it holds.",
)
@click.option("--check", is_flag=True, help="Look at the parameters and profiles; submit nothing.")
@click.option("--namespace", default="loraline", show_default=True, help="Where it runs.")
@click.option("--no-watch", is_flag=True, help="Print its name and end, without waiting for it.")
def submit(
    file: Path,
    given: tuple[str, ...],
    classes: Path | None,
    check: bool,
    namespace: str,
    no_watch: bool,
) -> None:
    """Run the workflow in FILE on the cluster of the current context.

    A profile may be a file, too. Ends with 0 if the workflow succeeded, with 1 if not, with 2 if it
    was not submitted; with --no-watch, with 0 as soon as it was.
    """
    try:
        file, parameters = with_recipes(file, given, classes)
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
    # A picture that is drawn anew each second is for a terminal.
    watch = "watch" if sys.stdout.isatty() else "wait"
    subprocess.run(["argo", watch, "--namespace", namespace, name], check=False)
    got = subprocess.run(
        ["argo", "get", "--namespace", namespace, "--output", "json", name],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    status = json.loads(got.stdout)["status"]
    phase = status.get("phase", "Pending")
    for line in run_ids(status):
        click.echo(line)
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
    file: Path, given: Sequence[str], classes: Path | None = None
) -> tuple[Path, list[str]]:
    """The workflow to submit, and its parameters with the recipes of the profiles they name.

    A profile that the workflow does not list, and a file of `classes`, get a rendering of their
    own. Raises UserError for what is unknown or wrong in either, before anything is submitted.
    """
    workflow = read(file)
    values = dict(parameter.partition("=")[::2] for parameter in given)
    machines = several_machines(values.get("resources", ""), file.stem, classes)
    if "recipes" not in workflow.parameters or "recipes" in values or "profile" not in values:
        if classes or machines:
            file = rendered(file.stem, {}, classes, machines)
        return file, list(given)
    known = profile_files.files()
    values["profile"] = named(values["profile"], known)
    members = listed(values["profiles"]) if "profiles" in values else []
    asked = list(dict.fromkeys([values["profile"], *members]))
    recipes = {name: profile_files.resolve(name, known) for name in asked}
    try:
        overrides = shlex.split(values.get("set", ""))
    except ValueError as error:
        raise UserError(f"-p set={values['set']} cannot be read: {error}") from error
    loaded = {name: profiles.load(name, overrides=overrides, recipes=recipes) for name in asked}
    models = {name: profile.registered_model for name, profile in loaded.items()}
    if machines and loaded[values["profile"]].train == "full":
        raise UserError(
            f"-p resources={machines}: train: full takes one machine, which may have several cards"
        )
    listed_profiles = workflow.parameters["profile"].enum or ()
    if classes or machines or values["profile"] not in listed_profiles:
        file = rendered(file.stem, models, classes, machines)
    values["recipes"] = yaml.safe_dump(recipes, sort_keys=False, allow_unicode=True)
    return file, [f"{name}={value}" for name, value in values.items()]


def named(profile: str, known: dict[str, Path]) -> str:
    """The name of a profile; one that is given as a file joins those that are known."""
    path = Path(profile)
    if path.suffix not in (".yaml", ".yml"):
        return profile
    if not path.is_file():
        raise UserError(f"-p profile={profile}: there is no such file")
    known[path.stem] = path
    return path.stem


def listed(members: str) -> list[str]:
    """The names of a JSON list."""
    try:
        names = json.loads(members)
    except ValueError:
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"-p profiles={members} is not a JSON list of profiles")
    return names


def several_machines(asked: str, workflow: str, classes: Path | None) -> str:
    """A class of several machines; empty where one machine trains. UserError where one has to."""
    import pipeline
    import resources

    wanted = resources.load(classes).get(asked)
    if wanted is None or wanted.machines == 1:
        return ""
    if workflow not in pipeline.ON_SEVERAL_MACHINES:
        raise UserError(
            f"-p resources={asked}: {workflow} trains on one machine; "
            f"{' and '.join(pipeline.ON_SEVERAL_MACHINES)} train on several"
        )
    return asked


def rendered(
    name: str, models: Mapping[str, str], classes: Path | None = None, machines: str = ""
) -> Path:
    """A workflow with these profiles, their registered models and these classes beside ours.

    It trains on the class `machines`, if that is not empty.
    """
    import pipeline
    import resources
    from templates import Settings

    RENDERED.mkdir(parents=True, exist_ok=True)
    file = RENDERED / f"{name}.yaml"
    settings = Settings(sent_models=models, classes=resources.load(classes), machines=machines)
    file.write_text(pipeline.render(pipeline.build(name, settings=settings)))
    return file


if __name__ == "__main__":
    submit()
