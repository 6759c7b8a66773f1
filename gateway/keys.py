"""Authentication: keys kept as SHA-256, or bearer tokens of an OpenID provider."""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, TypeAdapter, ValidationError
from starlette.requests import Request

from gateway.errors import Problem
from gateway.settings import Settings
from loraline.errors import UserError

if TYPE_CHECKING:
    from gateway.oidc import Oidc

RELOAD_S = 5
"""Seconds between two looks at the file; Kubernetes replaces it when its Secret changes."""


class Key(BaseModel):
    """An entry of the keys' file; what is not set is the gateway's default."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[\w.@-]{1,64}$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    rate: str | None = Field(None, pattern=r"^\d+ ?(/|per) ?(second|minute|hour|day)$")
    tokens_per_minute: PositiveInt | None = None
    streams: PositiveInt | None = None
    models: tuple[str, ...] | None = None
    """Models that it may ask; all when not set."""

    roles: tuple[Literal["reviewer", "trainer"], ...] = ()
    """What it may do at the desk, the process behind the page's Review and Train screens."""


@dataclass(frozen=True)
class Caller:
    """Who asks, and how much at most."""

    name: str
    rate: str
    tokens_per_minute: int
    streams: int
    models: tuple[str, ...] | None = None

    def may_ask(self, *names: str) -> bool:
        """Whether the key is for a model that has these names."""
        return self.models is None or any(name in self.models for name in names)


KEYS = TypeAdapter(list[Key])


def new_key(name: str) -> tuple[str, Key]:
    """A key of 32 random bytes, and its entry for the keys' file."""
    key = "ll-" + secrets.token_urlsafe(32)
    return key, Key(name=name, sha256=hashlib.sha256(key.encode()).hexdigest())


def read(path: Path) -> list[Key]:
    """The entries of a keys' file; UserError when it has another form."""
    try:
        keys = KEYS.validate_json(path.read_bytes())
    except OSError as error:
        raise UserError(f"the keys' file {path} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise UserError(f"the keys' file {path}: {field}: {first['msg']}") from error
    names = [key.name for key in keys]
    if twice := {name for name in names if names.count(name) > 1}:
        raise UserError(f"the keys' file {path} has two entries {sorted(twice)[0]!r}")
    return keys


class Authenticator:
    """Finds a request's caller by its Authorization header; without keys, this machine may ask."""

    def __init__(self, settings: Settings, oidc: Oidc | None) -> None:
        self.settings = settings
        self.oidc = oidc
        self.keys = read(settings.api_keys_file) if settings.api_keys_file else []
        self.changed = self.modified()
        self.checked_at = time.monotonic()

    def modified(self) -> float:
        path = self.settings.api_keys_file
        return path.stat().st_mtime if path else 0.0

    def reload(self) -> None:
        """Take a new file; a broken one leaves the old keys in force."""
        now = time.monotonic()
        if self.settings.api_keys_file is None or now - self.checked_at < RELOAD_S:
            return
        self.checked_at = now
        try:
            if (changed := self.modified()) != self.changed:
                self.keys, self.changed = read(self.settings.api_keys_file), changed
        except (OSError, UserError):
            from gateway.logs import log

            log.warning("the keys' file cannot be read; the keys read before stay in force")

    async def caller(self, request: Request) -> Caller:
        """The caller. A missing, a wrong and an expired key give the same Problem of 401."""
        if not self.settings.needs_key:
            return self.caller_of("local")
        self.reload()
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        token = token.strip()
        if scheme.lower() == "bearer" and token:
            if (key := self.entry_of(token)) is not None:
                return self.caller_of(key.name, key)
            if self.oidc and token.count(".") == 2 and (subject := await self.oidc.subject(token)):
                return self.caller_of(f"oidc:{subject}")
        raise Problem(401, "unauthorized", "Send a valid key as Authorization: Bearer KEY.")

    def entry_of(self, token: str) -> Key | None:
        """The entry of a key; all entries are compared, so that the time reveals nothing."""
        digest = hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()
        matching = [key for key in self.keys if secrets.compare_digest(key.sha256, digest)]
        return matching[0] if matching else None

    def caller_of(self, name: str, key: Key | None = None) -> Caller:
        key = key or Key(name="none", sha256="0" * 64)
        return Caller(
            name,
            key.rate or self.settings.rate,
            key.tokens_per_minute or self.settings.tokens_per_minute,
            key.streams or self.settings.streams_per_key,
            key.models,
        )


def entry(key: Key) -> str:
    return json.dumps(key.model_dump(exclude_none=True))
