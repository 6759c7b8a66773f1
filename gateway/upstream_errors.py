"""What goes wrong between the gateway and a model's server, in our words.

vLLM's own messages may quote the request, and are never passed on. `retry_after` is in seconds.
"""

from __future__ import annotations

import re

import aiohttp

from gateway import sse
from gateway.errors import Problem
from gateway.metrics import Metrics

LENGTHS = (
    re.compile(
        r"maximum context length is (?P<limit>\d+).*?contains (?:at least )?(?P<length>\d+)"
    ),
    re.compile(r"\(length (?P<length>\d+)\).*?maximum model length of (?P<limit>\d+)"),
    re.compile(r"maximum context length is (?P<limit>\d+).*?requested (?P<length>\d+)"),
)
"""How vLLM says that a request is too long (renderers/params.py, v1/engine/input_processor.py)."""


class Failures:
    """Counts what goes wrong with each model's server, and makes it a problem."""

    def __init__(self, metrics: Metrics, retry_after: float) -> None:
        self.metrics = metrics
        self.retry_after = retry_after

    def count(self, model: str, reason: str) -> None:
        self.metrics.upstream_errors.labels(model, reason).inc()

    def broken(self, model: str, error: BaseException) -> Problem:
        """The problem behind a failed connection."""
        reason, problem = broken(error, self.retry_after)
        self.count(model, reason)
        return problem

    def garbage(self, model: str) -> Problem:
        self.count(model, "garbage")
        return sse.garbage()

    def cut(self, model: str) -> Problem:
        self.count(model, "cut")
        return cut()

    def refused(self, model: str, status: int, text: str) -> Problem:
        """The problem behind a status other than 200, or behind an error after it."""
        self.count(model, f"status_{status // 100}xx")
        return refused(status, text, self.retry_after)


def broken(error: BaseException, retry_after: float) -> tuple[str, Problem]:
    """Why a connection failed, as the metrics name it, and the problem to answer with."""
    if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError):
        return "connect", unavailable(retry_after)
    if isinstance(error, TimeoutError):
        return "timeout", Problem(
            504, "upstream_timeout", "The model's server took too long and was given up."
        )
    if isinstance(error, aiohttp.ClientPayloadError):
        return "cut", cut()
    return "reset", Problem(
        503,
        "upstream_reset",
        "The model's server closed the connection; try again.",
        retry_after=retry_after,
    )


def refused(status: int, text: str, retry_after: float) -> Problem:
    """The problem behind a server's status and its body's text."""
    if status in (400, 413, 422):
        return too_long(text) or Problem(
            422,
            "refused",
            "The model's server refuses this request: a part of it is beyond what the model takes.",
        )
    if status in (401, 403):
        return Problem(502, "upstream_key", "The model's server does not take the gateway's key.")
    if status in (404, 408, 429, 503):
        return unavailable(retry_after)
    return Problem(502, "upstream_error", f"The model's server failed with {status}.")


def too_long(text: str) -> Problem | None:
    """The problem of a request beyond the context, with both numbers, if it is that."""
    for pattern in LENGTHS:
        if match := pattern.search(text):
            limit, length = int(match["limit"]), int(match["length"])
            unit = "characters" if f"{length} characters" in text else "tokens"
            return Problem(
                422,
                "context",
                f"The request is {length:,} {unit} long, and the model takes {limit:,} tokens with "
                "its answer.",
                limit=limit,
                asked=length,
            )
    return None


def cut() -> Problem:
    return Problem(502, "upstream_cut", "The model's server ended before its answer was complete.")


def unavailable(retry_after: float) -> Problem:
    return Problem(
        503,
        "model_unavailable",
        "The model's server is not up; try again.",
        retry_after=retry_after,
    )
