"""The argo command is installed only where its release is signed and its checksum is right."""

from __future__ import annotations

import base64
import gzip
import hashlib
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = b"#!/bin/sh\necho argo: v3.7.14\n"

Install = Callable[[], subprocess.CompletedProcess[str]]


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """A folder with the three files of a release and the keys that signed it."""
    folder = tmp_path / "release"
    folder.mkdir()
    packed = gzip.compress(PROGRAM)
    (folder / "argo-linux-amd64.gz").write_bytes(packed)
    checksums = f"{hashlib.sha256(packed).hexdigest()}  argo-linux-amd64.gz\n"
    (folder / "argo-workflows-cli-checksums.txt").write_text(checksums)
    private, public = tmp_path / "private.pem", tmp_path / "public.pem"
    openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", private)
    openssl("ec", "-in", private, "-pubout", "-out", public)
    sign(folder, private)
    return folder


def openssl(*words: str | Path) -> bytes:
    return subprocess.run(["openssl", *words], check=True, capture_output=True).stdout


def sign(folder: Path, private: Path) -> None:
    checksums = folder / "argo-workflows-cli-checksums.txt"
    signature = base64.b64encode(openssl("dgst", "-sha256", "-sign", private, checksums))
    (folder / "argo-workflows-cli-checksums.sig").write_bytes(signature)


@pytest.fixture
def install(release: Path, tmp_path: Path) -> Install:
    return lambda: subprocess.run(
        [
            ROOT / ".ci/install-argo",
            tmp_path / "bin",
            release.as_uri(),
            tmp_path / "public.pem",
        ],
        capture_output=True,
        text=True,
    )


def test_a_signed_release_is_installed(install: Install, tmp_path: Path) -> None:
    assert install().returncode == 0

    ran = subprocess.run([tmp_path / "bin/argo"], capture_output=True, text=True, check=True)
    assert ran.stdout == "argo: v3.7.14\n"


def test_another_program_is_refused(install: Install, release: Path, tmp_path: Path) -> None:
    (release / "argo-linux-amd64.gz").write_bytes(gzip.compress(b"another"))

    refused = install()

    assert refused.returncode != 0
    assert "FAILED" in refused.stdout
    assert not (tmp_path / "bin/argo").exists()


def test_a_list_of_checksums_that_another_key_signed_is_refused(
    install: Install, release: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.pem"
    openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", other)
    sign(release, other)

    assert install().returncode != 0
    assert not (tmp_path / "bin/argo").exists()


def test_a_list_of_checksums_that_does_not_name_the_program_is_refused(
    install: Install, release: Path, tmp_path: Path
) -> None:
    (release / "argo-workflows-cli-checksums.txt").write_text("0" * 64 + "  argo-darwin-arm64.gz\n")
    sign(release, tmp_path / "private.pem")

    assert install().returncode != 0
    assert not (tmp_path / "bin/argo").exists()


def test_the_key_of_the_repository_can_be_read() -> None:
    shown = openssl("pkey", "-pubin", "-in", ROOT / ".ci/argo-cosign.pub", "-noout", "-text")

    assert b"NIST CURVE: P-256" in shown
