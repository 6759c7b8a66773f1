"""Addresses as people may see them: no user, no password, no query."""

from __future__ import annotations

import os
import re

HIDDEN = "…"

SECRETS = (
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "HF_TOKEN",
    "LORALINE_SIGNING_KEY",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "VLLM_API_KEY",
)
"""Environment variables whose values are secret."""

ADDRESSES = (
    *("MLFLOW_TRACKING_URI", "MLFLOW_S3_ENDPOINT_URL", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"),
    *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"),
)
"""Variables that hold addresses, which may hold credentials."""

WEBHOOK = "LORALINE_WEBHOOK_URL"
"""The variable of an address that is a secret as a whole, its path included."""


def redacted(address: str, *, path: bool = True) -> str:
    """An address without user, password, query and fragment, and without its path unless `path`.

    A password may hold any character that it should have percent-encoded. So everything up to the
    last `@` goes; where a `?` or `#` stands before that, nobody knows what the `@` belongs to,
    and the scheme alone is left.

    >>> redacted("postgresql://user:pa/ss@host:5432/mlflow?password=secret")
    'postgresql://host:5432/mlflow'
    """
    scheme, separator, location = address.partition("://")
    if not separator:
        scheme, location = "", address
    before, at, after = location.rpartition("@")
    if at and re.search(r"[?#]", before):
        return f"{scheme}{separator}{HIDDEN}"
    visible = re.split(r"[?#]", after if at else location, maxsplit=1)[0]
    visible = re.sub(r"[^\x21-\x7e\xa1-\uffff]+.*", HIDDEN, visible, flags=re.DOTALL)
    if not path:
        visible = visible.partition("/")[0]
    return f"{scheme}{separator}{visible}"


def scrubbed(text: str) -> str:
    """A text for people without the secrets of this environment, whoever put them into it."""
    for name in ADDRESSES:
        text = without_credentials(text, os.environ.get(name, ""))
    webhook = os.environ.get(WEBHOOK, "")
    if webhook:
        text = text.replace(webhook, redacted(webhook, path=False))
        path = webhook.partition("://")[2].partition("/")[2]
        if path:
            text = text.replace(path, HIDDEN)
    for name in SECRETS:
        value = os.environ.get(name, "")
        # A shorter one is a word that texts may hold by themselves.
        if len(value) >= 6:
            text = text.replace(value, HIDDEN)
    return text


def without_credentials(text: str, address: str) -> str:
    """A text without the credentials of an address, where the address has any."""
    if not address or redacted(address) == address:
        return text
    text = text.replace(address, redacted(address))
    for secret in credentials(address):
        text = text.replace(secret, HIDDEN)
    return text


def credentials(address: str) -> list[str]:
    """The secret parts of an address: user, password and query; the longest first."""
    location = address.partition("://")[2] or address
    before, _, _ = location.rpartition("@")
    parts = [before, *before.split(":", 1)[1:], *re.split(r"[?#]", location)[1:]]
    parts += re.findall(r"(?:password|secret|token|key)=([^&#]*)", location, re.IGNORECASE)
    return sorted({part for part in parts if len(part) >= 4}, key=len, reverse=True)
