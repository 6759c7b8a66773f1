"""What came of the data, in words: rows by split, and what is lost or too little."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loraline.data import dataset
from loraline.data.reading import columns
from loraline.records import SPLITS

if TYPE_CHECKING:
    from loraline.data.merged import Dataset

UNEVEN = 1.5
"""Times the rows that were asked for, above which a split is said to be large."""

ASKED = ("sample", "weight", "preference")
"""Checks that drop rows because somebody asked for it."""


def counts(merged: Dataset) -> str:
    """Sources, rows by split, and rows dropped by check, in one line."""
    uris = ", ".join(source.entry.uri for source in merged.work.sources)
    kept = ", ".join(f"{count} {split}" for split, count in merged.rows.items())
    dropped = dataset.dropped(merged.counts)
    out = ", ".join(f"{count} {check}" for check, count in dropped.items())
    return f"of {uris}: {kept} rows" + (f"; dropped: {out}" if out else "")


def loss(merged: Dataset) -> str:
    """That over a tenth of the data is gone: the rest alone would look like a success."""
    dropped = dataset.dropped(merged.counts)
    lost = {check: count for check, count in dropped.items() if check not in ASKED}
    total = sum(lost.values())
    if 10 * total <= merged.read:
        return ""
    by_check = ", ".join(f"{count} {check}" for check, count in lost.items())
    return f"checks dropped {total} of {merged.read} rows ({by_check})"


def warnings(merged: Dataset) -> list[str]:
    """What is said beside the counts, whether or not the rows are logged."""
    return [loss(merged), absent(merged), uneven(merged)]


def absent(merged: Dataset) -> str:
    """That a column is named that no row of any source has: most likely its name is misspelt."""
    clauses = {
        f"no row has a column {name[:40]!r}, which {source.entry.columns_from} names for {ours}"
        for source in merged.work.sources
        for ours, named in source.entry.columns.items()
        for name in columns.columns_of(named)
        if name not in merged.present
    }
    return "; ".join(sorted(clauses))


def uneven(merged: Dataset) -> str:
    """That a split came out far larger than it was asked for, since rows of a group stay together.

    Of files that are named after splits nothing was asked for.
    """
    import numpy as np

    rows = (merged.copies > 0) & (merged.facts["split"] < 0)
    total, held_out = int(rows.sum()), merged.work.recipe.split
    large = []
    for name, asked in (("validation", held_out.validation), ("test", held_out.test)):
        here = rows & (merged.split == SPLITS.index(name))
        wanted = asked if isinstance(asked, int) else round(asked * total)
        count, groups = int(here.sum()), len(np.unique(merged.facts["group"][here]))
        if count > UNEVEN * max(1, wanted) and count >= UNEVEN * groups:
            large.append(f"{count} go to {name} instead of {wanted}")
    if not large:
        return ""
    groups, by = len(np.unique(merged.facts["group"][rows])), merged.work.group_by
    why = f"rows of one {by} stay together, and there are {groups} of them; --set "
    if by == "answer":
        why = (
            f"rows with the same answer stay together, and there are {groups} answers; "
            "--set prepare.group_by=row splits them row by row, "
        )
    remedy = "split.test=N holds out at least N rows (with make, SET=…)"
    return f"of {total} rows, {', '.join(large)}: {why}{remedy}"


def shortage(merged: Dataset) -> str:
    """That the gate will reject whatever is trained on these rows."""
    rows, wanted = merged.rows["test"], merged.work.recipe.gate.min_rows
    if rows >= wanted:
        return ""
    return (
        f"{rows} test rows, and the gate asks for {wanted} (gate.min_rows), so that "
        f"training is refused: add rows, hold out {wanted} with --set split.test={wanted}, "
        f"or judge by fewer with --set gate.min_rows={rows} (with make, SET=…)"
    )
