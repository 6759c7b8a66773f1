"""A pod with the public key fetches what the gate signed, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from loraline.tracking import signature, store, tags

MODEL = "mistral-7b-lora"


def pair() -> tuple[str, str]:
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return private.decode(), public.decode()


def test_what_the_gate_signed_is_fetched_and_nothing_else(
    step, candidate, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private, public = pair()
    run_id = candidate()
    monkeypatch.setenv(signature.SIGNING_KEY, private)
    assert step("quality_gate", "--run-id", run_id).exit_code == 0
    client = store.connect()
    version = client.get_model_version(MODEL, "1")
    digest = version.tags[tags.ADAPTER_DIGEST]
    fetch = ("fetch_adapter", "--model", f"models:/{MODEL}/1", "--sha256", digest, "--out-dir")
    monkeypatch.setenv(signature.VERIFY_KEY, public)
    assert step(*fetch, "signed").exit_code == 0

    monkeypatch.setenv(signature.VERIFY_KEY, pair()[1])
    result = step(*fetch, "another")
    assert result.exit_code == 2
    assert "the signature of version 1 of 'mistral-7b-lora' is not that of" in result.stderr

    monkeypatch.setenv(signature.VERIFY_KEY, public)
    (workplace / "strict.yaml").write_text("min_bleu: 99\n")
    step("quality_gate", "--run-id", run_id, "--policy", "strict.yaml")
    result = step(*fetch, "rejected")
    assert result.exit_code == 2
    assert "version 1 of 'mistral-7b-lora' is not signed" in result.stderr
    assert not (workplace / "another").exists()
    assert not (workplace / "rejected").exists()


def test_a_signature_of_another_version_is_none(
    step, candidate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two trainings of the same adapter: what was signed for one is no word for the other."""
    private, public = pair()
    monkeypatch.setenv(signature.SIGNING_KEY, private)
    for name in ("one", "two"):
        assert step("quality_gate", "--run-id", candidate(name=name)).exit_code == 0
    client = store.connect()
    signed = client.get_model_version(MODEL, "1").tags
    client.set_model_version_tag(MODEL, "2", signature.SIGNATURE, signed[signature.SIGNATURE])
    monkeypatch.setenv(signature.VERIFY_KEY, public)
    digest = client.get_model_version(MODEL, "2").tags[tags.ADAPTER_DIGEST]
    result = step(
        *("fetch_adapter", "--model", f"models:/{MODEL}/2", "--sha256", digest),
        *("--out-dir", "fetched"),
    )
    assert result.exit_code == 2
    assert "the signature of version 2 of 'mistral-7b-lora' is not that of" in result.stderr


@pytest.mark.parametrize("signed", ["", "AAAA", "no base64!"])
def test_a_signature_of_other_form_is_none(monkeypatch: pytest.MonkeyPatch, signed: str) -> None:
    from mlflow.entities.model_registry import ModelVersion, ModelVersionTag

    from loraline.errors import UserError

    monkeypatch.setenv(signature.VERIFY_KEY, pair()[1])
    version = ModelVersion("m", "1", 0, tags=[ModelVersionTag(signature.SIGNATURE, signed)])
    with pytest.raises(UserError, match="version 1 of 'm'"):
        signature.check(version, "a" * 64)


@pytest.mark.parametrize("key", ["nonsense", pair()[1]])
def test_a_key_of_other_form_is_not_quoted(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    from loraline.errors import UserError

    monkeypatch.setenv(signature.SIGNING_KEY, key)
    with pytest.raises(UserError) as error:
        signature.sign("m", "1", "a" * 64)
    assert key not in str(error.value)
