"""What came of the data, in words: rows by split, and what is lost or too little."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loraline.data import dataset

if TYPE_CHECKING:
    from loraline.data.merged import Dataset

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
