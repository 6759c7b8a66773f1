"""Run one of our workflows from any folder: the rendered file, with the scripts where they are."""

from __future__ import annotations

from pathlib import Path

import click

from loraline_cli import main

FOLDER = Path("outputs", ".workflows")
"""Where a workflow's file is written whose scripts are not in the current folder."""


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("workflow", metavar="WORKFLOW")
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def run(workflow: str, options: tuple[str, ...]) -> None:
    """Run WORKFLOW here: a name such as pipeline, or a rendered file.

    OPTIONS are the local runner's, such as -p profile=smoke-text, --dry-run or --resume.
    """
    from runner.run_local import run_local

    preload = ("--preload", "loraline_cli.preload")
    run_local.main([str(file_of(workflow)), *preload, *options], prog_name="loraline run")


def file_of(workflow: str) -> Path:
    """The workflow's file; scripts that are not in the current folder get their full path."""
    file = main.HOME / "workflows" / f"{workflow}.yaml"
    if not file.is_file():
        return Path(workflow)
    if scripts_are_here():
        return file
    FOLDER.mkdir(parents=True, exist_ok=True)
    located = FOLDER / file.name
    located.write_text(with_full_paths(file.read_text()))
    return located


def scripts_are_here() -> bool:
    """Whether the current folder has the scripts; another project may have a folder steps, too."""
    return Path("steps/prepare_data.py").is_file()


def with_full_paths(workflow: str) -> str:
    return workflow.replace("- steps/", f"- {main.HOME / 'steps'}/")
