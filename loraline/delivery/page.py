"""The page in front of the gateway: the operator's options, and its pod."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from loraline.delivery.kube import Object
from loraline.delivery.pod import NAME
from loraline.errors import UserError
from loraline.serving.names import checked_subdomain

if TYPE_CHECKING:
    from loraline.delivery.gateway import GatewayPod

PORT = 7860
UPLOADS = "/uploads"
HTTP_ADDRESS = re.compile(r"https?://[^/?#@\s]+/?")


@dataclass(frozen=True)
class Page:
    """The operator's options for the page."""

    image: str
    host: str | None = None
    """Host name for access from outside the cluster; None for no such access."""

    desk: str | None = None
    """Address of the desk, which reviews versions and trains; None leaves both screens out."""

    def check(self) -> None:
        """Raise a UserError for what Kubernetes or the page would refuse."""
        if self.host is not None:
            checked_subdomain(self.host, "host of the page")
        if self.desk is not None and not HTTP_ADDRESS.fullmatch(self.desk):
            raise UserError("--ui-desk is not an address such as http://desk:8090")


@dataclass(frozen=True)
class PagePod:
    """The page's pod; every object around it carries its name, labels and the version behind."""

    page: Page
    behind: GatewayPod

    @property
    def name(self) -> str:
        return f"{self.behind.servers[0].resource}-page"

    @property
    def selector(self) -> dict[str, str]:
        return {NAME: self.name}

    @property
    def labels(self) -> dict[str, str]:
        part = {"app.kubernetes.io/component": "page", "app.kubernetes.io/part-of": "loraline"}
        return self.selector | part

    @property
    def annotations(self) -> dict[str, str]:
        """With a digest of what is read at the start, so that a change starts a new pod."""
        read = json.dumps(self.variables(), sort_keys=True)
        return {
            "loraline/registered-version": self.behind.servers[0].adapters[0].uri,
            "loraline/config-sha256": hashlib.sha256(read.encode()).hexdigest(),
        }

    def metadata(self) -> Object:
        namespace = self.behind.servers[0].where.namespace
        placed = {"namespace": namespace} if namespace else {}
        return {
            "name": self.name,
            **placed,
            "labels": self.labels,
            "annotations": self.annotations,
        }

    def variables(self) -> dict[str, str]:
        """Settings of the page: addresses alone, no key."""
        env = {
            # It asks every visitor for a key of the gateway.
            "UI_HOST": "0.0.0.0",  # noqa: S104
            "UI_PORT": str(PORT),
            "UI_GATEWAY": self.behind.address,
            "GRADIO_TEMP_DIR": UPLOADS,
        }
        if self.behind.gateway.host:
            env["UI_PUBLIC_GATEWAY"] = f"https://{self.behind.gateway.host}"
        if self.page.desk:
            env["UI_DESK"] = self.page.desk
        return env
