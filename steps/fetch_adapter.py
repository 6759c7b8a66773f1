"""Fetch a registered adapter for a server, and nothing but the weights that were measured.

The init container of the manifest runs it; by hand:

    python steps/fetch_adapter.py --model models:/tiny-mistral-lora/1 --sha256 DIGEST --out-dir x
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import click

from loraline.contract import WEIGHTS, sha256
from loraline.errors import UserError
from loraline.step import LineCommand

ALLOWED = {".safetensors", ".json", ".jinja", ".txt", ".md", ".model"}
"""File types of an adapter; weights in any other form could run code when they are loaded."""


@click.command(cls=LineCommand)
@click.option("--model", required=True, metavar="models:/NAME/VERSION", help="Registered version.")
@click.option("--sha256", "digest", required=True, help=f"Expected digest of {WEIGHTS}.")
@click.option(
    "--out-dir",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for the adapter; it appears whole or not at all.",
)
def fetch_adapter(model: str, digest: str, out_dir: Path) -> None:
    """Download a registered adapter and hold its weights against a digest."""
    fetch(model, digest, out_dir)
    click.echo(f"{model} is in {out_dir}")


def fetch(model: str, digest: str, out_dir: Path) -> None:
    """Put the adapter of `models:/name/version` in `out_dir`, replacing another one there.

    Raises UserError when there is no such adapter or it is not the one expected.
    """
    if (out_dir / WEIGHTS).is_file() and sha256(out_dir / WEIGHTS) == digest:
        return
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out_dir.parent, prefix=".fetch-") as part:
        adapter = download(model, Path(part))
        check(adapter, model, digest)
        shutil.rmtree(out_dir, ignore_errors=True)
        adapter.rename(out_dir)


def download(model: str, folder: Path) -> Path:
    name, _, version = model.removeprefix("models:/").rpartition("/")
    if not model.startswith("models:/") or not name or not version.isdecimal():
        raise UserError(f"--model {model!r} is not of the form models:/NAME/VERSION")
    import mlflow
    from mlflow.exceptions import MlflowException

    from loraline import tracking

    client = tracking.connect()
    try:
        client.get_model_version(name, version)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise UserError(
            f"--model {model!r} is not a registered version of MLflow at {tracking.uri()}"
        ) from error
    try:
        found = mlflow.artifacts.download_artifacts(f"{model}/artifacts/adapter", dst_path=folder)
    except (MlflowException, FileNotFoundError) as error:
        if tracking.is_outage(error):
            raise
        raise UserError(f"{model} holds no adapter in artifacts/adapter: {error}") from error
    return Path(found)


def check(adapter: Path, model: str, digest: str) -> None:
    strays = sorted(
        str(path.relative_to(adapter))
        for path in adapter.rglob("*")
        if path.is_file() and path.suffix not in ALLOWED
    )
    if strays:
        raise UserError(
            f"{model} holds {', '.join(strays)}; an adapter is made of {', '.join(sorted(ALLOWED))}"
        )
    if not (adapter / WEIGHTS).is_file():
        raise UserError(f"{model} holds no {WEIGHTS}")
    found = sha256(adapter / WEIGHTS)
    if found != digest:
        raise UserError(f"{WEIGHTS} of {model} has digest {found}, expected {digest}")


if __name__ == "__main__":
    fetch_adapter()
