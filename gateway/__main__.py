"""Start the gateway, or make a key for it; settings are environment variables, GATEWAY_…

python -m gateway serve
python -m gateway new-key alice
"""

from __future__ import annotations

import sys

import click

from loraline.errors import UserError


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """The server in front of vLLM: the prompt of the training, uploads, tasks, keys and limits."""


@main.command()
def serve() -> None:
    """Answer requests until SIGTERM; running answers then have GATEWAY_DRAIN_S to end."""
    from gateway import settings

    try:
        read = settings.read()
        from gateway import server

        server.run(read)
    except UserError as error:
        click.echo(f"gateway: {error}", err=True)
        sys.exit(error.exit_code)


@main.command()
@click.argument("name")
def new_key(name: str) -> None:
    """Print a new key for NAME, and its entry for the file of GATEWAY_API_KEYS_FILE."""
    from pydantic import ValidationError

    from gateway import keys

    try:
        key, entry = keys.new_key(name)
    except ValidationError:
        click.echo(
            f"gateway: the name {name!r} may have only letters, digits and . @ _ -, up to 64",
            err=True,
        )
        sys.exit(UserError.exit_code)
    click.echo(f"key, shown once: {key}\nentry of the keys' file: {keys.entry(entry)}")


if __name__ == "__main__":
    main()
