"""The parts of a dataset as one: sampled, split, without repetitions and leaks, and written out."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from loraline.data import duplicates
from loraline.data.checks import CHECKS, DROP, FAIL
from loraline.data.facts import FLAGS, join
from loraline.data.parts import run
from loraline.data.reading import streams
from loraline.data.sentences import MOST, brief, refusal, short_path, shortened
from loraline.data.words import MIX, scattered
from loraline.data.work import EXAMPLES, Part, Work
from loraline.errors import UserError
from loraline.process import progress
from loraline.records import SPLITS, Record, from_columns

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

FORMAT = 1
"""Of the shards; another one makes every dataset a new one."""

MANIFEST = "manifest.json"

CHUNK = 2**16
"""Rows whose digests are copied at once."""


@dataclass
class Dataset:
    """Facts about every row that was read whole, and what becomes of it."""

    work: Work
    facts: dict[str, NDArray[Any]]
    starts: NDArray[Any]
    """Index of each part's first row."""

    lines: dict[int, int]
    """Lines or rows of the same file before a part, by the part's number."""

    split: NDArray[Any]
    copies: NDArray[Any]
    """How often each row stands in the dataset; 0 is out."""

    counts: Counter[str] = field(default_factory=Counter)
    """Rows by `check action`."""

    formats: Counter[str] = field(default_factory=Counter)
    examples: list[dict[str, Any]] = field(default_factory=list)
    read: int = 0
    unused: Counter[str] = field(default_factory=Counter)
    """Rows in which a column is filled that is not used, by the column."""

    tools: int = 0
    """Rows with tools, of those that were read whole."""

    near_texts: NDArray[Any] | None = None
    near_media: NDArray[Any] | None = None
    """Cluster label of each row's text, and of each image or video."""

    @property
    def rows(self) -> dict[str, int]:
        """Rows of each split, copies counted."""
        return {
            name: int(self.copies[self.split == code].sum()) for code, name in enumerate(SPLITS)
        }

    def place(self, index: int) -> str:
        """File and line or row of a row."""
        number = int(self.starts.searchsorted(index, "right")) - 1
        part = self.work.parts[number]
        return place(self.work, part, self.lines[part.number] + int(self.facts["number"][index]))

    def record(self, index: int) -> Record:
        """One row, read again from its part."""
        number = int(self.starts.searchsorted(index, "right")) - 1
        offset = index - int(self.starts[number])
        for batch in batches(self.work, self.work.parts[number]):
            if offset < len(batch):
                return from_columns(batch.slice(offset, 1).to_pylist()[0])
            offset -= len(batch)
        raise IndexError(index)


def place(work: Work, part: Part, number: int) -> str:
    source = work.sources[part.source]
    bucket = source.bucket
    path = (
        f"s3://{bucket.name}/{bucket.prefix}{part.file}" if bucket else str(source.root / part.file)
    )
    return f"{path} {'line' if streams.kind_of(path) == '.jsonl' else 'row'} {number}"


def batches(work: Work, part: Part) -> Iterator[pa.RecordBatch]:
    """The kept rows of a part."""
    import pyarrow as pa

    with pa.memory_map(str(work.file(part, ".arrow"))) as source:
        yield from pa.ipc.open_stream(source)


class Counted:
    """Tallies of the parts so far, in order."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.lines: dict[int, int] = {}
        self.totals: Counter[tuple[int, str]] = Counter()
        self.rows = 0
        self.counts: Counter[str] = Counter()
        self.formats: Counter[str] = Counter()
        self.unused: Counter[str] = Counter()
        self.tools = 0
        self.examples: list[dict[str, Any]] = []

    def add(self, part: Part, tally: Mapping[str, Any]) -> None:
        key = (part.source, part.file)
        self.lines[part.number] = self.totals[key]
        for example in tally["examples"]:
            shown = f"{example['check']} {example['action']}"
            if sum(f"{e['check']} {e['action']}" == shown for e in self.examples) < EXAMPLES:
                where = place(self.work, part, self.totals[key] + example["row"])
                self.examples.append({**example, "place": where})
                del self.examples[-1]["row"]
        self.totals[key] += tally["lines"]
        self.rows += tally["rows"]
        self.counts.update(tally["counts"])
        self.formats.update(tally["formats"])
        self.unused.update(tally["unused"])
        self.tools += tally["tools"]


@brief()
def read(work: Work, workers: int, *, stop_at_failure: bool) -> Counted:
    """Read and check all parts; a UserError at the first row that a check fails, if asked to."""
    counted = Counted(work)
    with progress.bar("read", len(work.parts)) as advance:
        for part, tally in run(work, workers):
            counted.add(part, tally)
            advance(1, f"{counted.rows} rows")
            if stop_at_failure:
                refuse(counted.examples)
    return counted


def refuse(examples: Sequence[Mapping[str, Any]], report: str = "") -> None:
    """A UserError when a check that is set to fail found something."""
    failed = [example for example in examples if example["action"] == FAIL]
    if failed:
        first = failed[0]
        raise UserError(refusal(first["place"], first["clause"], first["check"], report))


def merge(counted: Counted) -> Dataset:
    """Put the parts together and do what needs all rows; their files stay as they are."""
    import numpy as np

    work = counted.work
    loaded = []
    for part in work.parts:
        with np.load(work.file(part, ".npz")) as arrays:
            loaded.append(dict(arrays))
    starts = np.cumsum([0, *(len(arrays["key"]) for arrays in loaded)])[:-1]
    facts = join(loaded)
    del loaded
    count = len(facts["key"])
    merged = Dataset(
        work,
        facts,
        starts,
        counted.lines,
        facts["split"].copy(),
        np.ones(count, np.int32),
        counted.counts.copy(),
        counted.formats,
        list(counted.examples),
        counted.rows,
        unused=counted.unused,
        tools=counted.tools,
    )
    sample(merged)
    assign_splits(merged)
    repetitions(merged)
    weigh(merged)
    return merged


def out(
    merged: Dataset,
    check: str,
    rows: NDArray[Any],
    clause: str,
    partner: Callable[[int], int | None] = lambda row: None,
) -> None:
    """Count the rows in which a check found something, and do what the check's action says.

    `partner` gives the row that a row repeats, which the examples name.
    """
    import numpy as np

    found = np.flatnonzero(rows)
    action = merged.work.actions[check]
    if not len(found):
        return
    merged.counts[f"{check} {action}"] += len(found)
    merged.facts["flags"][found] |= np.uint32(1 << FLAGS.index(check))
    for index in found[:EXAMPLES].tolist():
        other = partner(index)
        merged.examples.append(
            {
                "check": check,
                "action": action,
                "place": merged.place(index),
                "clause": clause if other is None else f"{clause}: {merged.place(other)}",
                "text": merged.record(index).answer[:300],
            }
        )
    if action == DROP:
        merged.copies[found] = 0


def sample(merged: Dataset) -> None:
    """Keep `#N` rows of each source that asks for it: those with the smallest hashes."""
    import numpy as np

    for number, source in enumerate(merged.work.sources):
        if not source.entry.sample.startswith("#"):
            continue
        own = np.flatnonzero(merged.facts["source"] == number)
        wanted = int(source.entry.sample[1:])
        order = own[np.argsort(merged.facts["pick"][own], kind="stable")]
        merged.copies[order[wanted:]] = 0
        if len(order) > wanted:
            merged.counts["sample out"] += len(order) - wanted


def assign_splits(merged: Dataset) -> None:
    """Give rows of files without a split one, and fill a split that no file names from train.

    Rows of one group, or that show the same image, get the same point of the hash range.
    """
    import numpy as np

    named = merged.split >= 0
    points = group_points(merged)
    shares = merged.work.recipe.split
    # Parts of the hash range: train first, then validation, then test.
    bounds = (1 - shares.test - shares.validation, 1 - shares.test)
    by_point = (points[:, None] >= np.array(bounds)).sum(axis=1).astype(np.int8)
    merged.split = np.where(named, merged.split, by_point)
    alive = merged.copies > 0
    for code, (low, high) in ((1, bounds), (2, (bounds[1], 1.0))):
        if named.any() and not (alive & (merged.split == code)).any():
            held_out = named & (merged.split == 0) & (points >= low) & (points < high)
            merged.split[held_out] = code


def group_points(merged: Dataset) -> NDArray[Any]:
    """Point of each row's group between 0 and 1, shape (rows,)."""
    import numpy as np

    facts, count = merged.facts, len(merged.split)
    points = facts["group"] / np.float64(2**64)
    if len(facts["media_sha"]) and merged.work.group_by in ("answer", "row"):
        keys, group = np.unique(facts["group"], return_inverse=True)
        media_keys, medium = np.unique(facts["media_sha"], return_inverse=True)
        nodes = count + len(keys) + len(media_keys)
        rows = np.arange(count)
        links = np.concatenate(
            [
                np.stack([rows, count + group], axis=1),
                np.stack([facts["media_row"], count + len(keys) + medium], axis=1),
            ]
        )
        labels = duplicates.clusters(nodes, links)[:count]
        least = np.full(nodes, np.iinfo(np.uint64).max, np.uint64)
        np.minimum.at(least, labels, facts["group"])
        # The least of many points would nearly always lie in train.
        joined = least[labels] != facts["group"]
        several = np.zeros(nodes, bool)
        several[labels[joined]] = True
        points = np.where(several[labels], scattered(least[labels]) / np.float64(2**64), points)
    return points


def repetitions(merged: Dataset) -> None:
    """Find duplicates, leaks, and what is nearly so, in that order, among the rows still in."""
    import numpy as np

    facts, split = merged.facts, merged.split
    own_split = facts["key"] + np.uint64(MIX) * (split + 1).astype(np.uint64)
    alive = merged.copies > 0
    again = np.zeros(len(split), bool)
    again[alive] = duplicates.repeated(own_split[alive])

    def first(row: int) -> int:
        return int(np.flatnonzero(alive & (own_split == own_split[row]))[0])

    out(merged, "duplicates", again, "repeats an earlier row of its split", first)

    alive = merged.copies > 0
    media_row = facts["media_row"]
    leaks = duplicates.leaked(facts["key"], split, alive)
    shown = duplicates.leaked(facts["media_sha"], split[media_row], alive[media_row])
    by_text = leaks.copy()
    leaks[media_row[shown]] = True

    def later(row: int) -> int:
        if by_text[row]:
            same = facts["key"] == facts["key"][row]
        else:
            own = facts["media_sha"][media_row == row]
            same = np.zeros(len(split), bool)
            same[media_row[np.isin(facts["media_sha"], own)]] = True
        return int(np.flatnonzero(alive & same & (split > split[row]))[0])

    out(merged, "leaks", leaks, "also stands in a later split, or its image does", later)

    media = duplicates.clusters(len(media_row), duplicates.near_images(facts["media_near"]))
    shows = np.zeros(len(split), np.uint64)
    np.add.at(shows, media_row, (media + 1).astype(np.uint64) * np.uint64(MIX))
    pairs = duplicates.near_texts(all_signatures(merged), shows)
    texts = duplicates.clusters(len(split), pairs)
    merged.near_texts, merged.near_media = texts, media

    alive = merged.copies > 0
    near = np.zeros(len(split), bool)
    near[alive] = duplicates.repeated((texts * 4 + split)[alive])
    out(merged, "near_duplicates", near & ~again, "is nearly an earlier row of its split")
    alive = merged.copies > 0
    near = duplicates.leaked(texts, split, alive)
    shown = duplicates.leaked(media, split[media_row], alive[media_row])
    near[media_row[shown]] = True
    out(merged, "near_leaks", near & ~leaks, "nearly stands in a later split, or its image does")


def all_signatures(merged: Dataset) -> NDArray[Any]:
    """Signatures of all rows by band, as a map of one file."""
    import numpy as np

    target = merged.work.folder / "signatures"
    count = len(merged.split)
    shape = (duplicates.BANDS, count, duplicates.WIDTH)
    if not count:
        return np.empty(shape, np.uint32)
    # Written, not mapped: what is mapped counts as memory once it is touched.
    with target.open("wb") as file:
        for part, start in zip(merged.work.parts, merged.starts, strict=True):
            own = np.ascontiguousarray(duplicates.banded(np.load(merged.work.file(part, ".npy"))))
            for band, values in enumerate(own):
                file.seek((band * count + int(start)) * values.itemsize * duplicates.WIDTH)
                file.write(values)
    return np.memmap(target, np.uint32, "r", shape=shape)


def weigh(merged: Dataset) -> None:
    """Repeat training rows of heavy sources, and leave out some of light ones."""
    import numpy as np

    weights = np.array([source.entry.weight for source in merged.work.sources])
    wanted = weights[merged.facts["source"]] if len(merged.split) else np.empty(0)
    # Another number than the one that sampling went by.
    chance = (merged.facts["pick"] * np.uint64(MIX)) / np.float64(2**64)
    copies = (np.floor(wanted) + (chance < wanted % 1)).astype(np.int32)
    train = (merged.split == 0) & (merged.copies > 0)
    merged.copies[train] = copies[train]
    if left := int((copies[train] == 0).sum()):
        merged.counts["weight out"] += left


def refuse_empty(merged: Dataset) -> None:
    """A UserError when a split has no rows, which says where they went."""
    for name, count in merged.rows.items():
        if not count:
            uris = short_path(", ".join(source.entry.uri for source in merged.work.sources))
            raise UserError(
                shortened(
                    f"{uris}: no rows for {name} of {merged.read} read{where_they_went(merged)}",
                    MOST,
                )
            )


def where_they_went(merged: Dataset) -> str:
    """Why a split is empty, as the end of a sentence."""
    if lost := dropped(merged.counts):
        work = merged.work.recipe
        limits = {"too_long": f" (max_length {work.max_length})"}
        out = ", ".join(f"{n} by {check}{limits.get(check, '')}" for check, n in lost.items())
        return f": counted out {out}"
    files = [file for source in merged.work.sources for file in source.files]
    if len(files) == 1 and (split := files[0].split) and merged.read:
        return (
            f": all go to {split}, as the name {short_path(files[0].name)} says; set `split` in "
            "datasets.yaml, or rename it"
        )
    if not merged.read:
        return ": the files hold no rows"
    return "; add rows, files named after splits, or split by something else (--group-by)"


def settings(work: Work) -> dict[str, Any]:
    """What the rows depend on beside the sources: it is part of the digest and of the manifest."""
    return {
        "actions": dict(work.actions),
        "limits": vars(work.limits),
        "group_by": work.group_by,
        "split": work.recipe.split.model_dump(),
        "boxes": work.boxes,
        "modality": work.recipe.modality,
        "max_length": work.recipe.max_length,
        "max_new_tokens": work.recipe.max_new_tokens,
        "min_pixels": work.recipe.min_pixels,
        "max_pixels": work.recipe.max_pixels,
        "exact_lengths": work.tokenizer is not None,
    }


def digest(merged: Dataset) -> str:
    """SHA-256 of prompt, settings, and split, text and media of every row, in order."""
    import numpy as np

    head = {"format": FORMAT, "prompt": merged.work.prompt, **settings(merged.work)}
    # Where the base was out of reach and no row was near the limit, the rows are the same.
    del head["exact_lengths"]
    # Each row's digest is followed by the split that it came to.
    del head["split"]
    found = hashlib.sha256(json.dumps(head, sort_keys=True).encode())
    for start in range(0, len(merged.split), CHUNK):
        part = slice(start, start + CHUNK)
        splits = merged.split[part].astype(np.uint8)[:, None]
        rows = np.concatenate([splits, merged.facts["digest"][part]], axis=1)
        found.update(np.repeat(rows, merged.copies[part], axis=0).tobytes())
    return found.hexdigest()


def dropped(counts: Mapping[str, int]) -> dict[str, int]:
    """Rows counted out, by check."""
    return {key.split()[0]: n for key, n in counts.items() if key.split()[1] in (DROP, FAIL, "out")}


def by_check(counts: Mapping[str, int]) -> Sequence[tuple[str, str, int]]:
    """(check, action, rows) in the order of the checks; sampling comes last."""
    order = [*CHECKS, "preference", "sample", "weight"]
    rows = [(key.split()[0], key.split()[1], count) for key, count in counts.items() if count]
    return sorted(rows, key=lambda row: order.index(row[0]))


def metrics(merged: Dataset) -> dict[str, float]:
    """Rows by split and by check, and lengths, as the run's metrics."""
    tokens = merged.facts["tokens"]
    found: dict[str, float] = {f"{name}_rows": count for name, count in merged.rows.items()}
    found |= {f"{c}_{action}": count for c, action, count in by_check(merged.counts)}
    found["rows_read"] = merged.read
    found["tokens"] = float((tokens.astype("int64") * merged.copies).sum())
    return found
