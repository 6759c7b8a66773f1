"""Merge the parts of a dataset, and describe it: digest, manifest, parameters, metrics."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from loraline.data import selection
from loraline.data.checks import CHECKS, DROP, FAIL
from loraline.data.facts import join
from loraline.data.merged import Dataset
from loraline.data.parts import run
from loraline.data.places import Places
from loraline.data.sentences import MOST_CHARACTERS, brief, refusal, short_path, shortened
from loraline.data.work import EXAMPLES, Part, Work
from loraline.errors import UserError
from loraline.process import progress

if TYPE_CHECKING:
    from loraline.tracking.prompts import Prompt

FORMAT = 1
"""Version of the shards' format; a new one changes the digest of every dataset."""

MANIFEST = "manifest.json"

CHUNK = 2**16
"""Rows whose digests are copied at once."""


class Counted:
    """Tallies of the parts so far, in order."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.places = Places(work)
        self.rows = 0
        self.counts: Counter[str] = Counter()
        self.formats: Counter[str] = Counter()
        self.unused: Counter[str] = Counter()
        self.tools = 0
        self.present: set[str] = set()
        self.examples: list[dict[str, Any]] = []

    def add(self, part: Part, tally: Mapping[str, Any]) -> None:
        """Add the tally of the next part; examples get the places of their rows."""
        self.places.add(part, tally["lines"])
        for example in tally["examples"]:
            label = f"{example['check']} {example['action']}"
            if sum(f"{e['check']} {e['action']}" == label for e in self.examples) < EXAMPLES:
                where = self.places.of(part, example["row"], example["line"])
                self.examples.append({**example, "place": where})
                del self.examples[-1]["row"], self.examples[-1]["line"]
        self.rows += tally["rows"]
        self.counts.update(tally["counts"])
        self.formats.update(tally["formats"])
        self.unused.update(tally["unused"])
        self.tools += tally["tools"]
        self.present.update(tally["present"])


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
    """Raise UserError for the first row that failed a check whose action is to fail."""
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
        counted.places,
        facts["split"].copy(),
        np.ones(count, np.int32),
        counted.counts.copy(),
        counted.formats,
        list(counted.examples),
        counted.rows,
        unused=counted.unused,
        tools=counted.tools,
        present=counted.present,
    )
    selection.take_samples(merged)
    selection.assign_splits(merged)
    selection.drop_repetitions(merged)
    selection.weigh(merged)
    return merged


def refuse_empty(merged: Dataset) -> None:
    """Raise UserError if a split has no rows; the message says why."""
    for name, count in merged.rows.items():
        if not count:
            uris = short_path(", ".join(source.entry.uri for source in merged.work.sources))
            raise UserError(
                shortened(
                    f"{uris}: no rows for {name} of {merged.read} read{why_empty(merged)}",
                    MOST_CHARACTERS,
                )
            )


def why_empty(merged: Dataset) -> str:
    """Why a split is empty, as the end of a sentence."""
    groups_kept = merged.facts["group"][merged.copies > 0].tolist()
    groups = len(set(groups_kept))
    grouping = ""
    if merged.work.group_by == "answer" and 2 * groups < len(groups_kept):
        grouping = (
            f"they have {groups} different answers, and rows with equal answers stay together; "
            "--set prepare.group_by=row (with make, SET=…) splits them row by row"
        )
    if dropped_by_check := dropped(merged.counts):
        recipe = merged.work.recipe
        limits = {"too_long": f" (max_length {recipe.max_length})"}
        clauses = (
            f"{n} dropped by {check}{limits.get(check, '')}"
            for check, n in dropped_by_check.items()
        )
        return f": {', '.join(clauses)}" + (f"; {grouping}" if grouping else "")
    files = [file for source in merged.work.sources for file in source.files]
    if len(files) == 1 and (split := files[0].split) and merged.read:
        return (
            f": all go to {split}, as the name {short_path(files[0].name)} says; set `split` in "
            "datasets.yaml, or rename it"
        )
    if not merged.read:
        return ": the files hold no rows"
    if grouping:
        return f": {grouping}"
    return "; add rows, files named after splits, or split by something else (--group-by)"


def settings(work: Work) -> dict[str, Any]:
    """Settings that the rows depend on beside the sources; part of digest and manifest."""
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
    # The pictures of a row are hashed as their files are, and a window says what is stored.
    windows = [source.entry.window for source in merged.work.sources]
    if any(windows):
        head["windows"] = windows
    hashed = hashlib.sha256(json.dumps(head, sort_keys=True).encode())
    for start in range(0, len(merged.split), CHUNK):
        part = slice(start, start + CHUNK)
        splits = merged.split[part].astype(np.uint8)[:, None]
        rows = np.concatenate([splits, merged.facts["digest"][part]], axis=1)
        hashed.update(np.repeat(rows, merged.copies[part], axis=0).tobytes())
    return hashed.hexdigest()


def dropped(counts: Mapping[str, int]) -> dict[str, int]:
    """Rows dropped, by check."""
    return {key.split()[0]: n for key, n in counts.items() if key.split()[1] in (DROP, FAIL, "out")}


def by_check(counts: Mapping[str, int]) -> Sequence[tuple[str, str, int]]:
    """(check, action, rows) in the order of the checks; sampling comes last."""
    order = [*CHECKS, "preference", "sample", "weight"]
    rows = [(key.split()[0], key.split()[1], count) for key, count in counts.items() if count]
    return sorted(rows, key=lambda row: order.index(row[0]))


def manifest(
    merged: Dataset, prompt: Prompt, template: str, digest: str, shards: Sequence[Any]
) -> dict[str, Any]:
    """What the file MANIFEST says of a dataset: its sources, prompt, settings, rows and shards."""
    return {
        "digest": digest,
        "version": digest[:8],
        "sources": [source.entry.model_dump() for source in merged.work.sources],
        "prompt": {"name": prompt.name, "version": prompt.version, "template": template},
        "settings": settings(merged.work),
        "rows": merged.rows,
        "formats": merged.formats,
        "counts": merged.counts,
        "unused": merged.unused,
        "shards": shards,
    }


def parameters(merged: Dataset, prompt: Prompt, digest: str) -> dict[str, str]:
    """Where a dataset comes from and what is in it, as the run's parameters."""
    uris = ", ".join(source.entry.uri for source in merged.work.sources)
    values = {"source": uris[:6000], "digest": digest, "version": digest[:8]}
    if prompt.uri:
        values["prompt_uri"] = prompt.uri
    if merged.work.boxes:
        values["boxes"] = merged.work.boxes
    if merged.tools:
        values["tools"] = "yes"
    return values


def metrics(merged: Dataset) -> dict[str, float]:
    """Rows by split and by check, rows read, and tokens, as the run's metrics."""
    tokens = merged.facts["tokens"]
    values: dict[str, float] = {f"{name}_rows": count for name, count in merged.rows.items()}
    values |= {f"{c}_{action}": count for c, action, count in by_check(merged.counts)}
    values["rows_read"] = merged.read
    values["tokens"] = float((tokens.astype("int64") * merged.copies).sum())
    return values
