"""Fetch a registered adapter for a server; check that it was measured and that vLLM can serve it.

The init container of the manifest runs it; by hand:

    python steps/fetch_adapter.py --model models:/tiny-mistral-lora/1 --sha256 DIGEST --out-dir x
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import click

from loraline import contract
from loraline.contract import folder_digest
from loraline.errors import UserError
from loraline.serving import preflight
from loraline.serving.preflight import LORA_RANKS
from loraline.step import PipelineCommand
from loraline.tracking import identity, signature

DONE = ".loraline-adapter"
"""File in a complete folder: what was asked for, and the digest of the folder's files."""


@click.command(cls=PipelineCommand)
@click.option("--model", required=True, metavar="models:/NAME/VERSION", help="Registered version.")
@click.option("--sha256", "digest", required=True, help="Expected digest of the folder.")
@click.option("--max-lora-rank", default=LORA_RANKS[-1], show_default=True, help="Of the server.")
@click.option("--merge", "base", metavar="BASE", help="Merge it into a copy of this base.")
@click.option(
    "--out-dir",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for the adapter, new, empty or of an earlier fetch; it is complete or absent.",
)
def fetch_adapter(
    model: str, digest: str, max_lora_rank: int, base: str | None, out_dir: Path
) -> None:
    """Download a registered adapter, check its digest, and run the preflight."""
    expected = " ".join(filter(None, (digest, base, signature.key_digest())))
    if is_whole(out_dir, expected):
        click.echo(f"{model} is already in {out_dir}")
        return
    if out_dir.is_dir() and any(out_dir.iterdir()) and not (out_dir / DONE).is_file():
        raise UserError(f"--out-dir {out_dir} holds other files; name an empty or a new folder")
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out_dir.parent, prefix=".fetch-") as part:
        adapter = download(model, Path(part))
        check_digest(adapter, model, digest)
        check_signature(model, digest)
        leave_out_pickles(adapter, model)
        agreed = contract.read(adapter)
        if agreed.train == "full" and base:
            raise UserError(f"{model} is a whole model; fetch it without --merge")
        if agreed.train == "lora" and agreed.export == "merged" and not base:
            raise UserError(f"{model} was measured merged into its base; fetch it with --merge")
        preflight.check(adapter, agreed, model, max_lora_rank)
        if base:
            adapter = merge(adapter, base, Path(part, "merged"))
        (adapter / DONE).write_text(f"{expected}\n{folder_digest(adapter)}\n")
        shutil.rmtree(out_dir, ignore_errors=True)
        adapter.rename(out_dir)
    click.echo(f"{model} is in {out_dir}")


def is_whole(folder: Path, expected: str) -> bool:
    """Whether an earlier start of the pod has left the same adapter, unchanged.

    `expected` has the adapter's digest, the base that it is merged into, and the public key that
    its signature was checked with.
    """
    marker = folder / DONE
    if not marker.is_file():
        return False
    fetched, _, digest = marker.read_text(errors="replace").strip().partition("\n")
    return fetched == expected and folder_digest(folder, ignored=DONE) == digest


def download(model: str, folder: Path) -> Path:
    name, _, version = model.removeprefix("models:/").rpartition("/")
    if not model.startswith("models:/") or not name or not version.isdecimal():
        raise UserError(f"--model {model!r} is not of the form models:/NAME/VERSION")
    import mlflow
    from mlflow.exceptions import MlflowException

    from loraline.tracking import store

    client = store.connect(read_only=True)
    try:
        client.get_model_version(name, version)
    except MlflowException as error:
        # A name that MLflow takes for none is an invalid parameter.
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        raise UserError(
            f"--model {model!r} is not a registered version of MLflow at {store.uri()}"
        ) from error
    try:
        downloaded = mlflow.artifacts.download_artifacts(
            f"{model}/artifacts/adapter", dst_path=folder
        )
    except (MlflowException, FileNotFoundError) as error:
        if store.is_outage(error):
            raise
        if sentence := store.unfit(model, error):
            raise UserError(sentence) from error
        raise UserError(f"{model} holds no adapter in artifacts/adapter: {error}") from error
    return Path(downloaded)


def leave_out_pickles(adapter: Path, model: str) -> None:
    """Remove pickles that a trainer left beside the weights."""
    for path in preflight.leftovers(adapter):
        path.unlink()
        click.echo(f"{model} holds {path.name}, which could run code; it is left out", err=True)


def check_digest(adapter: Path, model: str, digest: str) -> None:
    actual = folder_digest(adapter)
    if actual != digest:
        raise UserError(
            identity.changed("quality_gate", f"{model} has digest {actual}, expected {digest}")
        )


def check_signature(model: str, digest: str) -> None:
    from loraline.tracking import store

    name, _, version = model.removeprefix("models:/").rpartition("/")
    signature.check(store.connect(read_only=True).get_model_version(name, version), digest)


def merge(adapter: Path, base: str, folder: Path) -> Path:
    """The base with the adapter merged into it, in the contract's precision, with its tokenizer."""
    from loraline.base import merging
    from loraline.base.locate import locate, locate_measured

    agreed = contract.read(adapter)
    if Path(base).is_dir() and not agreed.is_folder:
        # A folder in place of the hub's commit has another digest.
        located = locate(base, None)
    else:
        located = locate_measured(agreed.model_copy(update={"base": base}))
    return merging.write(agreed, located, adapter, folder)


if __name__ == "__main__":
    fetch_adapter()
