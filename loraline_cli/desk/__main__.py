"""Start the desk, for the page's Review and Train screens.

python -m loraline_cli.desk --keys keys.json
"""

from __future__ import annotations

import socket
from contextlib import suppress
from pathlib import Path

import click

from loraline.errors import UserError
from loraline.step import PipelineCommand, or_none


@click.command(cls=PipelineCommand)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8090, show_default=True, help="Port."
)
@click.option(
    "--keys",
    "keys_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The gateway's keys' file, with roles.  [default: none, for this machine's user alone]",
)
@click.option(
    "--namespace",
    callback=or_none,
    help="Where trainings are submitted to Argo, and its workflows answered.  [default: nowhere]",
)
def desk(host: str, port: int, keys_file: Path | None, namespace: str | None) -> None:
    """Answer reviewers and trainers until Ctrl-C: it holds MLflow's credentials."""
    if keys_file is None and host not in ("127.0.0.1", "::1", "localhost"):
        raise UserError(f"without --keys the desk listens on 127.0.0.1 only, not on {host}")
    import uvicorn

    from loraline_cli.desk.app import create_app

    app = create_app(keys_file, namespace)
    with bound(host, port) as listening:
        click.echo(f"desk: http://{host}:{listening.getsockname()[1]}")
        config = uvicorn.Config(app, log_level="warning", server_header=False)
        with suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listening])


def bound(host: str, port: int) -> socket.socket:
    """A socket that listens there; UserError if the address cannot be used."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        why = str(error.strerror).partition(" (while")[0]
        raise UserError(
            f"port {port} of {host} cannot be used ({why}); set another with --port"
        ) from error


if __name__ == "__main__":
    desk()
