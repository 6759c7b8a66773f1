"""Read data, check every row, split the rows, and log them as one dataset.

Reads: folders, files, s3://, hf://, dvc:// and mlflow://, see --data. Settings without a flag come
from the block `prepare` of the profile.
Writes: `dataset/` (Parquet shards, the prompt, a manifest), `report/` and `benchmark/` in MLflow;
report.html and report.md among the output files.

    python steps/prepare_data.py --profile smoke-vision
    python steps/prepare_data.py --profile smoke-text --data test_data/text --check-only
"""

from __future__ import annotations

import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from loraline.errors import UserError
from loraline.step import or_none, overrides_option, recipes_option, step
from loraline.tracking import datasets, runs, store, tags

if TYPE_CHECKING:
    from loraline.data.merged import Dataset
    from loraline.data.work import Work
    from loraline.tracking.prompts import Prompt


@step
@click.option("--profile", required=True, help="Name of a file in lora_profiles/.")
@click.option(
    "--data",
    multiple=True,
    help="Folder or file, s3://bucket/prefix, hf://owner/name[@revision][:split], "
    "dvc://repository[@revision]:path, mlflow://run of an earlier dataset, a name in "
    "datasets.yaml, or a registry file. `%50` or `#2000` after it takes a sample, `*2` a weight. "
    "May be repeated. Default: the profile's own sources.",
)
@click.option(
    "--prompt",
    callback=or_none,
    help="prompts:/name/version, prompts:/name@alias, or a file. Default: the data's prompt.txt.",
)
@click.option(
    "--on",
    multiple=True,
    metavar="CHECK=ACTION",
    help="Action of a check: fail, drop, repair or keep, as near_duplicates=drop. May be repeated.",
)
@click.option(
    "--limit",
    multiple=True,
    metavar="NAME=VALUE",
    help="Value of a limit, as image_pixels=20000000 or fps=1. May be repeated.",
)
@click.option(
    "--encoding",
    default="",
    help="Encoding of text files that are not UTF-8, as utf-16, gbk or latin-1.",
)
@click.option(
    "--group-by",
    callback=or_none,
    help="What keeps rows in one split: answer, row, or a column, such as the patient or the page. "
    "Default: answer.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=0),
    default=0,
    help="Processes that read and check rows; 0 starts one per core.  [default: 0]",
)
@click.option("--part", callback=or_none, help="Read only share i of n of the data, as 1/4.")
@click.option("--merge", callback=or_none, help="Merge runs of --part: IDs, comma-separated.")
@click.option("--check-only", is_flag=True, help="Only write the report; log nothing.")
@overrides_option
@recipes_option
def prepare_data(
    profile: str,
    overrides: tuple[str, ...],
    recipes: dict[str, Any],
    data: tuple[str, ...],
    prompt: str | None,
    on: tuple[str, ...],
    limit: tuple[str, ...],
    encoding: str,
    group_by: str | None,
    workers: int,
    part: str | None,
    merge: str | None,
    check_only: bool,
    out_dir: Path,
    force: bool,
) -> None:
    """Read, check and split datasets; log them as one and hand over the run ID."""
    from loraline.base import trainable
    from loraline.data import dataset, outcome, pool, workplace
    from loraline.profiles.loading import load_profile

    recipe = load_profile(profile, overrides=overrides, recipes=recipes)
    if part and (check_only or merge):
        raise UserError("--part reads one share; it goes with neither --check-only nor --merge")
    request = workplace.Request.of(
        profile, recipe, data, prompt, group_by, on, limit, encoding, overrides
    )
    workers = workers or pool.process_count()
    pool.preload_if_large(request.addresses, workers)
    client = store.connect() if merge or not check_only else None
    with workplace.folder(request, recipe) as place:
        work, instruction = workplace.plan(request, recipe, client, place)
        trainable.check_located(recipe, work.tokenizer)
        if work.tokenizer is None:
            click.echo(f"base {recipe.base} is out of reach, so lengths are estimated", err=True)
        state = None if part or check_only else workplace.state(work)
        if part:
            run_id = log_part(workplace.share(work, part), part, workers)
        elif state and not (merge or force) and (finished := workplace.prepared(client, state)):
            run_id = finished.info.run_id
            version, uris = finished.data.params["version"], ", ".join(request.addresses)
            click.echo(f"dataset {version} of {uris}: nothing changed (reused)")
        else:
            if merge:
                workplace.gather(work, workplace.runs_of(merge), client)
            counted = dataset.read(work, workers, stop_at_failure=not check_only)
            merged = dataset.merge(counted)
            if check_only:
                check(merged, out_dir)
                return
            dataset.refuse(merged.examples)
            dataset.refuse_empty(merged)
            digest = dataset.digest(merged)
            finished = None if force else runs.finished_run(client, "prepare_data", digest)
            run_id = finished.info.run_id if finished else log(merged, instruction, digest)
            if state and client:
                client.set_tag(run_id, tags.SOURCES, state)
            counts = outcome.counts(merged)
            click.echo(f"dataset {digest[:8]} {counts} ({'reused' if finished else 'logged'})")
            warn(*outcome.warnings(merged), outcome.shortage(merged))
    runs.hand_over(out_dir, run_id)


def warn(*sentences: str) -> None:
    """Print each sentence that is not empty as a warning."""
    for sentence in filter(None, sentences):
        click.echo(f"warning: {sentence}", err=True)


def check(merged: Dataset, out_dir: Path) -> None:
    """Write the report; a UserError if a check that is set to fail has found something."""
    from loraline.data import dataset, outcome
    from loraline.data.report import write

    report = write(merged, out_dir)
    click.echo(f"checked {outcome.counts(merged)}; report in {report}")
    warn(*outcome.warnings(merged))
    dataset.refuse(merged.examples, report=str(report))
    dataset.refuse_empty(merged)


def log(merged: Dataset, instruction: Prompt, digest: str) -> str:
    """Log the dataset in a run of its own and return the run's ID."""
    import mlflow

    from loraline import contract
    from loraline.data import bench_rows, dataset, shards
    from loraline.data.report import write
    from loraline.tracking import prompts

    uris = [source.entry.uri for source in merged.work.sources]
    name, version = Path(uris[0]).name, digest[:8]
    with (
        runs.open_run("prepare_data", name=f"{name}-v{version}", fingerprint=digest) as run,
        tempfile.TemporaryDirectory() as scratch,
        ThreadPoolExecutor(1) as aside,
    ):
        client = mlflow.MlflowClient()
        registered = f"{merged.work.recipe.registered_model}-prompt"
        instruction = prompts.register(client, instruction, registered)
        folder = Path(scratch, "dataset")
        # Both wait for others most of the time: for the disk, and for the base's tokenizer.
        report = aside.submit(write, merged, Path(scratch, "report"))
        template = instruction.template or prompts.PLACEHOLDER
        shards.write_dataset(merged, instruction, template, digest, folder)
        written = contract.sha256(folder / dataset.MANIFEST)
        mlflow.set_tag(tags.DATASET_DIGEST, written)
        mlflow.log_param(tags.DATASET_DIGEST, written)
        bench_rows.write(merged, Path(scratch, "benchmark"))
        report.result()
        for artifacts in ("dataset", "benchmark", "report"):
            mlflow.log_artifacts(str(Path(scratch, artifacts)), artifacts)
        mlflow.log_params(dataset.parameters(merged, instruction, digest))
        mlflow.log_metrics(dataset.metrics(merged))
        known = {"sha256": digest, "prompt": instruction.uri, "boxes": merged.work.boxes or ""}
        datasets.log_prepared(name, version, uris[0], known)
    return str(run.info.run_id)


def log_part(work: Work, part: str, workers: int) -> str:
    """Read and check one share of the data, and log it for the run that merges the shares."""
    import mlflow

    from loraline.data import dataset, workplace

    counted = dataset.read(work, workers, stop_at_failure=True)
    fingerprint = f"{work.folder.name} {part}"
    with (
        runs.open_run("prepare_data_part", name=f"part {part}", fingerprint=fingerprint) as run,
        tempfile.TemporaryDirectory(dir=work.folder) as scratch,
    ):
        workplace.pack(work, Path(scratch, "parts"))
        mlflow.log_artifacts(str(Path(scratch, "parts")), "parts")
        mlflow.log_metric("rows_read", counted.rows)
    click.echo(f"part {part}: {counted.rows} rows read")
    return str(run.info.run_id)


if __name__ == "__main__":
    prepare_data()
