"""Files of a folder that hold rows, and those whose rows would be lost."""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from loraline.data.reading.readers import holds_rows
from loraline.errors import UserError

NOT_ROWS = {
    "dataset_info.json",
    "dataset_infos.json",
    "dataset_dict.json",
    "state.json",
    "manifest.json",
}
"""Files that the package datasets, and prepare_data, keep beside the rows."""

UNREAD = re.compile(
    r"\.((jsonl?|ndjson|jsonlines|csv|tsv|parquet|arrow)\.(xz|lz4|br)"
    r"|(parquet|arrow)\.(gz|bz2|zst)|xls[xmb]?|ods|orc|avro|json5|jsonc|jsonl?\.txt"
    r"|pkl|pickle|sqlite3?|tfrecords?)$"
)
"""Endings of files that hold rows, in a form that is not read."""

ARCHIVES = re.compile(r"\.(zip|7z|rar|txz|tbz2?|tar\.(xz|lz4|lzma|br))$")
"""Endings of archives that nothing unpacks."""


def walk(folder: Path) -> Iterator[str]:
    """Names of a folder's files in it and under it; links to elsewhere are not followed."""
    inner = folder.resolve()
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            path = Path(place, name)
            if (
                (holds_rows(name) or UNREAD.search(name.lower()) or may_hold_rows(path))
                and path.is_file()
                and path.resolve().is_relative_to(inner)
            ):
                yield path.relative_to(folder).as_posix()


def refuse_links(folder: Path, names: Sequence[str]) -> None:
    """Raise UserError for a link to rows elsewhere, or to rows that are not there.

    `names` are those of the files that may be read. What lies under others is not missed.
    """
    inner = folder.resolve()
    is_flat = any("/" not in name and holds_rows(name) for name in names)
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in (*files, *(() if is_flat else folders)):
            path = Path(place, name)
            if path.is_symlink() and not name.startswith(".") and points_to_rows(path):
                target = path.resolve()
                if not (target.exists() and target.is_relative_to(inner)):
                    raise UserError(
                        f"{path} is a link to {target}, which would not be read; copy that into "
                        "the folder, or name it with --data"
                    )
        if is_flat:
            return


def points_to_rows(link: Path) -> bool:
    """Whether a link is to a data file, by its name, or to a folder that holds some."""
    names = os.listdir(link) if link.is_dir() else [link.name]
    return any(holds_rows(name) and name not in NOT_ROWS for name in names)


def may_hold_rows(path: Path) -> bool:
    """Whether a file is an archive that nothing unpacks; not a ZIP of pictures and the like."""
    if not ARCHIVES.search(path.name.lower()):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError):
        return True
    return any(
        holds_rows(name) or UNREAD.search(name.lower()) or ARCHIVES.search(name.lower())
        for name in names
    )
