"""Requests over HTTP to servers that may misbehave: bounded in size and time, and not redirected.

A key that is sent to one host must not follow a redirect to another, and a server that redirects
is not the one that was named. Servers on this machine are reached without a proxy.
"""

from __future__ import annotations

import ipaddress
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from threading import Timer
from typing import Any
from urllib.parse import urlsplit

from loraline.addresses import redacted
from loraline.errors import TryAgain, UserError

MOST_BYTES = 64 * 2**20
"""Bytes of an answer that are read at most."""


@dataclass(frozen=True)
class Answer:
    """A whole answer of a server."""

    status: int
    body: bytes


def request(
    url: str,
    *,
    body: Any = None,
    headers: Mapping[str, str] | None = None,
    seconds: float,
    on_chunk: Callable[[bytes], None] | None = None,
) -> Answer:
    """GET a URL, or POST a body to it as JSON, and read the whole answer within `seconds`.

    `on_chunk` gets each piece of an answer below status 300 as it comes. Raises TryAgain where no
    server answers in time; UserError for a malformed URL, an answer that is not HTTP or longer than
    MOST_BYTES, and a redirect. The messages name the server without path and credentials.
    """
    import httpx

    name = redacted(url, path=False)
    if re.search(r"[\s\x00-\x1f\x7f]", url):
        raise UserError(f"{name} is not a server's address: it contains a blank")
    try:
        urlsplit(url)
    except ValueError as error:
        # httpx would take half a pair of brackets for a name that nobody knows.
        raise UserError(f"{name} is not a server's address: {error}") from error
    deadline = time.monotonic() + seconds
    late = f"{name} has not answered whole within {seconds:g} s"
    try:
        with (
            httpx.Client(
                follow_redirects=False,
                trust_env=not is_loopback(url),
                timeout=httpx.Timeout(seconds, connect=min(seconds, 20)),
                headers={"Accept-Encoding": "identity"},
            ) as client,
            # Against a server that sends a byte now and then, of which each is in time.
            Cutoff(client, seconds),
            client.stream(
                "GET" if body is None else "POST", url, json=body, headers=dict(headers or {})
            ) as answer,
        ):
            if answer.is_redirect:
                target = redacted(answer.headers.get("Location", ""), path=False)
                raise UserError(
                    f"{name} answers {answer.status_code}, a redirect to {target or 'nowhere'}; "
                    "it is not followed: name the server itself"
                )
            read = bytearray()
            for chunk in answer.iter_bytes():
                read += chunk
                if len(read) > MOST_BYTES:
                    raise UserError(f"{name} answers more than {MOST_BYTES / 2**20:g} MiB")
                if time.monotonic() > deadline:
                    raise TryAgain(late)
                if on_chunk and answer.status_code < 300:
                    on_chunk(chunk)
            return Answer(answer.status_code, bytes(read))
    except (httpx.InvalidURL, httpx.UnsupportedProtocol, UnicodeError) as error:
        raise UserError(f"{name} is not a server's address") from error
    except httpx.TimeoutException as error:
        raise TryAgain(late) from error
    except (httpx.RemoteProtocolError, httpx.DecodingError) as error:
        if time.monotonic() > deadline:
            raise TryAgain(late) from error
        if "without sending" in str(error) or "incomplete" in str(error):
            raise TryAgain(f"{name} does not answer ({error})") from error
        raise UserError(f"{name} does not speak HTTP") from error
    except httpx.HTTPError as error:
        if time.monotonic() > deadline:
            raise TryAgain(late) from error
        raise TryAgain(f"{name} does not answer ({reason(error)})") from error
    except (OSError, RuntimeError) as error:
        if time.monotonic() <= deadline:
            raise
        raise TryAgain(late) from error


class Cutoff:
    """Closes a client's connections when the time is over."""

    def __init__(self, client: Any, seconds: float) -> None:
        self.timer = Timer(seconds, client.close)
        self.timer.daemon = True

    def __enter__(self) -> None:
        self.timer.start()

    def __exit__(self, *_: object) -> None:
        self.timer.cancel()


def reason(error: BaseException) -> str:
    """The operating system's word for why a connection failed, without addresses."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    return type(error).__name__


def is_loopback(url: str) -> bool:
    """Whether a URL names this machine itself."""
    try:
        host = urlsplit(url).hostname or ""
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
