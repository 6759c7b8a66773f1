"""Fine-tune a LoRA adapter on a 4-bit base and log it with the contract it must be served under.

Reads: `dataset/` of the prepare_data run.
Writes: the logged model `adapter`, `profile.json`, `loss_curves.png`, readable adapter files.

    python steps/train_qlora.py --run-id "$(cat outputs/run-id)" --profile smoke-vision
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from loraline import tracking
from loraline.errors import UserError
from loraline.step import step

if TYPE_CHECKING:
    from loraline.contract import Contract
    from loraline.encoding import Encoder, Row
    from loraline.models import Base
    from loraline.profiles import Profile


@step
@click.option("--run-id", required=True, help="MLflow run of prepare_data.")
@click.option("--profile", required=True, help="Name of a file in lora_profiles/.")
def train_qlora(run_id: str, profile: str, out_dir: Path, force: bool) -> None:
    """Train a LoRA adapter on a 4-bit NF4 base; log it and hand over the run ID."""
    from loraline import models, profiles

    recipe = profiles.load(profile)
    client = tracking.connect()
    data_run = tracking.upstream_run(client, run_id, "prepare_data")
    base = models.locate(recipe.base, recipe.base_revision)
    settings = recipe.model_dump(mode="json", exclude={"gate"})
    # The name counts too: the gate judges by the limits of the profile that a run is tagged with.
    inputs = {"upstream": run_id, "profile": [profile, settings], "base": base.revision}
    fingerprint = tracking.fingerprint(__file__, inputs)
    if not force and (done := tracking.finished_run(client, "train_qlora", fingerprint)):
        click.echo(f"adapter of run {done.info.run_id} (reused)")
        tracking.hand_over(out_dir, done.info.run_id)
        return

    import mlflow
    from transformers import set_seed

    from loraline import trainer

    set_seed(recipe.seed)
    version = data_run.data.params["version"]
    with (
        tracking.open_run(
            "train_qlora",
            name=f"{recipe.registered_model}-{profile}-v{version}",
            fingerprint=fingerprint,
            upstream=data_run,
            tags={tracking.PROFILE: profile},
        ) as run,
        tempfile.TemporaryDirectory() as scratch,
    ):
        log_inputs(recipe, profile, base, version)
        encoder, prompt, rows = load_rows(client, run_id, recipe, base)
        sft = trainer.build(recipe, base, encoder, rows, Path(scratch))
        started = time.monotonic()
        sft.train()
        log_costs(sft, rows["train"], time.monotonic() - started)
        adapter = save_adapter(sft, recipe, base, Path(scratch) / "adapter")
        contract = write_contract(
            adapter, recipe, base, encoder, prompt, rows, data_run.data.params
        )
        log_adapter(adapter, contract, profile)
        mlflow.log_figure(loss_curves(sft.state.log_history), "loss_curves.png")
    click.echo(f"adapter of run {run.info.run_id} (rank {recipe.r}, {len(rows['train'])} rows)")
    tracking.hand_over(out_dir, run.info.run_id)


def log_inputs(recipe: Profile, profile: str, base: Base, version: str) -> None:
    """Log the resolved profile, whole as JSON and its main choices as parameters."""
    import mlflow

    mlflow.log_dict(recipe.model_dump(mode="json"), "profile.json")
    chosen = ("base", "r", "lora_alpha", "lora_dropout", "learning_rate", "num_train_epochs")
    mlflow.log_params({key: getattr(recipe, key) for key in chosen})
    mlflow.log_params(
        {
            "profile": profile,
            "base_revision": base.revision,
            "data_version": version,
            "target_modules": ",".join(recipe.target_modules),
            "rows_per_step": recipe.per_device_train_batch_size
            * recipe.gradient_accumulation_steps,
        }
    )


def load_rows(
    client: Any, run_id: str, recipe: Profile, base: Base
) -> tuple[Encoder, str, dict[str, list[Row]]]:
    """Encode the training and validation rows; those over max_length are counted out, never cut."""
    import mlflow

    from loraline import progress, records
    from loraline.encoding import Encoder

    encoder = Encoder(
        base.path,
        recipe.modality,
        min_pixels=recipe.min_pixels,
        max_pixels=recipe.max_pixels,
    )
    kept: dict[str, list[Row]] = {}
    with tracking.artifacts(client, run_id, "dataset") as dataset:
        prompt = (dataset / "prompt.txt").read_text(encoding="utf-8")
        for split in ("train", "validation"):
            found = records.read(dataset / f"{split}.parquet")
            shows = any(record.images or record.videos for record in found)
            # A vision set may hold rows of text alone, a text set nothing else.
            if shows != (recipe.modality == "vision") and (shows or split == "train"):
                raise UserError(
                    f"the dataset of run {run_id} does not fit modality {recipe.modality}"
                )
            rows = []
            with progress.bar(f"encode {split}", len(found)) as advance:
                for record in found:
                    rows.append(encoder.encode(record))
                    advance(1, "")
            kept[split] = [row for row in rows if len(row) <= recipe.max_length]
            mlflow.log_metric(f"{split}_rows_too_long", len(rows) - len(kept[split]))
            if not kept[split]:
                shortest = min(map(len, rows))
                raise UserError(
                    f"every {split} row is longer than max_length {recipe.max_length}; "
                    f"the shortest has {shortest} tokens"
                )
    return encoder, prompt, kept


def log_costs(sft: Any, rows: Sequence[Row], seconds: float) -> None:
    """Log what the training took: seconds, tokens a second, peak memory in GiB."""
    import mlflow

    from loraline import trainer

    tokens = sum(map(len, rows)) * sft.state.epoch
    mlflow.log_metrics(
        {
            "train_seconds": seconds,
            "train_tokens_per_second": tokens / seconds,
            "peak_memory_gib": trainer.peak_memory() / 2**30,
        }
    )


def save_adapter(sft: Any, recipe: Profile, base: Base, folder: Path) -> Path:
    """Write the adapter as PEFT does, in safetensors, and the base's config beside it."""
    from loraline.preflight import BASE_CONFIG

    sft.model.peft_config["default"].base_model_name_or_path = recipe.base
    sft.model.save_pretrained(folder)
    # PEFT's model card is an empty form; what it would say is in the contract.
    (folder / "README.md").unlink()
    (folder / BASE_CONFIG).write_text(json.dumps(base.config, indent=2) + "\n")
    return folder


def write_contract(
    adapter: Path,
    recipe: Profile,
    base: Base,
    encoder: Encoder,
    prompt: str,
    rows: dict[str, list[Row]],
    data: Mapping[str, str],
) -> Contract:
    """State beside the weights what they were trained with; `data` is parameters of their run."""
    from loraline import contract

    written = contract.Contract(
        base=recipe.base,
        base_revision=base.revision,
        modality=recipe.modality,
        architecture=base.architecture,
        prompt=prompt,
        prompt_uri=data.get("prompt_uri", ""),
        boxes=data.get("boxes"),
        chat_template=encoder.chat_template,
        min_pixels=recipe.min_pixels,
        max_pixels=recipe.max_pixels,
        max_length=max(len(row) for split in rows.values() for row in split),
        max_new_tokens=recipe.max_new_tokens,
        dtype=recipe.serve_dtype,
        r=recipe.r,
        lora_alpha=recipe.lora_alpha,
        target_modules=recipe.target_modules,
        trains_vision=recipe.merger_learning_rate is not None,
        adapter_sha256=contract.sha256(adapter / contract.WEIGHTS),
    )
    contract.write(written, adapter)
    return written


def log_adapter(adapter: Path, contract: Contract, profile: str) -> None:
    """Log the adapter as a model that the registry takes, and its readable files beside the run."""
    import mlflow

    from loraline import adapter_pyfunc

    logged = mlflow.pyfunc.log_model(
        name="adapter",
        python_model=adapter_pyfunc.__file__,
        artifacts={"adapter": str(adapter)},
        code_paths=[str(Path(adapter_pyfunc.__file__).parent)],
        pip_requirements=["torch", "transformers", "peft", "pillow", "safetensors", "pydantic"],
        metadata={"base": contract.base, "base_revision": contract.base_revision, "r": contract.r},
        tags={tracking.PROFILE: profile},
        model_type="lora-adapter",
    )
    mlflow.set_tag(tracking.MODEL_ID, logged.model_id)
    for name in ("adapter_config.json", "contract.json"):
        mlflow.log_artifact(str(adapter / name), "adapter")


def loss_curves(history: list[dict[str, float]]) -> Any:
    """Training and validation loss over optimizer steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for key, label in (("loss", "training"), ("eval_loss", "validation")):
        points = [(entry["step"], entry[key]) for entry in history if key in entry]
        axes.plot(*zip(*points, strict=True), marker="." if len(points) < 30 else "", label=label)
    axes.set(xlabel="optimizer step", ylabel="loss (nats a token)", ylim=(0, None))
    axes.legend()
    return figure


if __name__ == "__main__":
    train_qlora()
