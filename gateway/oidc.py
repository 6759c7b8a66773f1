"""Bearer tokens of an OpenID provider: signature, issuer, audience and time are checked."""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from typing import Any

import aiohttp
import jwt

from gateway.errors import Problem
from gateway.logs import log
from gateway.settings import Settings

ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA"]
"""Signatures with a public key. A token that names HMAC could be signed with that public key."""

KEYS_S = 3600
RETRY_S = 30
"""How long keys are kept, and the least time between two fetches for an unknown key."""

PAUSE_S = 5
"""Seconds after which an issuer that failed is asked again."""

LONGEST = 64
"""Characters of a caller's name in logs and folders."""

SHORTENED = re.compile(r"-[0-9a-f]{32}$")

FAILURES = (
    aiohttp.ClientError,
    TimeoutError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    jwt.PyJWTError,
)
"""What goes wrong with an issuer: its connection, or the form of its answer."""


class Oidc:
    """The keys of one issuer. Only addresses of the operator are asked, none of a token."""

    def __init__(self, settings: Settings, session: aiohttp.ClientSession) -> None:
        self.issuer = settings.oidc_issuer or ""
        self.audience = settings.oidc_audience
        self.jwks_url = settings.oidc_jwks_url
        self.session = session
        self.keys: dict[str, jwt.PyJWK] = {}
        self.fetched = self.failed = -float("inf")
        self.fetching = asyncio.Lock()

    async def subject(self, token: str) -> str | None:
        """Whose token it is; None when it is not valid."""
        try:
            header = jwt.get_unverified_header(token)
            key = await self.key(header.get("kid"))
            if key is None:
                return None
            claims = jwt.decode(
                token,
                key,
                algorithms=ALGORITHMS,
                audience=self.audience,
                issuer=self.issuer,
                leeway=30,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except (jwt.PyJWTError, ValueError, TypeError):
            return None
        return name_of(str(claims["sub"]))

    async def key(self, name: Any) -> jwt.PyJWK | None:
        """The issuer's key of that ID; an unknown ID fetches the keys again."""
        if not isinstance(name, str):
            return None
        # A known key does not wait for a fetch that another token began.
        if self.is_due(name) and not (name in self.keys and self.fetching.locked()):
            async with self.fetching:
                if self.is_due(name):
                    await self.fetch()
        if not self.keys and self.failed > self.fetched:
            raise Problem(
                503,
                "oidc_unavailable",
                "The issuer of the tokens does not answer; try again in a moment.",
                retry_after=PAUSE_S,
            )
        return self.keys.get(name)

    def is_due(self, name: str) -> bool:
        """Whether the keys are fetched for a token with a key of that ID."""
        now = time.monotonic()
        age = now - self.fetched
        is_old = age > KEYS_S or (name not in self.keys and age > RETRY_S)
        return is_old and now - self.failed > PAUSE_S

    async def fetch(self) -> None:
        """Take the issuer's keys; those from before stay valid while it fails."""
        try:
            if self.jwks_url is None:
                configuration = await self.get(
                    self.issuer.rstrip("/") + "/.well-known/openid-configuration"
                )
                self.jwks_url = str(configuration["jwks_uri"])
            listed = await self.get(self.jwks_url)
            keys = jwt.PyJWKSet.from_dict(listed).keys
            self.keys = {key.key_id: key for key in keys if key.key_id}
            self.fetched = time.monotonic()
        except FAILURES as error:
            self.failed = time.monotonic()
            log.warning("the issuer of the tokens does not answer", exc_info=error)

    async def get(self, url: str) -> dict[str, Any]:
        timeout = aiohttp.ClientTimeout(total=5)
        async with self.session.get(url, timeout=timeout, allow_redirects=False) as answer:
            answer.raise_for_status()
            document = await answer.json(content_type=None)
            if not isinstance(document, dict):
                raise ValueError
            return document


def name_of(subject: str) -> str:
    """A caller's name of at most 64 printable characters; no two subjects have the same.

    A subject that is longer, or holds anything else, is its beginning and its digest. So is one
    that looks like such a name.
    """
    clean = "".join(character for character in subject if character.isprintable())
    if clean == subject and len(subject) <= LONGEST and not SHORTENED.search(subject):
        return subject
    # JSON can hold halves of characters.
    digest = hashlib.sha256(subject.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{clean[:31]}-{digest[:32]}"
