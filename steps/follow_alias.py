"""Keep a running server on the version that an alias names, without a restart.

A sidecar of the server's pod, or one check with --once. The server must have been started with
VLLM_ALLOW_RUNTIME_LORA_UPDATING=1, which lets whoever holds the key load adapters; deploy_vllm
renders both with --follow. Each version is served under a name of its own, `<name>-v<version>`: an
adapter reloaded under its old name would be answered from the old one's cached prefixes.

    python steps/follow_alias.py --model tiny-mistral-lora --alias candidate --once \
        --url http://127.0.0.1:8000 --contract outputs/contract.json --adapters outputs/adapters
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
from pydantic import ValidationError

from loraline.addresses import scrubbed
from loraline.contract import FILE, Contract, first_complaint
from loraline.errors import TryAgain, UserError, first_line
from loraline.serving import arguments, names
from loraline.serving.client import Server
from loraline.serving.preflight import LORA_RANKS
from loraline.step import PipelineCommand
from loraline.tracking import registry, store
from loraline.tracking.tags import ADAPTER_DIGEST

FETCH = Path(__file__).with_name("fetch_adapter.py")


@click.command(cls=PipelineCommand)
@click.option("--model", required=True, help="Registered model.")
@click.option("--alias", required=True, help="Alias to follow.")
@click.option("--url", default="http://127.0.0.1:8000", show_default=True, help="The server.")
@click.option(
    "--contract",
    "contract_file",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="Contract that the server was started with.",
)
@click.option(
    "--adapters",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder that the server sees at the same path.",
)
@click.option("--max-lora-rank", default=LORA_RANKS[-1], show_default=True, help="Of the server.")
@click.option(
    "--interval",
    type=click.FloatRange(1),
    default=30.0,
    show_default=True,
    help="Seconds between two checks of the alias.",
)
@click.option("--once", is_flag=True, help="Check once; errors end the command.")
def follow_alias(
    model: str,
    alias: str,
    url: str,
    contract_file: Path,
    adapters: Path,
    max_lora_rank: int,
    interval: float,
    once: bool,
) -> None:
    """Load the version with the alias into the server, then unload the earlier ones."""
    try:
        agreed = Contract.model_validate_json(contract_file.read_text())
    except (OSError, ValueError) as error:
        reason = first_complaint(error) if isinstance(error, ValidationError) else error
        raise UserError(f"--contract {contract_file} is not a contract: {reason}") from error
    follower = Follower(model, alias, Server(url), agreed, adapters.resolve(), max_lora_rank)
    while True:
        try:
            if changes := follower.check():
                click.echo(changes)
        # MLflow or the server may answer again at the next check.
        except Exception as error:
            if once:
                raise
            click.echo(f"follow-alias: {scrubbed(first_line(error))}", err=True)
        if once:
            return
        time.sleep(interval)


class Follower:
    """Compares the alias with the models that the server lists. It keeps no state, so a restart of
    either is noticed at the next check."""

    def __init__(
        self,
        model: str,
        alias: str,
        running: Server,
        agreed: Contract,
        adapters: Path,
        max_lora_rank: int,
    ) -> None:
        self.model = model
        self.alias = alias
        self.running = running
        self.agreed = agreed
        self.adapters = adapters
        self.max_lora_rank = max_lora_rank
        self.prefix = f"{names.served_name(model)}-v"

    def check(self) -> str | None:
        """Load the alias's version and unload the others; returns the changes, if there are any."""
        version = self.version_of_alias()
        name = f"{self.prefix}{version}"
        listed = self.running.models()
        older = [
            each
            for each in listed
            if each.startswith(self.prefix)
            and each.removeprefix(self.prefix).isdecimal()
            and each != name
        ]
        changes = []
        if name not in listed:
            path = self.fetch(version)
            request = {"lora_name": name, "lora_path": str(path)}
            self.running.post("/v1/load_lora_adapter", request)
            changes.append(f"loaded {name}")
        for each in older:
            self.running.post("/v1/unload_lora_adapter", {"lora_name": each})
            changes.append(f"unloaded {each}")
        self.remove_folders(version)
        return ", ".join(changes) or None

    @property
    def folder(self) -> Path:
        """Holds the versions that this program has fetched, and none of the init container's."""
        return self.adapters / "followed" / names.served_name(self.model)

    def remove_folders(self, version: str) -> None:
        """Remove what was fetched for versions that are no longer served."""
        for folder in self.folder.glob("v*"):
            if folder.name != f"v{version}":
                shutil.rmtree(folder, ignore_errors=True)

    def version_of_alias(self) -> str:
        from mlflow.exceptions import MlflowException

        client = store.connect(read_only=True)
        try:
            return str(client.get_model_version_by_alias(self.model, self.alias).version)
        except MlflowException as error:
            if store.is_outage(error):
                raise TryAgain(f"MLflow at {store.uri()} does not answer") from error
            raise UserError(f"{self.model} has no alias {self.alias}") from error

    def judged(self, version: str) -> str:
        """The digest of the adapter that a gate passed; a UserError if none did."""
        client = store.connect(read_only=True)
        entry = client.get_model_version(self.model, version)
        registry.promoting_gate_run_of(client, entry)
        if ADAPTER_DIGEST not in entry.tags:
            raise UserError(
                f"version {version} of {self.model!r} keeps no digest of its adapter: run "
                "quality_gate again with --force"
            )
        return entry.tags[ADAPTER_DIGEST]

    def fetch(self, version: str) -> Path:
        """The version's adapter by the init container's own program: digest and preflight."""
        import mlflow

        uri = names.model_uri(self.model, version)
        digest = self.judged(version)
        with tempfile.TemporaryDirectory() as folder:
            downloaded = mlflow.artifacts.download_artifacts(
                f"{uri}/artifacts/adapter/{FILE}", dst_path=folder
            )
            theirs = Contract.model_validate_json(Path(downloaded).read_text())
        together = arguments.shared_contract(self.agreed, theirs)
        if together.max_model_len > self.agreed.max_model_len:
            raise UserError(f"{uri} needs longer rows than the server was started for")
        for field in arguments.COUNTS:
            needed, started_for = getattr(together, field), getattr(self.agreed, field)
            if needed != started_for:
                raise UserError(
                    f"{uri} needs {field} {needed}, and the server was started for {started_for}: "
                    "deploy the version"
                )
        path = self.folder / f"v{version}"
        command = [sys.executable, str(FETCH), "--model", uri, "--sha256", digest]
        command += ["--max-lora-rank", str(self.max_lora_rank), "--out-dir", str(path)]
        ended = subprocess.run(
            command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
        )
        if ended.returncode:
            reason = ended.stderr.strip().splitlines() or [f"exit code {ended.returncode}"]
            raise UserError(f"{uri} was not loaded: {reason[-1].removeprefix('fetch-adapter: ')}")
        return path


if __name__ == "__main__":
    follow_alias()
