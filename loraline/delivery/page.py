"""The operator's options for the page in front of the gateway."""

from __future__ import annotations

import re
from dataclasses import dataclass

from loraline.errors import UserError
from loraline.serving.names import checked_subdomain

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
