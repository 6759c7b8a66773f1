"""Run a rendered workflow on this machine, container by container, from the file that Argo runs.

    python -m runner.run_local workflows/pipeline.yaml -p profile=smoke-vision

A container becomes a process in the current folder; its `/tmp/outputs` becomes a folder of the
node's own under outputs/. What this runner would do otherwise than Argo is refused by name before
anything starts. Nodes run in parallel where the workflow allows it; each mutex and each semaphore
has the limit 1.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import re
import shutil
import signal
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import click

from runner.command import Command
from runner.dry_run import print_commands
from runner.execution import Run
from runner.language import (
    Dag,
    Refused,
    Suspend,
    Values,
    Workflow,
    listed,
)
from runner.nodes import Node, as_values, from_status
from runner.reader import parameter_values, read

STYLES = {"Succeeded": "green", "Failed": "bold red", "Error": "bold red", "Skipped": "yellow"}
WAITS = 75
"""Exit code of a run that waits for a person's answer or a --resume."""


class StillRunning(click.ClickException):
    """Another process executes this run; nothing has been started."""

    exit_code = 75


class Unwritable(click.ClickException):
    """The run's folder cannot be written, as on a full disk; nothing runs any more."""

    exit_code = 75


@click.command(cls=Command)
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "-p", "assignments", metavar="NAME=VALUE", multiple=True, help="Set a workflow parameter."
)
@click.option(
    "--answer",
    "answers",
    metavar="TASK.NAME=VALUE",
    multiple=True,
    help="Answer to a suspended task; TASK alone resumes it.",
)
@click.option(
    "--resume", is_flag=True, help="Continue the last run: keep what succeeded, run the rest."
)
@click.option(
    "--from",
    "from_task",
    metavar="TASK",
    help="Run TASK of the last run again, and what follows it.",
)
@click.option("--only", metavar="TASK", help="Run TASK of the last run again, and nothing else.")
@click.option("--name", "new_name", help="Name of the new run, and of its folder under outputs/.")
@click.option(
    "--run",
    "earlier_name",
    help="With --resume, --from or --only: a run under outputs/ other than the last.",
)
@click.option(
    "--preload",
    metavar="MODULE",
    multiple=True,
    help="Module to import once, in a process from which Python scripts are forked.",
)
@click.option("--dry-run", is_flag=True, help="Print the commands; run nothing.")
def run_local(
    file: Path,
    assignments: tuple[str, ...],
    answers: tuple[str, ...],
    resume: bool,
    from_task: str | None,
    only: str | None,
    new_name: str | None,
    earlier_name: str | None,
    preload: tuple[str, ...],
    dry_run: bool,
) -> None:
    """Run the Argo workflow in FILE on this machine.

    Ends with 0 if the workflow succeeded, with 75 if it waits for an answer, else with the exit
    code of the step that failed.
    """
    workflow = read(file)
    replies = dict(split_assignment(answer) for answer in answers)
    refuse_unknown(workflow, replies)
    if dry_run and (resume or earlier_name):
        raise Refused(
            "--dry-run starts no run; it goes with -p, --from and --only, not with others"
        )
    if new_name and (resume or from_task or only or dry_run):
        raise Refused("--name is for a new run; name a run that is continued with --run")
    if sum(map(bool, (resume, from_task, only))) > 1:
        raise Refused("--resume, --from and --only exclude each other; give one of them")
    if earlier_name and not (resume or from_task or only):
        raise Refused(
            f"--run {earlier_name} names a run to continue: give --resume, --from or --only, too"
        )
    first_task = from_task or only
    selected = tasks(workflow, first_task) if first_task else None
    if dry_run:
        values = parameter_values(workflow, assignments, {})
        print_commands(workflow, values, {only} if only else selected)
        return
    progress = Progress(workflow)
    if resume or from_task or only:
        earlier_name = earlier_name or latest_of(file)
        run = continued_run(
            workflow, earlier_name, assignments, replies, from_task, only or "", progress.show
        )
    else:
        uid = str(uuid.uuid4())
        name = new_name or f"{workflow.prefix}{datetime.now():%Y%m%d-%H%M%S}-{uid[:4]}"
        refuse_name(workflow, name)
        parameters = parameter_values(workflow, assignments, {})
        run = Run(Path.cwd(), workflow, name, uid, parameters, replies, {}, progress.show)
    signals: list[int] = []
    run.programs.preload = preload
    try:
        point_latest_at(run, file)
        with locked(run), asyncio.Runner() as runner, stopped_by_signals(run, runner, signals):
            if from_task and selected:
                remove_outputs(run.root / run.folder, selected)
            runner.run(run.execute())
    except OSError as error:
        raise Unwritable(f"{error.filename}: {error.strerror}; continue with --resume") from error
    click.echo(f"status  {run.folder / 'status.json'}")
    sys.exit(exit_code(run, signals, file))


def refuse_name(workflow: Workflow, name: str) -> None:
    """Refuse a name that is no folder name, lacks the workflow's prefix, or is in use."""
    if not re.fullmatch(rf"{re.escape(workflow.prefix)}[a-z0-9]([a-z0-9.-]*[a-z0-9])?", name):
        raise Refused(f"--name {name}: write {workflow.prefix}… in small letters, digits, - and .")
    if (Path.cwd() / "outputs" / name).exists():
        raise Refused(f"--name {name}: there is such a run; continue it with --run {name} --resume")


def refuse_unknown(workflow: Workflow, answers: Values) -> None:
    """Refuse an answer that no task asks for, or that its task would not accept."""
    questions: dict[str, list[str]] = {}
    for template in workflow.templates.values():
        for task in template.tasks:
            suspended = workflow.templates.get(task.template)
            if suspended is None or not isinstance(suspended.definition, Suspend):
                continue
            inputs = suspended.inputs
            questions |= {
                f"{task.name}.{name}": inputs[name].enum if name in inputs else []
                for name in suspended.outputs
            } or {task.name: []}
    for question, answer in answers.items():
        # A member of a fan-out is named `task(0:item)`.
        accepted = questions.get(re.sub(r"\(.*\)", "", question))
        if accepted is None:
            raise Refused(f"--answer {question}: no task asks that; accepted: {listed(questions)}")
        if accepted and answer not in accepted:
            raise Refused(f"--answer {question}={answer} is none of {listed(accepted)}")


@contextmanager
def locked(run: Run) -> Iterator[None]:
    """Lock the run. Its containers share the lock, as they may outlive a killed runner."""
    with (run.root / run.folder / ".lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            at_work = ", ".join(users_of(Path(file.name))) or "unknown"
            raise StillRunning(
                f"{run.name} is still running (processes {at_work}); wait for them, or stop them"
            ) from error
        run.programs.lock = file.fileno()
        yield


def remove_outputs(folder: Path, names: set[str]) -> None:
    """Remove the folders of tasks that run again: a task that is skipped this time leaves nothing
    that could be taken for its result."""
    for place in folder.iterdir():
        if place.is_dir() and re.sub(r"\.\d+$", "", place.name) in names:
            shutil.rmtree(place)


def users_of(file: Path) -> list[str]:
    """IDs of other processes that have a file open, as far as /proc shows them."""
    pids = []
    for folder in Path("/proc").glob("[0-9]*/fd"):
        with suppress(OSError):
            if any(link.readlink() == file for link in folder.iterdir()):
                pids.append(folder.parent.name)
    return sorted(set(pids) - {str(os.getpid())}, key=int)


def split_assignment(answer: str) -> tuple[str, str]:
    name, _, value = answer.partition("=")
    return name, value


def tasks(workflow: Workflow, name: str) -> set[str]:
    """A task of the entrypoint and all tasks that depend on it; Refused for an unknown task."""
    definition = workflow.templates[workflow.entrypoint].definition
    dag_tasks = definition.tasks if isinstance(definition, Dag) else []
    if name not in {task.name for task in dag_tasks}:
        raise Refused(
            f"{name} is no task of {workflow.entrypoint}; there are "
            f"{listed(task.name for task in dag_tasks)}"
        )
    after = {name}
    for task in dag_tasks:
        if set(task.upstreams) & after:
            after.add(task.name)
    return after


def continued_run(
    workflow: Workflow,
    earlier_name: str,
    assignments: tuple[str, ...],
    answers: Values,
    from_task: str | None,
    only: str,
    show: Callable[[Node], None],
) -> Run:
    """The run `earlier_name`, to be continued with its name, its parameters and the nodes kept."""
    file = Path.cwd() / "outputs" / earlier_name / "status.json"
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise Refused(f"{file} cannot be read ({error}); run the workflow first") from error
    name, uid = document["metadata"]["name"], document["metadata"]["uid"]
    if not name.startswith(workflow.prefix):
        raise Refused(f"{name} is a run of another workflow; --run names one of {workflow.prefix}…")
    parameters = as_values(document["spec"]["arguments"]["parameters"])
    again = tasks(workflow, from_task) if from_task else {only} if only else set()
    kept = {}
    statuses = document["status"]["nodes"]
    names = {node_id: node["name"] for node_id, node in statuses.items()}
    for status in statuses.values():
        node = from_status(status, names)
        head = re.split(r"[.(\[]", node.name.removeprefix(f"{name}."))[0]
        if node.name == name or node.name.startswith(f"{name}.onExit") or head in again:
            continue
        # A group that succeeded runs again: it only contains nodes, and does nothing itself.
        if only or (node.phase == "Succeeded" and node.type not in ("TaskGroup", "StepGroup")):
            kept[node.name] = node
    values = parameter_values(workflow, assignments, parameters)
    for parameter in (p for p in parameters if values.get(p) != parameters[p]):
        change = f"{parameter} was {parameters[parameter]!r} for what is kept of {name}"
        click.echo(f"{change}, and is {values.get(parameter)!r} from here on", err=True)
    return Run(Path.cwd(), workflow, name, uid, values, answers, kept, show, only)


def latest_of(file: Path) -> str:
    """Name of the link to the last run of a workflow, as `latest-sweep` for sweep.yaml."""
    return f"latest-{file.stem}"


def point_latest_at(run: Run, file: Path) -> None:
    """Point the links to the last run, of this workflow and of any workflow, to this run."""
    (run.root / run.folder).mkdir(parents=True, exist_ok=True)
    link = run.root / run.folder.with_name(f".{run.name}")
    for name in ("latest", latest_of(file)):
        link.unlink(missing_ok=True)
        link.symlink_to(run.name)
        link.replace(link.with_name(name))


@contextmanager
def stopped_by_signals(run: Run, runner: asyncio.Runner, signals: list[int]) -> Iterator[None]:
    """On a signal, stop the running containers and then the run; a second signal kills at once."""
    loop = runner.get_loop()

    def stop(signum: int) -> None:
        if not signals and signum == signal.SIGINT:
            click.echo("interrupted: stopping what runs; Ctrl-C again kills it at once", err=True)
        run.interrupt(at_once=bool(signals))
        signals.append(signum)

    handled = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        handled.remove(signal.SIGHUP)  # nohup asked for it
    for signum in handled:
        loop.add_signal_handler(signum, stop, signum)
    try:
        yield
    finally:
        for signum in handled:
            loop.remove_signal_handler(signum)


def exit_code(run: Run, signals: list[int], file: Path) -> int:
    if signals:
        return 128 + signals[0]
    if run.waits_for and run.phase == "Running":
        question = run.waits_for[0]
        click.echo(
            f"{run.name} waits for an answer; continue with: "
            f".venv/bin/python -m runner.run_local {file} --resume --answer {question}=…",
            err=True,
        )
        return WAITS
    if run.phase == "Succeeded":
        return 0
    pods = (node for node in run.nodes.values() if node.failed and node.type == "Pod")
    failed = [node for node in pods if failed_for_good(run, node)]
    # The exit handler tells how the workflow ended, and is not why.
    of_the_end = f"{run.name}.onExit"
    failed = [node for node in failed if not node.name.startswith(of_the_end)] or failed
    last = max(failed, key=lambda node: node.finished or run.started, default=None)
    return (last.exit_code if last else None) or 1


def failed_for_good(run: Run, node: Node) -> bool:
    """Whether a pod failed in this execution, and no later attempt made up for it."""
    if node is run.kept.get(node.name):
        return False
    while (boundary := run.nodes.get(node.boundary)) and boundary.name != run.name:
        if not boundary.failed:
            return False
        node = boundary
    return True


class Progress:
    """A line on standard error whenever a node begins or ends."""

    def __init__(self, workflow: Workflow) -> None:
        from rich.console import Console

        names = [task.name for t in workflow.templates.values() for task in t.tasks]
        self.width = max(map(len, names), default=8)
        self.console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)

    def show(self, node: Node) -> None:
        self.console.print(self.line(node), style=STYLES.get(node.phase))

    def line(self, node: Node) -> str:
        seconds = ((node.finished or datetime.now(UTC)) - node.started).total_seconds()
        hint = f" ({node.hint})" if node.hint else ""
        line = f"{node.display:{self.width}}  {node.phase:9}  {seconds:7.1f} s  {node.message}"
        return f"{line}{hint}".rstrip()


if __name__ == "__main__":
    run_local()
