"""Names that MLflow, Kubernetes and vLLM all accept."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import PurePosixPath
from typing import Any

from loraline.contract import Contract
from loraline.errors import UserError

LABEL = "[a-z0-9]([a-z0-9-]*[a-z0-9])?"
"""The form of Kubernetes' names (RFC 1123)."""


def is_commit(revision: str) -> bool:
    return re.fullmatch(r"[0-9a-f]{40}", revision) is not None


def base_name(contract: Contract) -> str:
    """Name that clients use for the bare base."""
    return PurePosixPath(contract.base).name if contract.is_folder else contract.base


def model_uri(model_name: str, version: int | str) -> str:
    """The registered version's address, refused when MLflow or a pod could not carry it."""
    if not model_name.strip() or not model_name.isprintable() or set(model_name) & set("/:"):
        raise UserError(
            f"registered model name {model_name!r} is not accepted: use printable characters "
            "without / and :"
        )
    if not re.fullmatch(r"[1-9][0-9]*", str(version)):
        raise UserError(f"version {str(version)!r} of {model_name} is not a positive integer")
    return f"models:/{model_name}/{version}"


def served_name(model_name: str) -> str:
    """A registered model's name as a DNS label; a digest keeps changed names distinct."""
    slug = re.sub(r"[^a-z0-9]+", "-", model_name.lower()).strip("-")
    if slug == model_name and len(slug) <= 50:
        return slug
    digest = hashlib.sha256(model_name.encode()).hexdigest()[:8]
    return f"{slug[:40].strip('-')}-{digest}".strip("-")


def checked_name(name: str, label: str = "name", longest: int = 50) -> str:
    """The name, if it is a DNS label (RFC 1123), with room for our prefixes."""
    if len(name) <= longest and re.fullmatch(LABEL, name):
        return name
    raise UserError(
        f"{label} {name!r} is not accepted: use up to {longest} lower-case letters, digits and "
        "hyphens, with a letter or digit at both ends"
    )


def checked_subdomain(name: str, label: str) -> str:
    """The name, if it consists of DNS labels with dots between them, as claims' names do."""
    if len(name) <= 253 and re.fullmatch(rf"{LABEL}(\.{LABEL})*", name):
        return name
    raise UserError(
        f"{label} {name!r} is not accepted: use up to 253 lower-case letters, digits, hyphens and "
        "dots, with a letter or digit at both ends of each part"
    )


def compact_json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))
