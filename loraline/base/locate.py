"""Base models: find them in a folder, or fetch them from the hub."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraline.errors import TryAgain, UserError

if TYPE_CHECKING:
    from loraline.contract import Contract


TOKENIZER_FILES = ["*.json", "*.jinja", "*.txt", "*.model"]
"""Files of a hub model that a tokenizer or processor is made of, its config among them."""

DOWNLOADED = ["*.safetensors", *TOKENIZER_FILES]
"""Files of a hub model that are fetched: weights as safetensors only, and no code."""

MISTRALS = "consolidated*.safetensors"
"""The same weights under Mistral's names, beside those of transformers."""


@dataclass(frozen=True)
class Base:
    """A base model on this machine."""

    path: Path
    revision: str
    """Commit on the hub, or `sha256:` and the digest of a folder's config and weights."""

    config: dict[str, Any]

    @property
    def architecture(self) -> str:
        return str(self.config["architectures"][0])


def locate(base: str, revision: str | None) -> Base:
    """Find a base model in a folder, or fetch it from the hub into the hub's cache.

    Raises UserError when there is no such model, or none in the cache and HF_HUB_OFFLINE is set;
    TryAgain when the hub does not answer.
    """
    folder = Path(base)
    if folder.is_dir():
        path, revision = folder, None
    elif base.startswith((".", "/")) or base.count("/") > 1:
        raise UserError(f"base model folder {base!r} does not exist")
    else:
        path = fetch(base, revision)
    config = path / "config.json"
    weights = weight_files(path)
    if not config.is_file() or not weights:
        raise UserError(f"base model {base!r} has no config.json or no safetensors weights")
    try:
        content = json.loads(config.read_text())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{config} is no config of a base model") from error
    return Base(
        path,
        base_digest([config, *weights]) if folder.is_dir() else path.name,
        content,
    )


@contextmanager
def refusing_remote_code(base: Path) -> Iterator[None]:
    """Turn transformers' refusal to run a base's own code into a UserError.

    For what is loaded with `trust_remote_code=False`; left out, transformers asks the terminal.
    """
    try:
        yield
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise UserError(
            f"base model {base} brings code of its own (auto_map in its config), which is never "
            "run here: name a base whose classes transformers has"
        ) from error


def weight_files(folder: Path) -> list[Path]:
    """The files that transformers loads a base's weights from, sorted."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = set(json.loads(index.read_text())["weight_map"].values())
            outside = sorted(name for name in names if Path(name).name != name)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{index} is no index of weights") from error
        if outside:
            raise UserError(f"{index} names {outside[0]!r}, which is no file beside it")
        return sorted(folder / name for name in names)
    return sorted(set(folder.glob("*.safetensors")) - set(folder.glob(MISTRALS)))


def locate_measured(contract: Contract) -> Base:
    """The base that an adapter was trained on; UserError if another base is in its place."""
    on_hub = not contract.base_revision.startswith("sha256:")
    base = locate(contract.base, contract.base_revision if on_hub else None)
    if base.revision != contract.base_revision:
        raise UserError(
            f"base model {contract.base!r} is at {base.revision}, "
            f"the adapter was trained on {contract.base_revision}"
        )
    return base


def locate_tokenizer(contract: Contract) -> Path:
    """The base's folder with its tokenizer and processor, without fetching weights from the hub."""
    if contract.base_revision.startswith("sha256:"):
        return locate_measured(contract).path
    return fetch(contract.base, contract.base_revision, TOKENIZER_FILES)


def fetch(base: str, revision: str | None, files: Sequence[str] = DOWNLOADED) -> Path:
    """Download a hub model; the folder is named after the commit."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import (
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return Path(
            snapshot_download(
                base, revision=revision, allow_patterns=list(files), ignore_patterns=MISTRALS
            )
        )
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise UserError(
            f"base model {base!r} (revision {revision or 'default'}) is neither a folder nor a "
            "model on the hub that this account may read"
        ) from error
    except LocalEntryNotFoundError as error:
        if constants.HF_HUB_OFFLINE:
            raise UserError(
                f"base model {base!r} is not in the local cache, and HF_HUB_OFFLINE is set: "
                "fill the cache (HF_HOME) first, or give a folder as base"
            ) from error
        raise TryAgain(
            f"base model {base!r} is not in the local cache and the hub does not answer; "
            "mount a cache with it (HF_HOME) or give a folder as base"
        ) from error


def tokenizer_digest(base: Base) -> str:
    """Digest of what a base's folder holds beside its weights: tokenizer, template, processor.

    An empty text for a hub model, whose commit says it all.
    """
    if not base.revision.startswith("sha256:"):
        return ""
    files = {file for glob in TOKENIZER_FILES for file in base.path.glob(glob) if file.is_file()}
    return base_digest(sorted(files))


def base_digest(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode())
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return f"sha256:{digest.hexdigest()}"
