"""The outcome of prepare_data in sentences: rows by split, and what was lost or is too little."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loraline.data import dataset
from loraline.data.reading import columns
from loraline.data.reading.keys import HARMLESS
from loraline.records import SPLITS

if TYPE_CHECKING:
    from loraline.data.merged import Dataset

UNEVEN = 1.5
"""Times the rows that were asked for, above which a split is said to be large."""

BY_SETTING = ("sample", "weight", "preference")
"""Names under which rows are counted that a setting left out, not a check."""


def counts(merged: Dataset) -> str:
    """Sources, rows by split, and rows dropped by check, in one line."""
    uris = ", ".join(source.entry.uri for source in merged.work.sources)
    rows = ", ".join(f"{count} {split}" for split, count in merged.rows.items())
    dropped = dataset.dropped(merged.counts)
    by_check = ", ".join(f"{count} {check}" for check, count in dropped.items())
    return f"of {uris}: {rows} rows" + (f"; dropped: {by_check}" if by_check else "")


def loss(merged: Dataset) -> str:
    """A warning if checks dropped over a tenth of the rows; else an empty text."""
    dropped = dataset.dropped(merged.counts)
    lost = {check: count for check, count in dropped.items() if check not in BY_SETTING}
    total = sum(lost.values())
    if 10 * total <= merged.read:
        return ""
    by_check = ", ".join(f"{count} {check}" for check, count in lost.items())
    return f"checks dropped {total} of {merged.read} rows ({by_check})"


def warnings(merged: Dataset) -> list[str]:
    """Warnings beside the counts, whether or not the rows are logged; some may be empty."""
    return [loss(merged), absent(merged), not_used(merged), uneven(merged)]


def not_used(merged: Dataset) -> str:
    """That columns hold something that nothing reads, though nobody asked for it."""
    entries = [source.entry for source in merged.work.sources]
    meant = {name for entry in entries for name in (*entry.ignore, *entry.columns)}
    names = [
        name
        for name, _ in merged.unused.most_common()
        if name.rpartition("[].")[2] not in meant | HARMLESS and not name.endswith("_id")
    ]
    if not names:
        return ""
    first = ", ".join(name[:40] for name in names[:6])
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return (
        f"columns not used: {first}{more} (the report says in how many rows; `columns` and "
        "`ignore` say what they are for)"
    )


def absent(merged: Dataset) -> str:
    """A warning for a column that is named and that no row has: its name may be misspelt."""
    clauses = {
        f"no row has a column {name[:40]!r}, which {source.entry.columns_from} names for {ours}"
        for source in merged.work.sources
        for ours, named in source.entry.columns.items()
        for name in columns.columns_of(named)
        if name not in merged.present
    }
    return "; ".join(sorted(clauses))


def uneven(merged: Dataset) -> str:
    """A warning for a split far larger than requested, because rows of a group stay together.

    Files that are named after splits do not count: no size was requested for them.
    """
    import numpy as np

    rows = (merged.copies > 0) & (merged.facts["split"] < 0)
    total, held_out = int(rows.sum()), merged.work.recipe.split
    large = []
    for name, requested in (("validation", held_out.validation), ("test", held_out.test)):
        in_split = rows & (merged.split == SPLITS.index(name))
        expected = requested if isinstance(requested, int) else round(requested * total)
        count, groups = int(in_split.sum()), len(np.unique(merged.facts["group"][in_split]))
        if count > UNEVEN * max(1, expected) and count >= UNEVEN * groups:
            large.append(f"{count} go to {name} instead of {expected}")
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
    """A sentence if there are fewer test rows than the gate requires; else an empty text."""
    rows, least = merged.rows["test"], merged.work.recipe.gate.min_rows
    if rows >= least:
        return ""
    splits = {file.split for source in merged.work.sources for file in source.files}
    # Rows are divided where no file is named test.
    remedy = f"add rows, hold out {least} with --set split.test={least},"
    if "test" in splits:
        remedy = "add rows to the files of the test,"
    return (
        f"{rows} test rows, and the gate asks for {least} (gate.min_rows), so that training is "
        f"refused: {remedy} or judge by fewer with --set gate.min_rows={rows} (with make, SET=…)"
    )
