"""A visitor's question as the gateway takes it, and the same as a command that can be copied."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PREDICT, CHAT = "predict", "chat"
"""The two ways to ask without a task: the adapter with its trained prompt, and a free question."""

PLACEHOLDER = re.compile(r"\{([a-z][a-z0-9_]*)\}")
"""A variable in the prompt of a task."""

REASONS = {
    "stop": "The model ended its answer.",
    "length": "The answer is cut: it reached the most tokens.",
    "tool_calls": "The model asked for a tool.",
    "repetition": "The answer was stopped: it repeated itself without end.",
}


@dataclass(frozen=True)
class Sampling:
    """How free questions are sampled; a task and an adapter's own prompt are asked greedily."""

    system: str = ""
    temperature: float = 0.7
    top_p: float = 0.8
    max_tokens: int = 1024
    seed: int | None = None

    def fields(self) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "max_tokens": self.max_tokens,
        }
        return fields if self.seed is None else fields | {"seed": self.seed}


@dataclass(frozen=True)
class Question:
    """What is asked: of which model, in which way, about which files."""

    model: str
    task: str
    """PREDICT, CHAT, or a task's name."""

    text: str = ""
    options: str = ""
    """JSON object with a task's other variables."""

    files: Sequence[Path] = field(default_factory=tuple)
    session: str = ""

    @property
    def path(self) -> str:
        return "/predict" if self.task == PREDICT else f"/tasks/{self.task}"

    def fields(self) -> dict[str, str]:
        """The form of /predict or of a task; what is empty is left out."""
        named = "question" if self.task == PREDICT else "text"
        fields = {"model": self.model, named: self.text, "session": self.session}
        if self.task != PREDICT:
            fields["options"] = self.options
        return {name: value for name, value in fields.items() if value.strip()}


def turns(system: str, history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The messages of a chat: pictures first, as the models were trained."""
    messages: list[dict[str, Any]] = []
    if system.strip():
        messages.append({"role": "system", "content": system})
    for turn in history:
        parts = [
            {"type": "image_url", "image_url": {"url": uri}} for uri in turn.get("pictures", ())
        ]
        content = [*parts, {"type": "text", "text": turn["text"]}] if parts else turn["text"]
        messages.append({"role": turn["role"], "content": content})
    return messages


def asked_text(question: Question, card: Mapping[str, Any], task: Mapping[str, Any] | None) -> str:
    """The words that the model saw, for a follow-up that keeps to them."""
    if question.task == PREDICT:
        return str(card.get("prompt") or "").replace("{question}", question.text)
    if task is None:
        return question.text
    prompts = task.get("prompts", {})
    prompt = str(prompts.get(card.get("family"), prompts.get("default", "{text}")))
    values = {**task.get("variables", {}), **options_of(question.options)}
    if question.text.strip():
        values["text"] = question.text

    def fill(match: re.Match[str]) -> str:
        value = values.get(match[1], match[0])
        return "" if value is None else str(value)

    # In one pass, as the gateway does: what a visitor wrote is not filled again.
    return PLACEHOLDER.sub(fill, prompt)


def options_of(written: str) -> dict[str, Any]:
    try:
        options = json.loads(written or "{}")
    except ValueError:
        return {}
    return options if isinstance(options, dict) else {}


def as_curl(gateway: str, question: Question) -> str:
    """The command that asks the same; the key is read from the environment."""
    lines = ['curl -H "Authorization: Bearer $GATEWAY_KEY"']
    for name, value in copied(question).items():
        lines.append(f"--form-string {shlex.quote(f'{name}={value}')}")
    for path in question.files:
        # In quotes, curl takes a name as it is, commas and semicolons too.
        name = path.name.replace("\\", "\\\\").replace('"', '\\"')
        lines.append("-F " + shlex.quote(f'files=@"{name}"'))
    lines.append(shlex.quote(f"{gateway}{question.path}"))
    return " \\\n    ".join(lines)


def as_python(gateway: str, question: Question) -> str:
    """The same as a script that needs httpx alone."""
    files = "".join(f'\n    ("files", open({path.name!r}, "rb")),' for path in question.files)
    fields = "".join(
        f"\n    ({name!r}, (None, {value!r}))," for name, value in copied(question).items()
    )
    return (
        "import os\n\nimport httpx\n\n"
        f"form = [{fields}{files}\n]\n"
        f"answer = httpx.post(\n    {f'{gateway}{question.path}'!r},\n    files=form,\n"
        '    headers={"Authorization": f"Bearer {os.environ[\'GATEWAY_KEY\']}"},\n'
        "    timeout=600,\n)\nanswer.raise_for_status()\nprint(answer.json())\n"
    )


def chat_as_curl(gateway: str, chat_request: Mapping[str, Any]) -> str:
    content = json.dumps(shortened(chat_request), ensure_ascii=False)
    return (
        'curl -H "Authorization: Bearer $GATEWAY_KEY" -H "Content-Type: application/json" \\\n'
        f"    --data {shlex.quote(content)} \\\n    {shlex.quote(f'{gateway}/v1/chat/completions')}"
    )


def chat_as_python(gateway: str, chat_request: Mapping[str, Any]) -> str:
    return (
        "import os\n\nfrom openai import OpenAI\n\n"
        f"client = OpenAI(base_url={f'{gateway}/v1'!r}, api_key=os.environ['GATEWAY_KEY'])\n"
        f"answer = client.chat.completions.create(**{shortened(chat_request)!r})\n"
        "print(answer.choices[0].message.content)\n"
    )


def copied(question: Question) -> dict[str, str]:
    """The fields without the session, which is this visit's."""
    return {name: value for name, value in question.fields().items() if name != "session"}


def shortened(part: Any) -> Any:
    """A chat request whose pictures are named rather than written out."""
    if isinstance(part, dict):
        return {name: shortened(value) for name, value in part.items()}
    if isinstance(part, list):
        return [shortened(value) for value in part]
    if isinstance(part, str) and part.startswith("data:image/"):
        return f"{part.partition(',')[0]},…"
    return part


def in_words(answer: Mapping[str, Any], seconds: float, first: float | None) -> str:
    """Tokens, times and the end of an answer, in one line."""
    usage = answer.get("usage") or {}
    tokens = int(usage.get("completion_tokens") or 0)
    parts = [f"{tokens} tokens"] if tokens else []
    if usage.get("prompt_tokens"):
        parts.append(f"{usage['prompt_tokens']} in the prompt")
    if first is not None:
        parts.append(f"first after {first:.2f} s")
        if tokens > 1 and seconds > first:
            parts.append(f"{(tokens - 1) / (seconds - first):.1f} tokens a second")
    parts.append(f"{seconds:.2f} s in all")
    reason = str(answer.get("finish_reason") or "")
    ending = REASONS.get(reason, f"Ended: {reason}." if reason else "")
    return f"{', '.join(parts)}. {ending}".strip()
