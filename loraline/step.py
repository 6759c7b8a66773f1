"""What the command lines have in common: the documented exit codes, and two options of steps."""

from __future__ import annotations

import atexit
import errno
import gc
import inspect
import shlex
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from loraline.addresses import scrubbed
from loraline.errors import Stopped, TryAgain, UserError, first_line
from loraline.process import full_disk, quiet, signals
from loraline.tracking import store


@atexit.register
def end_at_once() -> None:
    """Spare the interpreter a last collection over all that MLflow imported, half a second.

    Where torch is there the walk is taken, or else nanobind lists every function as leaked.
    """
    if "torch" not in sys.modules:
        gc.freeze()


class PipelineCommand(click.Command):
    """A command that ends a user's mistake with exit code 2 and a temporary failure with 75.

    Both print one sentence on standard error.
    """

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        try:
            return super().make_context(info_name, args, parent, **extra)
        except UserError as error:
            sentence = str(error)
        except click.UsageError as error:
            sentence = f"{error.format_message().rstrip('.?')}; --help lists the options"
        click.echo(f"{self.name}: {scrubbed(sentence)}", err=True)
        raise click.exceptions.Exit(UserError.exit_code)

    def invoke(self, ctx: click.Context) -> Any:
        signals.received.clear()
        signals.listen()
        quiet.silence()
        out_dir = ctx.params.get("out_dir")
        try:
            if out_dir:
                check_writable(out_dir)
            return super().invoke(ctx)
        except (UserError, TryAgain, Stopped) as error:
            end(ctx, str(error), error.exit_code)
        except KeyboardInterrupt:
            end(ctx, "interrupted", 128 + signal.SIGINT)
        except Exception as error:
            if signals.received:
                end(ctx, str(signals.received[0]), Stopped.exit_code)
            if full := full_disk.sentence(error, store.uri(), out_dir or Path()):
                end(ctx, full, TryAgain.exit_code)
            if refused := store.refusal(error):
                end(ctx, refused, UserError.exit_code)
            if not store.is_outage(error):
                raise
            end(ctx, f"lost {store.uri()}: {first_line(error)}; run it again", 75)


class StepCommand(PipelineCommand):
    """A step of the pipeline: a command with an output folder and, where its function takes
    `force`, the right to repeat its work; a measurement is made anew each time and does not."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.append(
            click.Option(
                ["--out-dir"],
                type=click.Path(file_okay=False, path_type=Path),
                default=Path("outputs"),
                show_default=True,
                help="Folder for the output files: run-id, and what else the step hands over.",
            )
        )
        if self.callback and "force" in inspect.signature(self.callback).parameters:
            self.params.append(
                click.Option(
                    ["--force"],
                    is_flag=True,
                    help="Do the work again even if a finished run with the same inputs exists.",
                )
            )


def check_writable(out_dir: Path) -> None:
    """Find out before the work is done whether outputs can be written; leave nothing."""
    missing = [folder for folder in (out_dir, *out_dir.parents) if not folder.exists()]
    probe = out_dir / ".probe.part"
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        probe.write_text("room for a run ID\n" * 64)
    except OSError as error:
        if error.errno in (*full_disk.NO_SPACE, errno.EFBIG):
            raise
        raise UserError(f"--out-dir {out_dir} cannot be written: {error.strerror}") from error
    finally:
        with suppress(OSError):
            probe.unlink()
        with suppress(OSError):
            for folder in missing:
                folder.rmdir()


def end(ctx: click.Context, sentence: str, exit_code: int) -> None:
    signals.ignore()
    click.echo(f"{ctx.command.name}: {scrubbed(sentence)}", err=True)
    ctx.exit(exit_code)


def step(function: Callable[..., None]) -> StepCommand:
    """Make a step out of a function; its docstring is the help, its options come from click."""
    command = click.command(cls=StepCommand)(function)
    assert isinstance(command, StepCommand)
    return command


def split_overrides(ctx: click.Context, parameter: click.Parameter, value: Any) -> tuple[str, ...]:
    """Callback of --set: its KEY=VALUE texts one by one.

    A workflow has one parameter for all of them, so that a text may hold several, with blanks
    between.
    """
    try:
        return tuple(word for text in value for word in shlex.split(text))
    except ValueError as error:
        raise UserError(f"--set {' '.join(value)!r} cannot be read: {error}") from error


overrides_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    callback=split_overrides,
    help="A key of the profile for this run, such as learning_rate=1e-4 or gate.min_rows=10.",
)
"""How the steps that read a profile are given other keys of it."""


def limits_or_none(
    ctx: click.Context, parameter: click.Parameter, value: Any
) -> tuple[str, ...] | None:
    """Callback of a --set for limits: None without it, since the training may have had its own.

    A workflow always gives it, empty where nothing is set.
    """
    return split_overrides(ctx, parameter, value) if value else None


limits_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    callback=limits_or_none,
    help="Limits for this run, such as gate.min_rows=10.  [default: those of the profile]",
)
"""How the steps that judge by a profile's gate are given other limits."""


def read_recipes(ctx: click.Context, parameter: click.Parameter, value: Any) -> dict[str, Any]:
    """Callback of --recipes: the keys of each profile by its name."""
    import yaml

    from loraline.profiles.layered_yaml import read_yaml_text

    try:
        recipes = read_yaml_text(value) or {}
    except yaml.YAMLError as error:
        raise UserError(f"--recipes is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(recipes, dict) or not all(
        isinstance(keys, dict) for keys in recipes.values()
    ):
        raise UserError(f"--recipes must hold the keys of each profile by its name, not {value!r}")
    return recipes


recipes_option = click.option(
    "--recipes",
    metavar="YAML",
    default="",
    callback=read_recipes,
    help="Profiles that count instead of the files: the keys of each by its name, as YAML.",
)
"""What a workflow carries, so that a cluster's image need not hold a recipe."""


def or_none(ctx: click.Context, parameter: click.Parameter, value: Any) -> Any:
    """Callback for optional flags: an empty string means "not given".

    A workflow cannot leave an argument out, only pass its parameter's empty default.
    """
    return value or None
