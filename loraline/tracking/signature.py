"""The gate's signature of an adapter, which the server's pod checks: Ed25519, both keys optional.

Digests in tags guard against what changes files. A signature also guards against who may write to
MLflow, since the gate alone holds the private key and the pod has the public one from its cluster.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
from typing import TYPE_CHECKING

from loraline.errors import UserError

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

SIGNING_KEY = "LORALINE_SIGNING_KEY"
"""Variable with the private key in PEM, as `openssl genpkey -algorithm ed25519` writes it."""

VERIFY_KEY = "LORALINE_VERIFY_KEY"
"""Variable with the public key in PEM, as `openssl pkey -pubout` writes it."""

SIGNATURE = "loraline.adapter.signature"
"""Tag of a registered version."""


def message(model: str, version: str, digest: str) -> bytes:
    """What is signed: these files, as this version of this registered model."""
    return f"loraline adapter\nmodels:/{model}/{version}\nsha256:{digest}\n".encode()


def sign(model: str, version: str, digest: str) -> str | None:
    """The signature in Base64 by the environment's key; None if it has none."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    text = os.environ.get(SIGNING_KEY)
    if not text:
        return None
    try:
        key = load_pem_private_key(text.encode(), None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        # From None: the library's own words may quote the key.
        raise UserError(f"{SIGNING_KEY} holds no private Ed25519 key in PEM") from None
    return base64.b64encode(key.sign(message(model, version, digest))).decode()


def key_digest() -> str:
    """A digest of the environment's public key; empty if it has none."""
    text = os.environ.get(VERIFY_KEY, "")
    return hashlib.sha256(text.encode()).hexdigest() if text else ""


def check(version: ModelVersion, digest: str) -> None:
    """Raise a UserError if the environment has a public key and no signature of these files by it
    is kept with the version."""
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    text = os.environ.get(VERIFY_KEY)
    if not text:
        return
    try:
        key = load_pem_public_key(text.encode())
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise UserError(f"{VERIFY_KEY} holds no public Ed25519 key in PEM") from None
    name = f"version {version.version} of {version.name!r}"
    encoded = version.tags.get(SIGNATURE)
    if not encoded:
        raise UserError(
            f"{name} is not signed: run quality_gate again with --force and {SIGNING_KEY}"
        )
    try:
        signed = message(version.name, str(version.version), digest)
        key.verify(base64.b64decode(encoded, validate=True), signed)
    except (InvalidSignature, binascii.Error) as error:
        raise UserError(
            f"the signature of {name} is not that of the adapter that is here"
        ) from error
