"""Talk with a served adapter in the terminal, each conversation begun with its trained prompt."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from loraline.errors import TryAgain, UserError
from loraline.step import PipelineCommand

if TYPE_CHECKING:
    from loraline.serving.client import Server

PLAIN = "{question}"
"""The prompt of a model of which no training is known."""


@dataclass
class Conversation:
    """What was said so far, and a picture that waits for the next question."""

    model: str
    prompt: str
    max_tokens: int
    turns: list[dict[str, Any]] = field(default_factory=list)
    picture: bytes | None = None

    def ask(self, server: Server, question: str, say: Callable[[str], None]) -> str:
        """The answer to a question, said as it comes; both become a part of the conversation.

        The first question and one about a picture are put as in training, the others as they are.
        """
        from loraline.records import TAGS, from_prompt
        from loraline.serving.client import request

        if self.picture is not None and (tag := TAGS.search(question)):
            raise UserError(f"a question about a picture must not contain {tag[0]}")
        trained = not self.turns or self.picture is not None
        record = from_prompt(self.prompt if trained else PLAIN, question, "", self.picture)
        body = request(self.model, record, self.max_tokens)
        body |= {"messages": [*self.turns, *body["messages"]], "stream": True}
        answer = Answer(say)
        try:
            server.stream("/v1/chat/completions", body, answer.hear)
            answer.end(server.name)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise UserError(f"{server.name} answers a question in another form: {error}") from error
        text = answer.text.strip()
        self.turns = [*body["messages"], {"role": "assistant", "content": text}]
        self.picture = None
        return text


@dataclass
class Answer:
    """A streamed answer: events of `data: ` and JSON, as OpenAI's interface sends them."""

    say: Callable[[str], None]
    text: str = ""
    waiting: bytes = b""
    whole: bool = False
    error: Any = None
    """What the server says in an event when it gives an answer up."""

    def hear(self, piece: bytes) -> None:
        """Say what an answer goes on with; a line may come in several pieces."""
        *lines, self.waiting = (self.waiting + piece).split(b"\n")
        for line in lines:
            data = line.strip().removeprefix(b"data:").strip()
            self.whole |= data == b"[DONE]"
            if not line.startswith(b"data:") or self.whole:
                continue
            event = json.loads(data)
            self.error = self.error or event.get("error")
            for choice in () if self.error else event["choices"]:
                more = choice["delta"].get("content") or ""
                # Many models begin with a blank.
                self.say(more if self.text.strip() else more.lstrip())
                self.text += more

    def end(self, server: str) -> None:
        """End the printed text; TryAgain or UserError with the sentence of a server that gave up,
        ValueError where the answer is no stream or breaks off."""
        if self.text:
            self.say("\n")
        if self.error:
            raise failure(self.error, f"{server} breaks off")
        if not self.whole:
            raise ValueError("it breaks off")


def failure(error: Any, before: str) -> UserError | TryAgain:
    """The failure behind an error of a stream; the gateway names its type, vLLM its status."""
    parts = error if isinstance(error, dict) else {"message": error}
    code = parts.get("code")
    passing = parts.get("type") in ("server_error", "rate_limit_error")
    passing |= isinstance(code, int) and (code >= 500 or code in (408, 429))
    sentence = " ".join(str(parts.get("message") or "it does not say why").split())[:300]
    return (TryAgain if passing else UserError)(f"{before}: {sentence}")


@click.command(cls=PipelineCommand)
@click.option(
    "--url",
    default="http://127.0.0.1:8080",
    show_default=True,
    help="The gateway, or a vLLM server; a key is read from VLLM_API_KEY.",
)
@click.option("--model", default="", help="Name that the server lists.  [default: its adapter]")
@click.option(
    "--max-tokens",
    type=click.IntRange(1),
    help="Longest answer.  [default: the adapter's own, or 256]",
)
def chat(url: str, model: str, max_tokens: int | None) -> None:
    """Talk with a served adapter: a line is a question, /image FILE shows a picture with the next
    one, /new begins anew, /quit or Ctrl-D ends."""
    from loraline.serving.client import Server

    server = Server(url)
    card = choose(cards(server), model, server.name)
    prompt = card.get("prompt") or PLAIN
    talk = Conversation(card["id"], prompt, max_tokens or card.get("max_new_tokens") or 256)
    click.echo(opening(card, server.name), err=True)
    while (line := read()) is not None:
        command, _, rest = line.partition(" ")
        try:
            match command:
                case "/quit":
                    break
                case "/new":
                    talk.turns, talk.picture = [], None
                case "/image":
                    talk.picture = picture(rest.strip())
                case _:
                    talk.ask(server, line, say=partial(click.echo, nl=False))
        except (UserError, TryAgain) as error:
            # The conversation stays: the next question may fit, or the server come back.
            click.echo(f"chat: {error}", err=True)


def opening(card: dict[str, Any], server: str) -> str:
    """What becomes of a question, in the words of the person who asks."""
    prompt = card.get("prompt")
    if not prompt:
        how = "a question goes to it as you type it, since no prompt of a training is known here"
    elif prompt == PLAIN:
        how = "a question goes to it as you type it, as in its training"
    elif PLAIN not in prompt:
        how = (
            f"the prompt of its training, {prompt!r}, has no place for a question, so that it "
            "takes the place of a first one"
        )
    else:
        how = f"a first question goes into the prompt of its training, {prompt!r}"
    return (
        f"{card['id']} at {server}: {how}\nA later question goes on from the answers before it. "
        "If the training had single questions, type /new before each."
    )


def read() -> str | None:
    """The next line that says something; None at the end."""
    while True:
        try:
            line = click.prompt("", prompt_suffix="> ", default="", show_default=False, err=True)
        except click.Abort:
            return None
        if line.strip():
            return str(line.strip())


def cards(server: Server) -> list[dict[str, Any]]:
    """Models of the gateway with their prompts, or of a vLLM server their names alone."""
    from loraline.serving.client import Refused

    try:
        listed: list[dict[str, Any]] = json.loads(server.get("/info"))["models"]
    except Refused:
        return [{"id": name, "parent": parent} for name, parent in server.models().items()]
    except (ValueError, LookupError, TypeError) as error:
        raise UserError(
            f"{server.name} is no gateway: what /info answers has another form"
        ) from error
    return listed


def choose(models: list[dict[str, Any]], name: str, server: str) -> dict[str, Any]:
    """The model of this name, or the first adapter."""
    names = [card["id"] for card in models]
    if name and name not in names:
        raise UserError(f"--model {name!r} is not served at {server}: it lists {', '.join(names)}")
    if not models:
        raise TryAgain(f"{server} lists no model; its server may still be starting")
    adapters = [card for card in models if (card["id"] == name if name else card.get("parent"))]
    return (adapters or models)[0]


def picture(path: str) -> bytes:
    """The content of a picture's file."""
    try:
        return Path(path).expanduser().read_bytes()
    except (OSError, RuntimeError, ValueError) as error:
        # Not an OSError: the home of nobody, and a name that holds a null.
        why = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"/image {path!r} cannot be read: {why}") from error
