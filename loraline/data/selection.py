"""Which rows are kept: samples, splits, dropped repetitions, and weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from loraline.data import duplicates
from loraline.data.checks import DROP
from loraline.data.facts import FLAGS
from loraline.data.words import MIX, scattered
from loraline.data.work import EXAMPLES
from loraline.records import SPLITS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from loraline.data.merged import Dataset


def apply_check(
    merged: Dataset,
    check: str,
    rows: NDArray[Any],
    clause: str,
    partner: Callable[[int], int | None] = lambda row: None,
) -> None:
    """Count the rows that did not pass a check, note examples, and drop them if its action is drop.

    `partner` gives the row that a row repeats, which the examples name.
    """
    import numpy as np

    indices = np.flatnonzero(rows)
    action = merged.work.actions[check]
    if not len(indices):
        return
    merged.counts[f"{check} {action}"] += len(indices)
    merged.facts["flags"][indices] |= np.uint32(1 << FLAGS.index(check))
    for index in indices[:EXAMPLES].tolist():
        partner_row = partner(index)
        merged.examples.append(
            {
                "check": check,
                "action": action,
                "place": merged.place(index),
                "clause": clause
                if partner_row is None
                else f"{clause}: {merged.place(partner_row)}",
                "text": merged.record(index).answer[:300],
            }
        )
    if action == DROP:
        merged.copies[indices] = 0


def take_samples(merged: Dataset) -> None:
    """Keep `#N` rows of each source that asks for it: those with the smallest hashes."""
    import numpy as np

    for number, source in enumerate(merged.work.sources):
        if not source.entry.sample.startswith("#"):
            continue
        members = np.flatnonzero(merged.facts["source"] == number)
        size = int(source.entry.sample[1:])
        order = members[np.argsort(merged.facts["pick"][members], kind="stable")]
        merged.copies[order[size:]] = 0
        if len(order) > size:
            merged.counts["sample out"] += len(order) - size


def assign_splits(merged: Dataset) -> None:
    """Give rows of files without a split one, and fill a split that no file names from train.

    Rows of one group, or that show the same image, get the same point of the hash range.
    """
    import numpy as np

    keys, alive, named = merged.facts["key"], merged.copies > 0, merged.split >= 0
    points = group_points(merged)
    # What a file of a held-out split has as well leaves the other splits later, as a leak.
    leaking = (merged.split <= 0) & np.isin(keys, keys[alive & (merged.split > 0)])
    bounds = lower_bounds(merged, points, alive & ~named & ~leaking)
    by_point = (points[:, None] >= np.array(bounds)).sum(axis=1).astype(np.int8)
    by_name = {file.split for source in merged.work.sources for file in source.files}
    for code in (1, 2):
        if SPLITS[code] in by_name:
            # Its rows are those of its files.
            by_point[by_point == code] = 0
    merged.split = np.where(named, merged.split, by_point)
    open_rows = named & (merged.split == 0) & ~leaking
    low, high = lower_bounds(merged, points, alive & open_rows)
    for code, (start, end) in ((1, (low, high)), (2, (high, 1.0))):
        if SPLITS[code] in by_name:
            # Its rows are those of its files, though the checks drop them all.
            continue
        if named.any() and not (alive & (merged.split == code)).any():
            merged.split[open_rows & (points >= start) & (points < end)] = code


def lower_bounds(merged: Dataset, points: NDArray[Any], rows: NDArray[Any]) -> tuple[float, float]:
    """Where validation and test begin in the hash range, of which the first part is train's.

    `rows` says which rows are divided, and `points` has the points of all, shape (rows,).
    """
    import numpy as np

    held_out = merged.work.recipe.split
    # A repeated row leaves later, so that only the first of its like counts.
    first = np.unique(merged.facts["key"][rows], return_index=True)[1]
    counted = points[rows][first]
    test = lower_bound(held_out.test, 1.0, counted)
    return lower_bound(held_out.validation, test, counted), test


def lower_bound(held_out: float, upper: float, points: NDArray[Any]) -> float:
    """Where a split that ends at `upper` begins in the hash range.

    It holds the share `held_out` of the range, or as a whole number at least so many of `points`
    (rows,).
    """
    import numpy as np

    if not isinstance(held_out, int):
        return upper - held_out
    below = np.sort(points[points < upper])
    return float(below[-held_out]) if held_out <= len(below) else 0.0


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
        is_joined = np.zeros(nodes, bool)
        is_joined[labels[joined]] = True
        points = np.where(is_joined[labels], scattered(least[labels]) / np.float64(2**64), points)
    return points


def drop_repetitions(merged: Dataset) -> None:
    """Find duplicates, leaks, and what is nearly so, in that order, among the rows still in."""
    import numpy as np

    facts, split = merged.facts, merged.split
    key_in_split = facts["key"] + np.uint64(MIX) * (split + 1).astype(np.uint64)
    alive = merged.copies > 0
    again = np.zeros(len(split), bool)
    again[alive] = duplicates.repeated(key_in_split[alive])

    def first(row: int) -> int:
        return int(np.flatnonzero(alive & (key_in_split == key_in_split[row]))[0])

    apply_check(merged, "duplicates", again, "repeats an earlier row of its split", first)

    alive = merged.copies > 0
    media_row = facts["media_row"]
    leaks = duplicates.leaked(facts["key"], split, alive)
    leaked_media = duplicates.leaked(facts["media_sha"], split[media_row], alive[media_row])
    by_text = leaks.copy()
    leaks[media_row[leaked_media]] = True

    def later(row: int) -> int:
        if by_text[row]:
            matching = facts["key"] == facts["key"][row]
        else:
            media_shas = facts["media_sha"][media_row == row]
            matching = np.zeros(len(split), bool)
            matching[media_row[np.isin(facts["media_sha"], media_shas)]] = True
        return int(np.flatnonzero(alive & matching & (split > split[row]))[0])

    apply_check(merged, "leaks", leaks, "also stands in a later split, or its image does", later)

    media = duplicates.clusters(len(media_row), duplicates.near_images(facts["media_near"]))
    pairs = duplicates.near_texts(
        all_signatures(merged), duplicates.media_of_rows(len(split), media_row, media)
    )
    texts = duplicates.clusters(len(split), pairs)
    merged.near_texts, merged.near_media = texts, media

    alive = merged.copies > 0
    near = np.zeros(len(split), bool)
    near[alive] = duplicates.repeated((texts * 4 + split)[alive])
    apply_check(merged, "near_duplicates", near & ~again, "is nearly an earlier row of its split")
    alive = merged.copies > 0
    near = duplicates.leaked(texts, split, alive)
    leaked_media = duplicates.leaked(media, split[media_row], alive[media_row])
    near[media_row[leaked_media]] = True
    apply_check(
        merged, "near_leaks", near & ~leaks, "nearly stands in a later split, or its image does"
    )


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
            bands = np.ascontiguousarray(duplicates.banded(np.load(merged.work.file(part, ".npy"))))
            for band, values in enumerate(bands):
                file.seek((band * count + int(start)) * values.itemsize * duplicates.WIDTH)
                file.write(values)
    return np.memmap(target, np.uint32, "r", shape=shape)


def weigh(merged: Dataset) -> None:
    """Repeat training rows of heavy sources, and leave out some of light ones."""
    import numpy as np

    weights = np.array([source.entry.weight for source in merged.work.sources])
    times = weights[merged.facts["source"]] if len(merged.split) else np.empty(0)
    # Another number than the one that sampling went by.
    chance = (merged.facts["pick"] * np.uint64(MIX)) / np.float64(2**64)
    copies = (np.floor(times) + (chance < times % 1)).astype(np.int32)
    train = (merged.split == 0) & (merged.copies > 0)
    merged.copies[train] = copies[train]
    if dropped := int((copies[train] == 0).sum()):
        merged.counts["weight out"] += dropped
