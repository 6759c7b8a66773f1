"""One request and its answer, as logs, metrics and traces see them: without any content."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field

from starlette.requests import Request


@dataclass(slots=True)
class Exchange:
    """Filled in while a request is served. No field ever holds what a client wrote."""

    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    started: float = field(default_factory=time.perf_counter)
    method: str = ""
    route: str = "unmatched"
    """The route's template, never the path that was asked for."""

    caller: str = ""
    """Name of the key, or subject of the token."""

    model: str = ""
    version: str = ""
    task: str = ""
    status: int = 0
    code: str = ""
    """The problem's code where there was one."""

    streamed: bool = False
    cached: bool = False
    bytes_in: int = 0
    bytes_out: int = 0
    digests: list[str] = field(default_factory=list)
    """SHA-256 of the media."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    finish_reason: str = ""
    queue_s: float = 0.0
    upload_s: float = 0.0
    ttft_s: float | None = None
    """Seconds from the start of the request to the first byte of the model's answer."""

    answering: bool = False
    """Whether a first byte was sent."""

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.started

    def count(self, usage: object) -> None:
        """Add the tokens that a server says it used."""
        prompt, completion = tokens(usage)
        self.prompt_tokens += prompt
        self.completion_tokens += completion


def tokens(usage: object) -> tuple[int, int]:
    """Tokens of prompt and answer in what a server says it used; 0 for anything else."""
    if not isinstance(usage, dict):
        return 0, 0
    prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
    return (
        prompt if isinstance(prompt, int) and prompt > 0 else 0,
        completion if isinstance(completion, int) and completion > 0 else 0,
    )


def of(request: Request) -> Exchange:
    exchange: Exchange = request.scope["state"]["exchange"]
    return exchange
