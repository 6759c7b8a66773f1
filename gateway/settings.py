"""What an operator sets: environment variables that begin with GATEWAY_."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from loraline.errors import UserError

PREFIX = "GATEWAY_"
LINK = re.compile(r"GATEWAY_(SERVICE_(HOST|PORT(_\w+)?)|PORT_\d+_\w+)")
"""Variables that Kubernetes puts into pods beside a Service named gateway; GATEWAY_PORT is another,
whose value is an address."""

MIB = 2**20


class Server(BaseModel):
    """One vLLM server and what was registered of the adapter that it serves."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str = Field(pattern=r"^https?://[^/?#\s]+/?$")
    """Address without a path, `http://lora-radiology:8000`."""

    contract: Path | None = None
    """The adapter's contract.json; without one the server's models are asked as they come."""

    name: str | None = None
    """Model name of the adapter; needed where the server lists several adapters."""

    uri: str = ""
    """The registered version, `models:/NAME/VERSION`."""

    role: Literal["candidate", "champion"] | None = None
    """What /compare calls the adapter, beside its name."""


class Settings(BaseSettings):
    """One class for all of the gateway's settings; sizes in MiB, times in seconds."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, extra="forbid", allow_inf_nan=False
    )

    host: str = "127.0.0.1"
    port: NonNegativeInt = 8080
    metrics_port: NonNegativeInt = 0
    """Separate port for /metrics, without a key; 0 leaves /metrics beside the other routes."""

    servers: tuple[Server, ...] = Field(
        (Server(url="http://127.0.0.1:8000"),), min_length=1, validation_alias="GATEWAY_UPSTREAMS"
    )
    """JSON list of the vLLM servers behind the gateway."""

    vllm_api_key: SecretStr | None = None
    """The servers' key; it never leaves the gateway."""

    api_keys_file: Path | None = None
    """JSON list of keys; `python -m gateway new-key` prints an entry."""

    oidc_issuer: str | None = Field(None, pattern=r"^https?://\S+$")
    oidc_audience: str | None = None
    oidc_jwks_url: str | None = Field(None, pattern=r"^https?://\S+$")
    """Where the issuer's keys are; found by its discovery document when not set."""

    tasks_dir: Path | None = None
    """Folder with task files beside the built-in ones."""

    data_dir: Path = Path("outputs/gateway")
    """Where jobs and sessions are kept, and uploads while they are read."""

    docs: bool = True
    """Whether /docs and /openapi.json are answered."""

    rate: str = Field("600/minute", pattern=r"^\d+ ?(/|per) ?(second|minute|hour|day)$")
    """Requests of a key without its own rate."""

    tokens_per_minute: PositiveInt = 1_000_000
    streams_per_key: PositiveInt = 64
    """Requests of one key at a time."""

    redis_url: SecretStr | None = None
    """`redis://…`: replicas share rates, tokens and cache."""

    max_running: PositiveInt = 256
    """Requests at a time towards the servers."""

    max_waiting: NonNegativeInt = 64
    max_wait_s: PositiveFloat = 10
    """Requests that may wait for one of them to end, and how long."""

    max_uploads: PositiveInt = 64
    """Uploads that are read at a time."""

    max_image_mb: PositiveFloat = 20
    max_video_mb: PositiveFloat = 100
    max_body_mb: PositiveFloat = 128
    """One upload with all of its files."""

    max_json_mb: PositiveFloat = 32
    max_files: PositiveInt = 16
    max_pixels: PositiveInt = 64_000_000
    max_frames: PositiveInt = 64
    """Frames that are taken of a video; a task may take fewer."""

    max_seconds: PositiveFloat = 600
    """Length of a video."""

    video_timeout_s: PositiveFloat = 30
    max_tokens: PositiveInt = 8192
    """Longest answer that may be asked for."""

    client_stall_s: PositiveFloat = 15
    """How long a client may send nothing while its request is incomplete."""

    upstream_timeout_s: PositiveFloat = 600
    upstream_stall_s: PositiveFloat = 60
    """Time for a whole answer, and between two pieces of one."""

    refresh_s: PositiveFloat = 5
    """Time between two looks at what the servers list."""

    drain_s: NonNegativeInt = 30
    """Time for running answers to end after SIGTERM."""

    cache_mb: NonNegativeFloat = 0
    """Room for the answers to equal greedy requests; 0 keeps none."""

    cache_s: PositiveInt = 3600
    retention_hours: PositiveFloat = Field(24, allow_inf_nan=True)
    """How long jobs and sessions are kept after they last changed; `inf` keeps them."""

    max_job_files: PositiveInt = 1000
    max_job_mb: PositiveFloat = 2048
    jobs_parallel: PositiveInt = 4
    """Requests of all jobs at a time."""

    audit_file: Path | None = None
    """Where the audit lines go; standard output when not set."""

    log_format: Literal["json", "text"] = "json"
    otlp_endpoint: str | None = Field(None, pattern=r"^https?://\S+$")
    """Where traces go, `http://collector:4318/v1/traces`; none are made when not set."""

    pdf_font: Path | None = None
    """TrueType font of exported PDFs; one of the machine's is looked for when not set."""

    @field_validator("port", mode="before")
    @classmethod
    def without_link(cls, value: Any) -> Any:
        return 8080 if isinstance(value, str) and "://" in value else value

    @model_validator(mode="after")
    def check_access(self) -> Self:
        if bool(self.oidc_issuer) != bool(self.oidc_audience):
            raise ValueError("oidc_issuer and oidc_audience are set together")
        if not self.needs_key and self.host not in ("127.0.0.1", "::1", "localhost"):
            raise ValueError(
                f"without keys the gateway listens on 127.0.0.1 only, not on {self.host}; set "
                "GATEWAY_API_KEYS_FILE, or GATEWAY_OIDC_ISSUER and GATEWAY_OIDC_AUDIENCE"
            )
        return self

    @property
    def needs_key(self) -> bool:
        """Whether requests need a key or a token; only then may other machines reach it."""
        return self.api_keys_file is not None or self.oidc_issuer is not None


def read() -> Settings:
    """Settings of the environment; UserError for a bad value or an unknown name."""
    check_names(name for name in os.environ if name.startswith(PREFIX) and not LINK.match(name))
    try:
        return Settings()
    except ValidationError as error:
        raise UserError(complaint(error)) from error
    except ValueError as error:
        # A list that is not JSON.
        raise UserError(f"a setting of the gateway cannot be read: {error}") from error


def check(variables: Mapping[str, str]) -> None:
    """Raise a UserError for unknown settings or bad values of a gateway elsewhere.

    It has keys: what this machine's environment says is not looked at.
    """
    check_names(variables)
    fields: dict[str, Any] = {"api_keys_file": Path("keys.json")}
    fields |= {name.removeprefix(PREFIX).lower(): value for name, value in variables.items()}
    try:
        ExplicitSettings(**fields)
    except ValidationError as error:
        raise UserError(complaint(error)) from error


class ExplicitSettings(Settings):
    """Settings from arguments alone; the environment is not read."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003
        init_settings: PydanticBaseSettingsSource,
        *others: PydanticBaseSettingsSource,  # noqa: ARG003
        **named: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)


def check_names(names: Iterable[str]) -> None:
    known = {PREFIX + name.upper() for name in Settings.model_fields} - {"GATEWAY_SERVERS"}
    for name in names:
        if name not in known | {"GATEWAY_UPSTREAMS"}:
            raise UserError(f"{name} is not a setting; docs/gateway.md lists them")


def complaint(error: ValidationError) -> str:
    """The first of an error's complaints, with the setting's name."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    name = f"{PREFIX}{place.upper().removeprefix(PREFIX)}: " if place else ""
    return f"{name}{first['msg'].removeprefix('Value error, ')}"
