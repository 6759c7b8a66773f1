"""Start the page; settings are environment variables, UI_…

python -m gateway.ui
"""

from __future__ import annotations

import sys

import click


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--gateway", help="The gateway's address.  [default: UI_GATEWAY, or port 8080 here]")
@click.option("--port", type=click.IntRange(0, 65535), help="Port to listen on.  [default: 7860]")
def ui(gateway: str | None, port: int | None) -> None:
    """Open the page in front of a gateway, until SIGTERM or Ctrl-C."""
    import os

    from gateway.ui import settings

    if gateway is not None:
        os.environ["UI_GATEWAY"] = gateway
    if port is not None:
        os.environ["UI_PORT"] = str(port)
    try:
        read = settings.read()
        from gateway.ui import server

        server.run(read)
    except settings.BadSetting as error:
        click.echo(f"page: {error}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    ui()
