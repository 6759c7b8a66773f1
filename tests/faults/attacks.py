"""What somebody who means harm puts into an adapter, a store, a dataset or a base.

The author of an attack sets all digests that he can reach, so that what is refused is refused for
what it is. He does not know what stands behind a link that he makes.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow

from loraline import contract
from loraline.serving import adapter_config, preflight
from loraline.tracking import identity, runs, store, tags

DEEP = "[" * 200_000

EVIL = "{{ cycler.__init__.__globals__.os.popen('id').read() }}"
"""A template that leaves the renderer, where nothing holds it."""


@dataclass(frozen=True)
class Candidate:
    """A measured candidate in a store, and a folder beside it."""

    folder: Path
    eval_run: str

    @property
    def train_run(self) -> str:
        client = store.connect()
        result = runs.ancestor(client, client.get_run(self.eval_run), "train_qlora")
        return str(result.info.run_id)

    @property
    def adapter(self) -> Path:
        """The stored files."""
        model = mlflow.get_run(self.train_run).data.tags[tags.MODEL_ID]
        stored = store.connect().get_logged_model(model).artifact_location
        return Path(stored.removeprefix("file://"), "artifacts", "adapter")

    def other(self) -> str:
        """The logged model of another training, with the same adapter."""
        with runs.open_run("train_qlora", name="other", fingerprint="other"):
            model = mlflow.initialize_logged_model(name="adapter")
            mlflow.finalize_logged_model(model.model_id, "READY")
            artifacts = Path(model.artifact_location.removeprefix("file://"), "artifacts")
            shutil.copytree(self.adapter, artifacts / "adapter")
            shutil.copy(self.adapter.parents[1] / "MLmodel", artifacts.parent)
        return str(model.model_id)

    def hand_over(self, model: str) -> None:
        """Say that the training made another logged model."""
        store.connect().set_tag(self.train_run, tags.MODEL_ID, model)

    def prepare_again(self) -> None:
        """Say that the training, and what it was measured on, came from another preparation."""
        with runs.open_run("prepare_data", name="easy", fingerprint="easy") as data:
            mlflow.log_param("version", "easy")
            mlflow.set_tag(tags.DATASET_DIGEST, "e" * 64)
        store.connect().set_tag(self.train_run, tags.UPSTREAM, data.info.run_id)
        for run in (self.train_run, self.eval_run):
            store.connect().set_tag(run, tags.DATASET_DIGEST, "e" * 64)

    def replace_rows(self) -> None:
        """Put other rows into the place of the dataset, and their digest into each tag."""
        client = store.connect()
        data_run = client.get_run(self.train_run).data.tags[tags.UPSTREAM]
        for run in (data_run, self.train_run, self.eval_run):
            client.set_tag(run, tags.DATASET_DIGEST, "e" * 64)

    def rename(self) -> None:
        """Name somebody else's registered model in the profile, with its digest."""
        run = mlflow.get_run(self.train_run)
        store.connect().log_param(self.train_run, "registered_model", "mistral-7b-lora")
        file = Path(run.info.artifact_uri.removeprefix("file://"), "profile.json")
        rewrite(file, registered_model="victim")
        digest = identity.values_digest(json.loads(file.read_text()))
        store.connect().set_tag(self.train_run, tags.PROFILE_DIGEST, digest)

    def agree(self) -> None:
        """Set the digests of the adapter's weights and of its folder to what is there now."""
        weights = self.adapter / contract.WEIGHTS
        if weights.is_file():
            with suppress(ValueError, RecursionError):
                rewrite(self.adapter / contract.FILE, adapter_sha256=contract.sha256(weights))
        digest = contract.folder_digest(self.adapter)
        for run in (self.train_run, self.eval_run):
            store.connect().set_tag(run, tags.ADAPTER_DIGEST, digest)


Attack = Callable[[Candidate], None]


def rewrite(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def link(name: str, to: str) -> Attack:
    """A link in the adapter's folder; `folder` and `file` are there, `nothing` is not."""

    def attack(place: Candidate) -> None:
        (place.folder / "folder").mkdir()
        (place.folder / "folder" / "key.txt").write_text("a secret")
        (place.folder / "file").write_text("a secret")
        (place.adapter / name).unlink(missing_ok=True)
        (place.adapter / name).symlink_to(place.folder / to)

    return attack


def pipe(place: Candidate) -> None:
    os.mkfifo(place.adapter / "notes.txt")


def agreed(attack: Attack) -> Attack:
    def then_agree(place: Candidate) -> None:
        attack(place)
        place.agree()

    return then_agree


def file(name: str, content: bytes) -> Attack:
    return agreed(lambda place: void((place.adapter / name).write_bytes(content)))


def pickle_alone(place: Candidate) -> None:
    (place.adapter / contract.WEIGHTS).rename(place.adapter / "adapter_model.bin")


def values(name: str, **changes: Any) -> Attack:
    return agreed(lambda place: rewrite(place.adapter / name, **changes))


def void(_: object) -> None:
    """What an attack's last call answers is of no use."""


ADAPTER: dict[str, tuple[Attack, str]] = {
    "link to a file": (link("notes.txt", "file"), "cannot be downloaded"),
    "link to a folder": (link("more", "folder"), "cannot be downloaded"),
    "link to nothing": (link("notes.txt", "nothing"), "cannot be downloaded"),
    "link for weights": (link(contract.WEIGHTS, "file"), "cannot be downloaded"),
    "pipe": (pipe, "cannot be downloaded"),
    "program": (file("evil.py", b"import os"), "evil.py: is none of an adapter's files"),
    "library": (file("evil.so", b"\x7fELF"), "evil.so: is none of an adapter's files"),
    "pickle alone": (agreed(pickle_alone), "adapter_model.safetensors is missing"),
    "pickle with another name": (file(contract.WEIGHTS, pickle.dumps({})), "cannot be read"),
    "header of 2**62 bytes": (
        file(contract.WEIGHTS, (2**62).to_bytes(8, "little") + b"{}"),
        "cannot be read",
    ),
    "deep settings": (file(adapter_config.CONFIG, DEEP.encode()), "is missing or no JSON object"),
    "deep base": (file(preflight.BASE_CONFIG, DEEP.encode()), "is missing or no JSON object"),
    "deep contract": (file(contract.FILE, DEEP.encode()), "is not a contract of this version"),
    "settings of 32 MiB": (values(adapter_config.CONFIG, note="x" * 2**25), "note: is 'xxx"),
    "auto_map": (values(adapter_config.CONFIG, auto_map={"AutoModel": "e.Evil"}), "auto_map: is"),
    "trust_remote_code": (
        values(adapter_config.CONFIG, trust_remote_code=True),
        "trust_remote_code: is True",
    ),
    "endless expression": (
        values(adapter_config.CONFIG, target_modules="((q|_|p|r|o|j|.)*)*X"),
        "does not come to an end",
    ),
    "endless pattern": (
        values(adapter_config.CONFIG, rank_pattern={"((q|_|p|r|o|j|.)*)*X": 4}),
        "does not come to an end",
    ),
    "class of its own": (
        values(preflight.BASE_CONFIG, architectures=["EvilForCausalLM"]),
        "is no known architecture",
    ),
    "endless layers": (values(preflight.BASE_CONFIG, num_hidden_layers=10**9), "the base's sizes"),
    "option for a base": (values(contract.FILE, base="--trust-remote-code"), "base: String should"),
    "lines for a base": (values(contract.FILE, base="x\n- --trust-remote-code"), "base: String"),
    "more in the contract": (values(contract.FILE, trust_remote_code=True), "trust_remote_code"),
}
"""Attacks on the adapter of a candidate, and what the gate says."""


def tag(key: str, value: str, step: str = "train_qlora") -> Attack:
    def attack(place: Candidate) -> None:
        run = place.train_run if step == "train_qlora" else place.eval_run
        store.connect().set_tag(run, key, value)

    return attack


STORE: dict[str, tuple[Attack, str]] = {
    "overrides that are none": (tag(tags.OVERRIDES, "{"), "is no list of KEY=VALUE"),
    "overrides of another form": (tag(tags.OVERRIDES, '{"r": 4}'), "is no list of KEY=VALUE"),
    "deep overrides": (tag(tags.OVERRIDES, "[" * 4000), "is no list of KEY=VALUE"),
    "profile in another folder": (tag(tags.PROFILE, "../../evil"), "its parameter 'standard'"),
    "another profile": (tag(tags.PROFILE, "smoke-text"), "its parameter 'standard'"),
    "adapter of nobody": (tag(tags.MODEL_ID, "../../evil"), "is not in MLflow"),
    "evaluation of itself": (tag(tags.UPSTREAM, "", "evaluate"), "came from run"),
    "adapter of another training": (
        lambda place: place.hand_over(place.other()),
        "was made by run",
    ),
    "other numbers": (
        lambda place: store.connect().log_metric(place.eval_run, "tuned_perplexity", 1.1),
        "its metric tuned_perplexity was logged as 1.5 and as 1.1",
    ),
    "numbers that were better once": (
        lambda place: store.connect().log_metric(place.eval_run, "tuned_perplexity", 9.0, step=-1),
        "its metric tuned_perplexity was logged as",
    ),
    "easier dataset": (
        lambda place: place.prepare_again(),
        "it was trained on the dataset None, and comes from a run with easy",
    ),
    "easier rows in the place of the dataset": (
        lambda place: place.replace_rows(),
        "what train_qlora trained is not what is here: the dataset has digest",
    ),
    "another registered model": (
        lambda place: place.rename(),
        "profile.json says registered model 'victim', its parameter 'mistral-7b-lora'",
    ),
    "evaluation of another step": (
        tag(tags.STEP, "prepare_data", "evaluate"),
        "is a run of prepare_data, expected one of evaluate",
    ),
}
"""Attacks on the runs of a candidate, and what the gate says."""

DATASET: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "shard outside": (
        lambda manifest: manifest["shards"][0].update(file="../../../evil.parquet"),
        "dataset/../../../evil.parquet is missing",
    ),
    "absolute shard": (
        lambda manifest: manifest["shards"][0].update(file="/etc/passwd"),
        "dataset//etc/passwd is missing",
    ),
    "shards that are none": (lambda manifest: manifest.update(shards=7), "is no manifest"),
    "shard without a name": (lambda manifest: manifest["shards"][0].clear(), "is no manifest"),
    "no prompt": (lambda manifest: manifest.pop("prompt"), "is no manifest"),
}
"""Attacks on a dataset's manifest, whose own digest agrees, and what training says."""


def base_values(name: str, **changes: Any) -> Callable[[Path], None]:
    return lambda base: rewrite(base / name, **changes)


def base_pickle(base: Path) -> None:
    (base / "model.safetensors").unlink()
    (base / "pytorch_model.bin").write_bytes(pickle.dumps({}))


def base_weights(base: Path) -> None:
    index = {"weight_map": {"lm_head.weight": "../../model.safetensors"}}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))


def base_template(text: str) -> Callable[[Path], None]:
    def attack(base: Path) -> None:
        (base / "chat_template.jinja").write_text(text)

    return attack


BASE: dict[str, tuple[Callable[[Path], None], str]] = {
    "config with code": (
        base_values("config.json", model_type="evil", auto_map={"AutoConfig": "evil.Evil"}),
        "brings code of its own",
    ),
    "weights outside": (base_weights, "which is no file beside it"),
    "deep config": (
        lambda base: void((base / "config.json").write_text(DEEP)),
        "is no config of a base model",
    ),
    "pickled weights": (base_pickle, "no safetensors weights"),
    "template that leaves": (base_template(EVIL), "unsafe"),
    "template that asks": (
        base_template("{{ messages.__class__.__mro__[1].__subclasses__() }}"),
        "unsafe",
    ),
    "endless template": (
        base_template("{% for i in range(10 ** 12) %}x{% endfor %}"),
        "the base's chat template refuses",
    ),
}
"""Attacks on a base's folder, and what training says."""
