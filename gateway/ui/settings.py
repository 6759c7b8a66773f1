"""What an operator sets of the page: environment variables that begin with UI_."""

from __future__ import annotations

import os
import re
from pathlib import Path

from pydantic import (
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SecretStr,
    ValidationError,
    field_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

PREFIX = "UI_"
LINK = re.compile(r"UI_(SERVICE_(HOST|PORT(_\w+)?)|PORT_\d+_\w+)")
"""Variables that Kubernetes puts into pods beside a Service named ui; UI_PORT is another, whose
value is an address."""


class BadSetting(Exception):
    """A setting that the page cannot start with; one sentence for the operator."""


class Settings(BaseSettings):
    """One class for all of the page's settings; sizes in MiB, times in seconds."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid")

    host: str = "127.0.0.1"
    port: NonNegativeInt = 7860

    gateway: str = Field("http://127.0.0.1:8080", pattern=r"^https?://[^/?#\s]+/?$")
    """The gateway, as this process reaches it."""

    public_gateway: str | None = Field(None, pattern=r"^https?://[^\s]+$")
    """The gateway's address in the requests that the page shows to be copied."""

    secret: SecretStr | None = None
    """Seals the cookie with the visitor's key; replicas share it. Made at the start when not set,
    so that a restart asks for the keys again."""

    desk: str | None = Field(None, pattern=r"^https?://[^/?#\s]+/?$")
    """The desk, which reviews versions and trains; without it the page has neither screen."""

    examples_dir: Path | None = None
    """Folder with pictures that the first screen offers."""

    max_file_mb: PositiveFloat = 128
    """One file of an upload; the gateway has limits of its own."""

    max_waiting: PositiveInt = 256
    max_running: PositiveInt = 64
    """Requests that may wait, and those of each kind at a time."""

    signed_in_hours: PositiveFloat = 12
    """How long a key that was given is remembered."""

    timeout_s: PositiveFloat = 600

    @field_validator("port", mode="before")
    @classmethod
    def without_link(cls, value: object) -> object:
        return 7860 if isinstance(value, str) and "://" in value else value


def read() -> Settings:
    """Settings of the environment; BadSetting for a bad value or an unknown name."""
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    for name in os.environ:
        if name.startswith(PREFIX) and name not in known and not LINK.match(name):
            raise BadSetting(f"{name} is not a setting; docs/page.md lists them")
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]).upper()
        raise BadSetting(f"{PREFIX}{place}: {first['msg']}") from error
