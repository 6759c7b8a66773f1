"""What every screen uses: the gateway with the visitor's key, and the visitor's settings."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import gradio as gr
import httpx

from gateway.ui.client import Gateway
from gateway.ui.downloads import Downloads
from gateway.ui.questions import Sampling
from gateway.ui.settings import Settings
from gateway.ui.visitors import Visitors


@dataclass
class Connections:
    """The clients of gateway and desk, one per process, which all screens share."""

    settings: Settings
    visitors: Visitors = field(init=False)
    http: httpx.AsyncClient = field(init=False)
    downloads: Downloads = field(init=False, default_factory=Downloads)
    desk_http: httpx.AsyncClient | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.visitors = Visitors(self.settings)
        self.http = client(self.settings.gateway, self.settings)
        if self.settings.desk:
            self.desk_http = client(self.settings.desk, self.settings)

    def gateway(self, request: gr.Request) -> Gateway:
        """The gateway as the visitor behind an event may use it."""
        return Gateway(self.http, self.visitors.key(request.request))

    def desk(self, request: gr.Request) -> Gateway:
        """The desk, with the same key; only where one is set."""
        assert self.desk_http is not None
        return Gateway(self.desk_http, self.visitors.key(request.request), service="desk")

    async def close(self) -> None:
        self.downloads.close()
        await self.http.aclose()
        if self.desk_http is not None:
            await self.desk_http.aclose()

    @property
    def shown_gateway(self) -> str:
        """The gateway's address in what is copied."""
        return (self.settings.public_gateway or self.settings.gateway).rstrip("/")


def client(address: str, settings: Settings) -> httpx.AsyncClient:
    """Calls to one address and no other: no proxy of the environment, no redirect."""
    return httpx.AsyncClient(
        base_url=address,
        timeout=httpx.Timeout(settings.timeout_s, connect=5),
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
        trust_env=False,
    )


@dataclass(frozen=True)
class Preferences(Sampling):
    """A visitor's settings, which their browser keeps."""

    megapixels: float = 0.0
    """Largest picture that tasks and free questions send; 0 sends the file itself."""

    @classmethod
    def of(cls, kept: Any) -> Preferences:
        """What the browser kept; anything else there is the default."""
        if not isinstance(kept, dict):
            return cls()
        known = {each.name: each.default for each in fields(cls)}
        right: dict[str, Any] = {
            name: value
            for name, value in kept.items()
            if name in known and (isinstance(value, int | float | str) or value is None)
        }
        try:
            return cls(
                system=str(right.get("system", ""))[:10_000],
                temperature=min(2.0, max(0.0, float(right.get("temperature", 0.7)))),
                top_p=min(1.0, max(0.01, float(right.get("top_p", 0.8)))),
                max_tokens=max(1, int(right.get("max_tokens", 1024))),
                seed=None if right.get("seed") in (None, "") else int(right["seed"]),
                megapixels=min(64.0, max(0.0, float(right.get("megapixels", 0.0)))),
            )
        except (TypeError, ValueError, OverflowError):
            return cls()
