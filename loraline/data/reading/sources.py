"""Where rows come from: folders and files, S3, the Hugging Face hub, DVC, an earlier dataset.

Every source becomes a list of data files under a local root; only S3 brings them one by one, when
they are read.
"""

from __future__ import annotations

import difflib
import os
import posixpath
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from loraline.data.checks import BadRow
from loraline.data.reading.folders import ARCHIVES, NOT_ROWS, UNREAD, refuse_links, walk
from loraline.data.reading.media import Fetch, inside
from loraline.data.reading.readers import ENDINGS, MORE_ENDINGS, arrow_table, holds_rows
from loraline.errors import TryAgain, UserError
from loraline.profiles.preparation import Entry

if TYPE_CHECKING:
    from datasets import Dataset

    from loraline.data.reading.s3 import Bucket

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "eval": "validation",
    "evaluation": "validation",
    "test": "test",
    "testing": "test",
}
"""Words that name a split in the name of a file or of its folder."""


@dataclass(frozen=True)
class DataFile:
    """A file that holds rows."""

    name: str
    """Path under the source's root, with slashes."""

    split: str | None
    size: int
    version: str
    """Changes when the content does: an ETag, or the time of the last change."""


@dataclass(frozen=True)
class Source:
    """A source that was found, with its data files."""

    entry: Entry
    root: Path
    files: tuple[DataFile, ...]
    bucket: Bucket | None = None
    media: Path | None = None
    """Folder that media lie in; null is the root."""

    def path(self, name: str) -> Path:
        """Local path of a data file."""
        return self.bucket.fetch(name) if self.bucket else self.root / name

    def beside(self, name: str) -> Fetch:
        """Fetch media by names relative to the data file `name`."""
        folder = posixpath.dirname(name)
        if self.bucket is None:
            root = self.media or self.root
            return inside(root if self.media else root / folder, root)
        bucket = self.bucket
        folder = self.entry.media or folder

        def fetch(medium: str) -> Path:
            key = posixpath.normpath(posixpath.join(folder, medium))
            at_root = posixpath.normpath(medium)
            if not (self.entry.media or bucket.has(key)) and bucket.has(at_root):
                key = at_root
            if key.startswith(("../", "/")) or key == "..":
                raise BadRow("media_missing", f"image {medium[:80]!r} lies outside of {bucket.uri}")
            return bucket.fetch(key)

        return fetch

    def prompt_file(self) -> Path | None:
        """The prompt beside the data, if there is one."""
        if self.bucket is not None:
            return self.bucket.fetch("prompt.txt") if self.bucket.has("prompt.txt") else None
        # The cached files of a hub's dataset have the file system's root.
        file = (self.media or self.root) / "prompt.txt"
        return file if file.is_file() else None


def locate(entry: Entry, cache: Path) -> Source:
    """Find a source's data files; what must be fetched goes to the folder `cache`.

    Raises UserError when there is no such source, TryAgain when its service does not answer.
    """
    scheme, separator, location = entry.uri.partition("://")
    if not separator:
        return local(entry, Path(entry.uri))
    if scheme == "s3":
        from loraline.data.reading.s3 import Bucket

        bucket = Bucket.connect(entry.uri, cache)
        listed = [
            (name, size, etag)
            for name, (size, etag) in bucket.objects.items()
            if bucket.only in (None, name)
        ]
        return Source(entry, cache, chosen(entry, listed), bucket)
    if scheme == "hf":
        return hugging_face(entry, location)
    if scheme == "dvc":
        return dvc(entry, location, cache)
    if scheme == "mlflow":
        return earlier(entry, location, cache)
    accepted = "a path, s3://, hf://, dvc:// or mlflow://"
    raise UserError(f"--data {entry.uri!r}: unknown source {scheme}://; accepted: {accepted}")


def local(entry: Entry, path: Path) -> Source:
    """A folder with data files, or one data file."""
    if path.is_file():
        if not holds_rows(path.name):
            accepted = ", ".join([*ENDINGS, *MORE_ENDINGS])
            raise UserError(
                f"{path} is not a data file; accepted: {accepted}, packed as .gz, .bz2 or .zst"
            )
        root, names = path.parent, [path.name]
    elif path.is_dir():
        root, names = path, sorted(walk(path))
        refuse_links(path, names)
    else:
        raise UserError(
            f"--data {entry.uri!r} is not a folder or a file: {os.path.abspath(path)}; "
            f"{advice(path)} (with make, DATA=)"
        )
    stats = [(name, (root / name).stat()) for name in names]
    listed = [(name, status.st_size, str(status.st_mtime_ns)) for name, status in stats]
    return Source(entry, root, chosen(entry, listed), media=media_folder(entry, root))


def advice(path: Path) -> str:
    """A hint for a path that does not exist: names that are close to it."""
    folder = Path(os.path.abspath(path)).parent
    if not folder.is_dir():
        return f"there is no folder {folder}"
    near = difflib.get_close_matches(path.name, os.listdir(folder))
    return f"did you mean {' or '.join(near)}?" if near else "name what there is"


def media_folder(entry: Entry, root: Path) -> Path | None:
    """The folder that `media` names: from the registry's folder, or else from the source's."""
    if entry.media is None:
        return None
    folder = Path(entry.media)
    folder = folder if folder.is_dir() else root / entry.media
    if not folder.is_dir():
        raise UserError(f"{entry.uri}: `media` names {entry.media[:80]!r}, which is no folder")
    return folder


def chosen(entry: Entry, listed: Sequence[tuple[str, int, str]]) -> tuple[DataFile, ...]:
    """The data files among those listed: the topmost ones, each with the split that it names."""
    visible = [
        item
        for item in listed
        if not any(part.startswith(".") for part in PurePosixPath(item[0]).parts)
    ]
    usable = [
        item
        for item in visible
        if holds_rows(item[0]) and posixpath.basename(item[0]) not in NOT_ROWS
    ]
    top = [item for item in usable if "/" not in item[0]]
    archives = [name for name, *_ in visible if ARCHIVES.search(name.lower())]
    unsupported = [name for name, *_ in visible if UNREAD.search(name.lower())]
    refused = [name for name in [*archives, *unsupported] if "/" not in name or not top]
    if refused:
        remedy = "unpack it" if refused[0] in archives else "save it as JSONL or CSV"
        raise UserError(
            f"{entry.uri} holds {', '.join(refused[:3])}, which would not be read; {remedy}, or "
            "give the files that are meant"
        )
    if not usable:
        raise UserError(f"{entry.uri} holds no .jsonl file and none of {', '.join(ENDINGS[1:])}")
    files = [
        DataFile(name, entry.split or split_of(name), size, v)
        for name, size, v in sorted(top or usable)
    ]
    unnamed = [file.name for file in files if file.split is None]
    if 0 < len(unnamed) < len(files):
        raise UserError(
            f"{entry.uri} holds {', '.join(unnamed[:3])} beside files named after splits; name all "
            "files after train, validation or test, or none"
        )
    return tuple(files)


def split_of(name: str) -> str | None:
    """The split that a word of a file's name, or else of its folder's, names; the first that does.

    As datasets has it: `data_test.csv` holds the rows of a test.
    """
    path = PurePosixPath(name)
    for part in (path.stem, *reversed(path.parent.parts)):
        for word in re.split(r"[-_. \d]+", part.lower()):
            if word in SPLIT_NAMES:
                return SPLIT_NAMES[word]
    return None


def hugging_face(entry: Entry, location: str) -> Source:
    """`hf://owner/name[@revision][:split]`, or a local folder of datasets in the owner's place."""
    import datasets
    from huggingface_hub.errors import HfHubHTTPError

    path, _, split = location.partition(":")
    path, _, revision = path.partition("@")
    if path.startswith(("/", ".")) and not Path(path).is_dir():
        raise UserError(f"{entry.uri}: {path} is no folder here, nor owner/name of the hub")
    try:
        if Path(path, "dataset_dict.json").is_file() or Path(path, "state.json").is_file():
            loaded = datasets.load_from_disk(path)
            if split and split not in loaded:
                raise UserError(f"{entry.uri} has no split {split!r}, it has {', '.join(loaded)}")
            loaded = loaded[split] if split else loaded
        else:
            loaded = datasets.load_dataset(path, revision=revision or None, split=split or None)
    except (FileNotFoundError, ConnectionError, HfHubHTTPError, KeyError, ValueError) as error:
        if is_hub_away(error):
            raise TryAgain(
                f"{entry.uri} is not in the local cache and the hub does not answer"
            ) from error
        raise UserError(
            f"{entry.uri} cannot be loaded: {' '.join(str(error).split())[:300]}"
        ) from error
    parts = dict(loaded) if isinstance(loaded, dict) else {split or "train": loaded}
    files = []
    for name, part in parts.items():
        named_split = (
            SPLIT_NAMES.get(re.split(r"[-_.\[]", name.lower())[0])
            if len(parts) > 1 or split
            else None
        )
        # A slice such as train[:100] shares the files of the whole split.
        if part._indices is not None or rows_in_files(part) != len(part):
            raise UserError(
                f"{entry.uri} is a selection, of which all rows would be read; take a sample with "
                "%10 or #100 after the address, or write the selection with save_to_disk"
            )
        for cached in part.cache_files:
            file = Path(cached["filename"])
            files.append(
                DataFile(
                    str(file), entry.split or named_split, file.stat().st_size, part._fingerprint
                )
            )
    # The cached files lie anywhere; a row may name what belongs to its dataset, and nothing else.
    owned = Path(path) if Path(path).is_dir() else cache_of(path)
    return Source(entry, Path("/"), tuple(files), media=owned)


def rows_in_files(part: Dataset) -> int:
    """Rows of the files of a split that datasets has loaded; none where it keeps no files."""
    return sum(len(arrow_table(Path(cached["filename"]))) for cached in part.cache_files)


def is_hub_away(error: Exception) -> bool:
    """Whether an exception of datasets means that the hub cannot be reached or is overloaded.

    What the hub answers about a dataset is a FileNotFoundError as well, and is final.
    """
    from datasets.exceptions import FileNotFoundDatasetsError
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    from loraline.tracking.store import causes

    if isinstance(error, FileNotFoundDatasetsError):
        return False
    for cause in causes(error):
        if isinstance(cause, ConnectionError | LocalEntryNotFoundError):
            return True
        if isinstance(cause, HfHubHTTPError):
            status = cause.response.status_code
            if status == 429 or status >= 500:
                return True
    return False


def cache_of(name: str) -> Path:
    """The folder that keeps the files of a hub's dataset, `owner/name`; the hub's token lies above
    all of them."""
    import datasets
    from huggingface_hub import constants

    files = Path(constants.HF_HUB_CACHE, f"datasets--{name.replace('/', '--')}")
    return files if files.is_dir() else Path(datasets.config.HF_DATASETS_CACHE)


def dvc(entry: Entry, location: str, cache: Path) -> Source:
    """`dvc://repository[@revision]:path`; the repository is a folder or a Git address."""
    try:
        from dvc.api import DVCFileSystem
        from dvc.exceptions import DvcException
        from scmrepo.exceptions import SCMError
    except ImportError as error:
        raise UserError("dvc:// needs DVC; install loraline with the extra dvc") from error

    place, separator, path = location.rpartition(":")
    if not separator or not place or not path:
        raise UserError(f"--data {entry.uri!r}: expected dvc://repository[@revision]:path")
    repository, at, revision = place.rpartition("@")
    if not at or "/" in revision:
        repository, revision = place, ""
    target = cache / posixpath.basename(path.rstrip("/"))
    try:
        files = DVCFileSystem(repository, rev=revision or None)
        is_folder = files.isdir(path)
        # An interrupted run left another revision here, or half of this one.
        shutil.rmtree(cache, ignore_errors=True)
        cache.mkdir(parents=True)
        files.get(path, str(target), recursive=is_folder)
    except (DvcException, SCMError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{entry.uri} cannot be fetched: {reason}") from error
    return local(entry, target)


def earlier(entry: Entry, location: str, cache: Path) -> Source:
    """`mlflow://run` of an earlier prepare_data: its rows, splits and prompt."""
    from loraline.tracking import runs, store

    client = store.connect()
    run = runs.upstream_run(client, location, "prepare_data", flag="--data mlflow://")
    cache.mkdir(parents=True, exist_ok=True)
    folder = runs.download_dataset(client, run, cache)
    source = local(entry, folder)
    return replace(
        source, files=tuple(file for file in source.files if file.name.endswith(".parquet"))
    )
