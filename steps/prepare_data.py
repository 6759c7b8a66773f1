"""Read a dataset, refuse what would ruin a run, split it, and log it for training.

Reads: a folder, see --data.
Writes: `dataset/` in MLflow (one Parquet shard a split, the prompt, a manifest).

    python steps/prepare_data.py --profile smoke-vision
"""

from __future__ import annotations

import hashlib
import io
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from loraline import tracking
from loraline.errors import UserError
from loraline.records import IMAGE, SPLITS, Record, from_prompt
from loraline.step import not_empty, step

SPLIT_POINTS = (0.8, 0.9)
"""Shares of the hash range that go to train, and to train and validation together."""


@step
@click.option("--profile", required=True, help="Name of a file in lora_profiles/.")
@click.option(
    "--data",
    callback=not_empty,
    help="Folder with train.jsonl, validation.jsonl and test.jsonl, or with one .jsonl file that "
    "is split by content. A line holds question and answer, or file_name of an image and text. "
    "prompt.txt beside them is the prompt. Default: the profile's own data.",
)
def prepare_data(profile: str, data: str | None, out_dir: Path, force: bool) -> None:
    """Read, check and split a dataset; log it and hand over the run ID."""
    from loraline import profiles

    recipe = profiles.load(profile)
    folder = Path(data or recipe.data or "")
    if not (data or recipe.data):
        raise UserError(f"profile {profile!r} names no data; give a folder with --data")
    prompt = read_prompt(folder, recipe.modality)
    splits = read_splits(folder, prompt, recipe.modality)
    digest = content_digest(splits)

    client = tracking.connect()
    fingerprint = tracking.fingerprint(__file__, {"digest": digest, "prompt": prompt})
    done = None if force else tracking.finished_run(client, "prepare_data", fingerprint)
    run_id = done.info.run_id if done else log(splits, prompt, digest, folder, fingerprint)
    counts = ", ".join(f"{len(splits[split])} {split}" for split in SPLITS)
    click.echo(f"dataset {digest[:8]}: {counts} rows ({'reused' if done else 'logged'})")
    tracking.hand_over(out_dir, run_id)


def read_prompt(folder: Path, modality: str) -> str:
    """The prompt template of a dataset; text may do without one."""
    if not folder.is_dir():
        raise UserError(f"--data {str(folder)!r} is not a folder")
    file = folder / "prompt.txt"
    if not file.is_file():
        if modality == "text":
            return "{question}"
        raise UserError(f"{file} is missing: it holds the instruction that goes with each image")
    prompt = file.read_text(encoding="utf-8").strip()
    if modality == "text" and "{question}" not in prompt:
        raise UserError(f"{file} must contain {{question}}, the place of the row's question")
    if IMAGE in prompt:
        raise UserError(f"{file} must not contain {IMAGE}: each row's image goes before the prompt")
    return prompt


def read_splits(folder: Path, prompt: str, modality: str) -> dict[str, list[Record]]:
    """Rows by split: as the files say, or by content when there is one file only."""
    files = sorted(folder.glob("*.jsonl"))
    named = {file.stem: file for file in files}
    if set(named) == set(SPLITS):
        splits = {split: list(read_rows(named[split], prompt, modality)) for split in SPLITS}
    elif len(files) == 1:
        splits = split_by_answer(list(read_rows(files[0], prompt, modality)))
    else:
        found = ", ".join(file.name for file in files) or "no .jsonl file"
        raise UserError(
            f"{folder} holds {found}; expected one .jsonl file, "
            "or train.jsonl, validation.jsonl and test.jsonl"
        )
    for split, rows in splits.items():
        if not rows:
            raise UserError(f"{folder}: no rows for {split}; add rows, or a {split}.jsonl")
    return splits


def read_rows(file: Path, prompt: str, modality: str) -> Iterator[Record]:
    """Rows of a JSONL file; the first bad one ends the step with the file and the line."""
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    yield read_row(json.loads(line), file.parent, prompt, modality)
                except json.JSONDecodeError as error:
                    raise UserError(
                        f"{file} line {number} is not valid JSON: {error.msg} "
                        f"at column {error.colno}"
                    ) from error
                except UnicodeDecodeError as error:
                    raise UserError(f"{file} line {number} is not UTF-8") from error
                except UserError as error:
                    raise UserError(f"{file} line {number}: {error}") from error


def read_row(row: Any, folder: Path, prompt: str, modality: str) -> Record:
    """One row of either format."""
    keys = ("question", "answer") if modality == "text" else ("file_name", "text")
    if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in keys):
        found = ", ".join(sorted(row)) if isinstance(row, dict) else type(row).__name__
        raise UserError(f"expected strings {keys[0]} and {keys[1]} for {modality}, found {found}")
    asked, answer = row[keys[0]], row[keys[1]].strip()
    if not answer:
        raise UserError(f"{keys[1]} is empty")
    if IMAGE in answer or (modality == "text" and IMAGE in asked):
        raise UserError(f"{IMAGE} must not stand in {' or '.join(keys)}")
    if modality == "text":
        return from_prompt(prompt, asked, answer)
    return from_prompt(prompt, "", answer, read_image(folder, asked))


def read_image(folder: Path, name: str) -> bytes:
    """Bytes of an image inside the dataset's folder, decoded once to see that it can be."""
    from PIL import Image

    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"image {name!r} lies outside of {folder}")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"image {name!r} cannot be read: {error.strerror}") from error
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"image {name!r} cannot be decoded: {error}") from error
    return content


def split_by_answer(rows: list[Record]) -> dict[str, list[Record]]:
    """Split by a hash of the answer.

    Equal answers fall on one side, and a row stays where it is when others are added.
    """
    splits: dict[str, list[Record]] = {split: [] for split in SPLITS}
    for row in rows:
        point = int.from_bytes(hashlib.sha256(row.answer.encode()).digest()[:8]) / 2**64
        splits[SPLITS[sum(point >= border for border in SPLIT_POINTS)]].append(row)
    return splits


def content_digest(splits: dict[str, list[Record]]) -> str:
    """SHA-256 over the rows of all splits, in order."""
    digest = hashlib.sha256()
    for split in SPLITS:
        for row in splits[split]:
            images = [hashlib.sha256(image).hexdigest() for image in row.images]
            digest.update(json.dumps([split, row.messages, images]).encode())
    return digest.hexdigest()


def log(
    splits: dict[str, list[Record]], prompt: str, digest: str, folder: Path, fingerprint: str
) -> str:
    """Log the dataset in a run of its own and return the run's ID."""
    import mlflow
    from mlflow.data.code_dataset_source import CodeDatasetSource
    from mlflow.data.meta_dataset import MetaDataset

    from loraline import records

    version = digest[:8]
    rows = {split: len(splits[split]) for split in SPLITS}
    with (
        tracking.open_run(
            "prepare_data", name=f"{folder.name}-v{version}", fingerprint=fingerprint
        ) as run,
        tempfile.TemporaryDirectory() as scratch,
    ):
        dataset = Path(scratch)
        for split in SPLITS:
            records.write(dataset / f"{split}.parquet", splits[split])
        (dataset / "prompt.txt").write_text(prompt, encoding="utf-8")
        manifest = {"source": str(folder), "digest": digest, "version": version, "rows": rows}
        (dataset / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
        mlflow.log_artifacts(scratch, "dataset")
        mlflow.log_params({"source": str(folder), "digest": digest, "version": version})
        mlflow.log_metrics({f"{split}_rows": count for split, count in rows.items()})
        source = CodeDatasetSource(tags={"mlflow.source.name": str(folder)})
        mlflow.log_input(
            MetaDataset(source, name=folder.name, digest=version), tags={"sha256": digest}
        )
    return str(run.info.run_id)


if __name__ == "__main__":
    prepare_data()
