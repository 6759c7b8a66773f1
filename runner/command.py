"""A command that says a user's mistake in one sentence, without click's three lines of usage."""

from __future__ import annotations

from typing import Any

import click


class Command(click.Command):
    """Ends a mistake with its sentence, after the command's name, and click's own exit code."""

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        try:
            return super().make_context(info_name, args, parent, **extra)
        except click.UsageError as error:
            say(self, f"{error.format_message().rstrip('.?')}; --help lists the options")
            raise click.exceptions.Exit(error.exit_code) from error

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.ClickException as error:
            say(self, error.format_message())
            ctx.exit(error.exit_code)


def say(command: click.Command, sentence: str) -> None:
    click.echo(f"{command.name}: {sentence}", err=True)
