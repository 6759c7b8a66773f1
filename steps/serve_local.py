"""Serve a rendered manifest on this machine, or a registered version, with the gateway in front.

python steps/serve_local.py outputs/latest-pipeline/deploy-vllm/vllm.yaml --port 8000
python steps/serve_local.py --model mistral-7b-lora --alias champion
"""

from __future__ import annotations

import base64
import json
import mimetypes
import shlex
import signal
import textwrap
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from loraline.delivery import example, local, local_gateway
from loraline.delivery.example import Example
from loraline.delivery.local import Running
from loraline.errors import UserError
from loraline.step import PipelineCommand, or_none

EXAMPLES = Path("outputs/examples")
"""Where the page looks for questions to offer; see `make ui`."""

IMAGES = local.ROOT / "test_data/vision/images"
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command(cls=PipelineCommand)
@click.argument("manifest", type=FILE, required=False)
@click.option("--model", callback=or_none, help="Registered model, instead of a manifest.")
@click.option(
    "--alias", callback=or_none, help="Its version with this alias.  [default: candidate]"
)
@click.option("--port", default=8000, show_default=True, help="Port of vLLM on 127.0.0.1.")
@click.option(
    "--gateway/--no-gateway", default=True, show_default=True, help="Start the gateway, too."
)
@click.option("--gateway-port", default=8080, show_default=True, help="Port of the gateway.")
@click.option(
    "--question",
    help="Question of the example request.  [default: one that the evaluation answered right]",
)
@click.option("--image", type=FILE, help="Image of the example request.  [default: the question's]")
def serve_local(
    manifest: Path | None,
    model: str | None,
    alias: str | None,
    port: int,
    gateway: bool,
    gateway_port: int,
    question: str | None,
    image: Path | None,
) -> None:
    """Serve MANIFEST, as rendered by deploy_vllm, until Ctrl-C."""
    if (manifest is None) == (model is None):
        raise UserError("name a manifest or a registered model with --model, and not both")
    if alias is not None and model is None:
        raise UserError("--alias needs --model to say of which registered model")
    if gateway and gateway_port == port:
        raise UserError(f"--port and --gateway-port are both {port}; vLLM and the gateway need two")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if gateway:
            local.check_port(gateway_port, "--gateway-port")
        rendered = manifest or of_registered(str(model), alias or "candidate")
        check_example(local.contract_of(local.read(rendered)), question, image)
        with ExitStack() as running:
            server = running.enter_context(local.start(rendered, port, say=click.echo))
            front = None
            if gateway:
                front = running.enter_context(
                    local_gateway.start(server, gateway_port, say=click.echo)
                )
            examples = example.of_version(server.uri, server.contract["prompt"])
            example.write(examples, EXAMPLES)
            show(server, front, *question_and_image(server, examples, question, image))
            wait(server, front)
    except KeyboardInterrupt:
        click.echo("stopped")


def of_registered(model: str, alias: str) -> Path:
    """The manifest of a registered model's version with an alias, rendered as deploy_vllm does."""
    from loraline.delivery import rendering
    from loraline.delivery.options import CPU, Options
    from loraline.delivery.order import Order
    from loraline.tracking import registry, runs, store

    client = store.connect()
    registry.check_exists(client, model)
    version = registry.version_of(client, model, alias)
    if version is None:
        raise registry.no_version(client, model, alias)
    gate_run = client.get_run(registry.promoting_gate_run_of(client, version))
    options = Options() if local.has_gpu() else Options(gpu=CPU)
    order = Order.of(client, gate_run, options, (), None, warn)
    with runs.adapter(runs.ancestor(client, gate_run, "train_qlora"), gate_run) as adapter:
        text, _ = rendering.rendered(client, adapter, order, click.echo)
    manifest = Path("outputs") / "serve" / f"{order.name}-v{order.version}" / "vllm.yaml"
    manifest.parent.mkdir(parents=True, exist_ok=True)
    manifest.write_text(text)
    click.echo(f"models:/{order.name}/{order.version}, the {alias}, as {manifest} says")
    return manifest


def check_example(contract: Mapping[str, Any], question: str | None, image: Path | None) -> None:
    """Raise a UserError for a part of the example that the adapter's prompt has no place for."""
    if image is not None and contract["modality"] == "text":
        raise UserError("--image: the adapter's base takes texts and no images")
    if question is not None and "{question}" not in contract["prompt"]:
        raise UserError(
            "--question: the adapter's prompt has no place for a question: "
            f"{textwrap.shorten(contract['prompt'], 80, placeholder=' …')!r}"
        )


def question_and_image(
    server: Running, examples: Sequence[Example], question: str | None, image: Path | None
) -> tuple[str, Path | None, str]:
    """The question to show, its image, and the answer to expect, if that is known."""
    vision = server.contract["modality"] == "vision"
    if question is None and image is None and examples:
        first = examples[0]
        file = first.image and example.file_of(first.image, server.folder, "example")
        return first.question, file or None, first.answer
    return question or "What is this?", (image or first_image()) if vision else None, ""


def first_image() -> Path:
    images = sorted(IMAGES.glob("*.png"))
    if not images:
        raise UserError(f"{IMAGES} holds no image for the example request; give one with --image")
    return images[0]


def show(
    server: Running,
    front: local_gateway.Gateway | None,
    question: str,
    image: Path | None,
    answer: str,
) -> None:
    """A line to try on the server, and one on the gateway, with the answer to expect."""
    body = server.folder / "request.json"
    body.write_text(json.dumps(request(server, question, image)))
    both = f"{server.adapter} (and {server.base})" if server.base else server.adapter
    stops = "Ctrl-C stops both" if front else "Ctrl-C stops it"
    where = f"{server.url}, and the gateway at {front.url}" if front else server.url
    click.echo(f"{both} at {where}; {stops}.\n")
    key = '-H "Authorization: Bearer $VLLM_API_KEY" ' if local.api_key() else ""
    click.echo(
        f"curl {server.url}/v1/chat/completions -H 'Content-Type: application/json' "
        f"{key}-d @{shlex.quote(str(body))}\n"
    )
    if front:
        click.echo(
            f"{predict(server, front, question, image)}\n\nIts interface: {front.url}/docs\n"
        )
    if answer:
        click.echo(f"The answer to expect: {answer}\n")


def predict(
    server: Running, front: local_gateway.Gateway, question: str, image: Path | None
) -> str:
    """A curl line for the gateway, which knows the prompt."""
    words = ["curl", f"{front.url}/predict"]
    if image is not None:
        words += ["-F", f"files=@{image}"]
    if "{question}" in server.contract["prompt"]:
        words += ["--form-string", f"question={question}"]
    return shlex.join(words)


def request(server: Running, question: str, image: Path | None = None) -> dict[str, Any]:
    """Body of a chat completion that asks as in training: the same prompt, greedy, the same end."""
    prompt = server.contract["prompt"].replace("{question}", question)
    content: str | list[dict[str, Any]] = prompt
    if image is not None:
        mime = mimetypes.guess_type(image.name)[0] or "image/png"
        url = f"data:{mime};base64,{base64.b64encode(image.read_bytes()).decode()}"
        content = [
            {"type": "image_url", "image_url": {"url": url}},
            {"type": "text", "text": prompt},
        ]
    return {
        "model": server.adapter,
        "messages": [{"role": "user", "content": content}],
        "temperature": 0,
        "max_tokens": server.contract["max_new_tokens"],
    }


def wait(server: Running, front: local_gateway.Gateway | None) -> None:
    """Return never: a UserError when the server or the gateway ends by itself."""
    parts: list[Running | local_gateway.Gateway] = [server, *([front] if front else [])]
    while True:
        for part in parts:
            if part.process.poll() is not None:
                raise UserError(part.death())
        time.sleep(0.3)


def warn(sentence: str) -> None:
    click.echo(f"warning: {sentence}", err=True)


if __name__ == "__main__":
    serve_local()
