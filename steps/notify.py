"""Post to a webhook how a workflow ended, as the one-field message that Slack and others take.

Reads: LORALINE_WEBHOOK_URL; without it nothing is sent.

    python steps/notify.py --workflow loraline-pipeline-x7k2p --status Failed
"""

from __future__ import annotations

import json
import os

import click

from loraline import web
from loraline.errors import TryAgain, UserError
from loraline.step import PipelineCommand

TIMEOUT = 20
"""Seconds that the webhook may take to answer."""

SHOWN = 5
"""Failures that a message names; a sweep can have hundreds."""

SIGNS = {"Succeeded": "✓", "Failed": "✗", "Error": "✗"}


@click.command(cls=PipelineCommand)
@click.option("--workflow", required=True, help="Name of the workflow that ended.")
@click.option("--status", required=True, help="How it ended: Succeeded, Failed or Error.")
@click.option("--failures", default="", help="The nodes that failed, as Argo's JSON list.")
def notify(workflow: str, status: str, failures: str) -> None:
    """Send one message about a workflow that ended."""
    url = os.environ.get("LORALINE_WEBHOOK_URL", "")
    message = text(workflow, status, failures)
    click.echo(message)
    if not url:
        click.echo("LORALINE_WEBHOOK_URL is not set, so the message was not sent")
        return
    if not url.startswith(("http://", "https://")) or len(url.split()) != 1:
        raise UserError(
            "LORALINE_WEBHOOK_URL has to be one URL that begins with https:// or http://"
        )
    send(url, message)


def text(workflow: str, status: str, failures: str) -> str:
    """The message: one line for the workflow and one for each of the first failed nodes."""
    lines = [f"{SIGNS.get(status, '•')} {workflow}: {status}"]
    for failure in failed(failures)[:SHOWN]:
        reason = failure.get("message") or failure.get("phase", "failed")
        lines.append(f"{failure.get('displayName', 'a node')}: {reason}")
    return "\n".join(lines)


def failed(failures: str) -> list[dict[str, str]]:
    """The failed nodes. Argo gives their JSON list quoted once more, as a JSON text."""
    try:
        listed = json.loads(failures or "[]")
        listed = json.loads(listed) if isinstance(listed, str) else listed
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"--failures is not JSON: {error}") from error
    if not isinstance(listed, list | None):
        raise UserError(f"--failures is no JSON list: {failures[:200]}")
    return [failure for failure in listed or [] if isinstance(failure, dict)]


def send(url: str, message: str) -> None:
    """Post the message; the URL is a secret, so no error contains it."""
    answer = web.request(url, body={"text": message}, seconds=TIMEOUT)
    if answer.status in (408, 429) or answer.status >= 500:
        raise TryAgain(f"the webhook answered {answer.status}; run it again")
    if answer.status >= 300:
        raise UserError(f"the webhook answered {answer.status}: is its URL still right?")


if __name__ == "__main__":
    notify()
