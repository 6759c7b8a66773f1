"""JSON lines without content: exceptions by type and place, never by their words."""

from __future__ import annotations

import asyncio
import logging
import sys
import traceback
from pathlib import Path
from typing import Any

from pythonjsonlogger.json import JsonFormatter

from gateway.exchange import Exchange
from gateway.settings import Settings

log = logging.getLogger("gateway")
audit = logging.getLogger("gateway.audit")

ROOT = Path(__file__).parents[1]
MORE = ("request_id", "address")
"""What lines say beside their words; those of the audit have fields."""

PROBES = ("/health", "/ready")
"""Probes: a kubelet sends them every few seconds; metrics count them."""


def places(error: BaseException) -> list[str]:
    """Where an exception came from, innermost last: file, line and function, no values."""
    lines = []
    for frame in traceback.extract_tb(error.__traceback__)[-8:]:
        path = Path(frame.filename)
        # A virtual environment often lies in the folder of the gateway.
        of_gateway = path.is_relative_to(ROOT) and "site-packages" not in path.parts
        name = path.relative_to(ROOT) if of_gateway else Path(*path.parts[-2:])
        lines.append(f"{name}:{frame.lineno} {frame.name}")
    return lines


class Json(JsonFormatter):
    """Time, level, logger and what `extra` says; of an exception only its type and places."""

    def __init__(self) -> None:
        super().__init__(
            "%(asctime)s %(levelname)s %(name)s %(message)s",
            rename_fields={"asctime": "time", "levelname": "level", "name": "logger"},
        )
        self.default_msec_format = "%s.%03d"

    def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
        log_data.pop("exc_text", None)
        return log_data

    def format(self, record: logging.LogRecord) -> str:
        if not record.exc_info and not record.exc_text:
            return str(super().format(record))
        silenced = logging.makeLogRecord(record.__dict__)
        silenced.exc_text = None
        if record.exc_info and record.exc_info[1]:
            error = record.exc_info[1]
            silenced.exc_info = None
            silenced.__dict__ |= {"error": type(error).__name__, "at": places(error)}
        return str(super().format(silenced))


class Text(logging.Formatter):
    """One line for people, with the same silence."""

    def format(self, record: logging.LogRecord) -> str:
        line = f"{self.formatTime(record)} {record.levelname.lower()} {record.getMessage()}"
        if record.exc_info and record.exc_info[1]:
            error = record.exc_info[1]
            line += f" {type(error).__name__} at {'; '.join(places(error))}"
        more = (f"{name}={vars(record)[name]}" for name in MORE if name in vars(record))
        fields = getattr(record, "fields", " ".join(more))
        return f"{line} {fields}" if fields else line


def set_up(settings: Settings) -> None:
    """Send every library's lines through the silent formatters; audit lines to their own file."""
    formatter: logging.Formatter = Json() if settings.log_format == "json" else Text()
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    # Libraries' debug and info lines name addresses and files.
    for name in ("uvicorn", "uvicorn.error", "aiohttp", "asyncio", "python_multipart", "PIL", "av"):
        library = logging.getLogger(name)
        library.handlers.clear()
        library.propagate = True
        library.setLevel(logging.INFO if name.startswith("uvicorn") else logging.WARNING)
    logging.getLogger("uvicorn.access").disabled = True
    audit.setLevel(logging.INFO)
    if settings.audit_file:
        settings.audit_file.parent.mkdir(parents=True, exist_ok=True)
        file = logging.FileHandler(settings.audit_file)
        file.setFormatter(Json())
        audit.handlers[:] = [file]
        audit.propagate = False


def silence_tasks(loop: asyncio.AbstractEventLoop) -> None:
    """Lines on failed tasks name the exception's type; asyncio's own print its words."""

    def handle(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        info = (type(error), error, error.__traceback__) if error else None
        log.error("a task failed", exc_info=info)

    loop.set_exception_handler(handle)


def write_audit(exchange: Exchange) -> None:
    """The line on one request: who, what, how much, how long. A probe leaves none."""
    if exchange.route in PROBES or not audit.isEnabledFor(logging.INFO):
        return
    fields: dict[str, Any] = {
        "request_id": exchange.id,
        "key": exchange.caller,
        "method": exchange.method,
        "route": exchange.route,
        "status": exchange.status,
        "ms": round(exchange.seconds * 1000, 1),
        "bytes_in": exchange.bytes_in,
        "bytes_out": exchange.bytes_out,
    }
    for name in ("code", "model", "version", "task", "finish_reason", "digests"):
        if value := getattr(exchange, name):
            fields[name] = value
    # A comparison has no model of its own, but its models' tokens.
    if exchange.model or exchange.prompt_tokens:
        fields |= {
            "prompt_tokens": exchange.prompt_tokens,
            "completion_tokens": exchange.completion_tokens,
            "queue_ms": round(exchange.queue_s * 1000, 1),
        }
    if exchange.ttft_s is not None:
        fields["ttft_ms"] = round(exchange.ttft_s * 1000, 1)
    if exchange.cached:
        fields["cached"] = True
    line = " ".join(f"{name}={value}" for name, value in fields.items())
    audit.info("request", extra=fields | {"fields": line} if text_only() else fields)


def text_only() -> bool:
    handlers = audit.handlers or logging.getLogger().handlers
    return any(isinstance(handler.formatter, Text) for handler in handlers)
