"""A dataset's rows as Parquet shards, one folder a split, in bounded memory."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraline.data import dataset
from loraline.data.merged import Dataset, batches
from loraline.records import SPLITS, schema

if TYPE_CHECKING:
    import pyarrow as pa

    from loraline.tracking.prompts import Prompt

GROUP, SHARD = 32 * 2**20, 512 * 2**20
"""Bytes of a row group and of a shard, before compression."""


class Shards:
    """Parquet shards of one split, written as rows come, one row group at a time in a thread."""

    def __init__(self, folder: Path, executor: Executor) -> None:
        self.folder, self.executor = folder, executor
        self.writing: Future[None] | None = None
        self.folder.mkdir()
        self.waiting: list[pa.RecordBatch] = []
        self.waiting_bytes = self.shard_bytes = 0
        self.writer: Any = None
        self.files: list[Path] = []

    def add(self, batch: pa.RecordBatch) -> None:
        self.waiting.append(batch)
        self.waiting_bytes += batch.nbytes
        if self.waiting_bytes >= GROUP:
            self.flush()

    def flush(self) -> None:
        """Hand the waiting rows to the writer as a row group; close a shard of SHARD bytes."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        if self.writer is None:
            self.files.append(self.folder / f"{len(self.files):05d}.parquet")
            # Images are compressed already.
            codecs = {"messages.list.element.content": "zstd", "messages.list.element.role": "zstd"}
            self.writer = pq.ParquetWriter(self.files[-1], schema(), compression=codecs)
        table = pa.Table.from_batches(self.waiting, schema())
        self.wait_for_writer()
        self.writing = self.executor.submit(self.writer.write_table, table)
        self.shard_bytes += self.waiting_bytes
        self.waiting, self.waiting_bytes = [], 0
        if self.shard_bytes >= SHARD:
            self.close()

    def wait_for_writer(self) -> None:
        if self.writing is not None:
            self.writing.result()

    def close(self) -> None:
        if self.waiting or not self.files:
            self.flush()
        self.wait_for_writer()
        if self.writer is not None:
            self.writer.close()
        self.writer, self.shard_bytes = None, 0


def write_dataset(
    merged: Dataset, prompt: Prompt, template: str, digest: str, folder: Path
) -> None:
    """Write a dataset into a new folder: the prompt's text, the shards, the manifest last."""
    folder.mkdir()
    (folder / "prompt.txt").write_text(template, encoding="utf-8")
    manifest = dataset.manifest(merged, prompt, template, digest, write(merged, folder))
    (folder / dataset.MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")


def write(merged: Dataset, folder: Path) -> list[dict[str, Any]]:
    """Write the rows as shards, `<split>.parquet/00000.parquet` and so on; list the files."""
    import numpy as np
    import pyarrow as pa

    with ThreadPoolExecutor(1) as executor:
        shards = [Shards(folder / f"{name}.parquet", executor) for name in SPLITS]
        for part, start in zip(merged.work.parts, merged.starts, strict=True):
            first = int(start)
            for batch in batches(merged.work, part):
                span = slice(first, first + len(batch))
                first += len(batch)
                for code, shard in enumerate(shards):
                    copies = np.where(merged.split[span] == code, merged.copies[span], 0)
                    if copies.any():
                        shard.add(batch.take(pa.array(np.repeat(np.arange(len(batch)), copies))))
        for shard in shards:
            shard.close()
    listed = []
    for name, shard in zip(SPLITS, shards, strict=True):
        for file in shard.files:
            with file.open("rb") as content:
                sha = hashlib.file_digest(content, "sha256").hexdigest()
            listed.append(
                {
                    "split": name,
                    "file": file.relative_to(folder).as_posix(),
                    "bytes": file.stat().st_size,
                    "sha256": sha,
                }
            )
    return listed
