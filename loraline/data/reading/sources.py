"""Where rows come from: folders and files, S3, the Hugging Face hub, DVC, an earlier dataset.

Every source becomes a list of data files under a local root; only S3 brings them one by one, when
they are read.
"""

from __future__ import annotations

import codecs
import json
import os
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, ValidationError

from loraline.data.checks import BadRow
from loraline.data.reading import registries
from loraline.data.reading.media import Fetch, inside
from loraline.data.reading.readers import KINDS, MORE_KINDS, holds_rows
from loraline.errors import TryAgain, UserError

if TYPE_CHECKING:
    from loraline.data.reading.s3 import Bucket

REGISTRY = "datasets.yaml"

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "eval": "validation",
    "test": "test",
}
"""Words that name a split in the name of a file or of its folder."""

NOT_ROWS = {
    "dataset_info.json",
    "dataset_infos.json",
    "dataset_dict.json",
    "state.json",
    "manifest.json",
}
"""Files that datasets, and this line, keep beside the rows."""

UNREAD = re.compile(
    r"\.((jsonl?|ndjson|jsonlines|csv|tsv|parquet|arrow|tar)\.(xz|lz4|br|zip|7z)"
    r"|(parquet|arrow)\.(gz|bz2|zst)|xlsx?|feather|json5|jsonc)$"
)
"""Endings of files that hold rows, in a form that is not read."""

FLAG = re.compile(
    r"(?P<uri>.+?)(?:%(?P<percent>\d+(?:\.\d+)?)|#(?P<rows>\d+))?(?:\*(?P<weight>\d+(?:\.\d+)?))?"
)

Coordinates = Literal["pixels", "unit", "thousand"]


class Entry(BaseModel):
    """One source as asked for: in the registry, or by a flag."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    uri: str = Field(min_length=1)
    """Path, s3://, hf://, dvc:// or mlflow://."""

    sample: str = Field("", pattern=r"^(%\d+(\.\d+)?|#0*[1-9]\d*)?$")
    """`%50` takes about half of the rows, `#2000` takes 2,000; chosen by content."""

    weight: PositiveFloat = 1
    """How often a training row of this source stands in the dataset; 0.5 keeps half of them."""

    columns: Mapping[str, str] = {}
    """Our name of a column to the source's, as in `question: ask`, or to a template of several."""

    ignore: tuple[str, ...] = ()
    """Columns that are left out on purpose."""

    turns: Mapping[str, str] = {}
    """Our name of a turn's keys (`role`, `content`) and roles to the source's."""

    learn: Literal["all", "last"] = "all"
    """Answers of a conversation that are learnt."""

    preference: Literal["good"] | None = None
    """`good` learns the chosen answers of preference data; null refuses such data."""

    media: str | None = None
    """Folder that media are named from; null is the data file's own."""

    window: tuple[float, float] | None = None
    """Values of a picture of more than 8 bits that are black and white; null goes by its own."""

    encoding: str = ""
    """Of text files that are not UTF-8, as Python names it."""

    boxes: Coordinates | None = None
    """Coordinates of bounding boxes in the rows; null leaves numbers alone."""

    split: Literal["train", "validation", "test"] | None = None
    """The split that all rows go to; null goes by file names, or by content."""


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
            if key.startswith(("../", "/")) or key == "..":
                raise BadRow("media_missing", f"image {medium[:80]!r} lies outside of {bucket.uri}")
            return bucket.fetch(key)

        return fetch

    def prompt_file(self) -> Path | None:
        """The prompt beside the data, if there is one."""
        if self.bucket is not None:
            return self.bucket.fetch("prompt.txt") if self.bucket.has("prompt.txt") else None
        file = self.root / "prompt.txt"
        return file if file.is_file() else None


def entries(flags: Sequence[str], encoding: str = "") -> list[Entry]:
    """What the flags ask for: a registry file, a name in a registry, or a URI.

    `encoding` is that of text files whose registry entry names none.
    """
    known = read_registry(Path(REGISTRY)) if Path(REGISTRY).is_file() else {}
    found: list[Entry] = []
    for flag in flags:
        file, _, chosen_names = flag.partition(".json:") if ".json:" in flag else (flag, "", "")
        if is_registry(flag):
            found += read_registry(Path(flag)).values()
        elif chosen_names and is_registry(f"{file}.json"):
            registry = read_registry(Path(f"{file}.json"))
            for name in chosen_names.split(","):
                if name not in registry:
                    accepted = ", ".join(list(registry)[:5])
                    raise UserError(f"{file}.json has no dataset {name[:40]!r}; it has {accepted}")
                found.append(registry[name])
        else:
            found.append(asked_for(flag, known))
    if encoding:
        found = [
            entry if entry.encoding else entry.model_copy(update={"encoding": encoding})
            for entry in found
        ]
    for entry in found:
        try:
            codecs.lookup(entry.encoding or "utf-8")
        except LookupError:
            raise UserError(
                f"encoding {entry.encoding!r} is unknown; write it as utf-16, gbk, latin-1 or so"
            ) from None
    return found


def asked_for(flag: str, known: Mapping[str, Entry]) -> Entry:
    """A name in a registry or a URI, with a sample and a weight after it."""
    match = FLAG.fullmatch(flag)
    if Path(flag).exists() or match is None:
        return known.get(flag) or Entry(uri=flag)
    uri, percent, rows, weight = match.group("uri", "percent", "rows", "weight")
    entry = known.get(uri) or Entry(uri=uri)
    if percent or rows:
        entry = entry.model_copy(update={"sample": f"%{percent}" if percent else f"#{rows}"})
    if weight:
        entry = entry.model_copy(update={"weight": float(weight)})
    if percent and not 0 < float(percent) <= 100:
        raise UserError(f"--data {flag!r}: a sample of %{percent} is not between 0 and 100")
    if rows and not int(rows):
        raise UserError(f"--data {flag!r} asks for a sample of no rows")
    if entry.weight <= 0:
        raise UserError(f"--data {flag!r}: a weight of {weight} is not above 0")
    return entry


def is_registry(flag: str) -> bool:
    """Whether a flag names a registry: ours, LLaMA-Factory's or ms-swift's."""
    return flag.endswith((".yaml", ".yml")) or posixpath.basename(flag) == registries.FILE


def read_registry(file: Path) -> dict[str, Entry]:
    """Named sources of a registry; relative paths count from its folder."""
    import yaml

    try:
        text = file.read_text(encoding="utf-8-sig")
        content = json.loads(text) if file.suffix == ".json" else yaml.safe_load(text)
    except FileNotFoundError as error:
        raise UserError(f"registry {file} does not exist") from error
    except (yaml.YAMLError, ValueError) as error:
        language = "JSON" if file.suffix == ".json" else "YAML"
        raise UserError(
            f"{file} is not valid {language}: {' '.join(str(error).split())[:160]}"
        ) from error
    if file.suffix == ".json":
        content = registries.translated(file, content)
    if not isinstance(content, dict) or not content:
        raise UserError(f"{file} must hold names of datasets, each with a uri")
    found = {}
    for name, fields in content.items():
        try:
            entry = Entry(**fields) if isinstance(fields, dict) else Entry(uri=fields)
        except ValidationError as error:
            wrong = error.errors()[0]
            key = ".".join(str(part) for part in wrong["loc"])
            accepted = ", ".join(Entry.model_fields)
            raise UserError(
                f"{file}: dataset {name!r}, key {key!r}: {wrong['msg'].lower()} (keys: {accepted})"
            ) from error
        if "://" not in entry.uri:
            entry = entry.model_copy(update={"uri": str(file.parent / entry.uri)})
            if entry.media and (file.parent / entry.media).is_dir():
                entry = entry.model_copy(update={"media": str(file.parent / entry.media)})
        found[str(name)] = entry
    return found


def locate(entry: Entry, cache: Path) -> Source:
    """Find a source's data files; what must be fetched goes to the folder `cache`.

    Raises UserError when there is no such source, TryAgain when its service does not answer.
    """
    scheme, separator, rest = entry.uri.partition("://")
    if not separator:
        return local(entry, Path(entry.uri))
    if scheme == "s3":
        from loraline.data.reading.s3 import Bucket

        bucket = Bucket.connect(entry.uri, cache)
        listed = [(name, size, etag) for name, (size, etag) in bucket.objects.items()]
        return Source(entry, cache, chosen(entry, listed), bucket)
    if scheme == "hf":
        return hugging_face(entry, rest)
    if scheme == "dvc":
        return dvc(entry, rest, cache)
    if scheme == "mlflow":
        return earlier(entry, rest, cache)
    accepted = "a path, s3://, hf://, dvc:// or mlflow://"
    raise UserError(f"--data {entry.uri!r}: unknown source {scheme}://; accepted: {accepted}")


def local(entry: Entry, path: Path) -> Source:
    """A folder with data files, or one data file."""
    if path.is_file():
        if not holds_rows(path.name):
            accepted = ", ".join([*KINDS, *MORE_KINDS])
            raise UserError(
                f"{path} is not a data file; accepted: {accepted}, packed as .gz, .bz2 or .zst"
            )
        root, names = path.parent, [path.name]
    elif path.is_dir():
        root, names = path, sorted(walk(path))
    else:
        raise UserError(f"--data {entry.uri!r} is not a folder or a file")
    stats = [(name, (root / name).stat()) for name in names]
    listed = [(name, found.st_size, str(found.st_mtime_ns)) for name, found in stats]
    return Source(entry, root, chosen(entry, listed), media=media_folder(entry, root))


def media_folder(entry: Entry, root: Path) -> Path | None:
    """The folder that `media` names: from the registry's folder, or else from the source's."""
    if entry.media is None:
        return None
    folder = Path(entry.media)
    folder = folder if folder.is_dir() else root / entry.media
    if not folder.is_dir():
        raise UserError(f"{entry.uri}: `media` names {entry.media[:80]!r}, which is no folder")
    return folder


def walk(folder: Path) -> Iterator[str]:
    """Names of a folder's files in it and under it; links to elsewhere are not followed."""
    inner = folder.resolve()
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            path = Path(place, name)
            if (
                (holds_rows(name) or UNREAD.search(name.lower()))
                and path.is_file()
                and path.resolve().is_relative_to(inner)
            ):
                yield path.relative_to(folder).as_posix()


def chosen(entry: Entry, listed: Sequence[tuple[str, int, str]]) -> tuple[DataFile, ...]:
    """The data files among those listed: the topmost ones, each with the split that it names."""
    seen = [
        item
        for item in listed
        if not any(part.startswith(".") for part in PurePosixPath(item[0]).parts)
    ]
    usable = [
        item for item in seen if holds_rows(item[0]) and posixpath.basename(item[0]) not in NOT_ROWS
    ]
    top = [item for item in usable if "/" not in item[0]]
    unread = [name for name, *_ in seen if UNREAD.search(name.lower())]
    if unread := [name for name in unread if "/" not in name or not top]:
        raise UserError(
            f"{entry.uri} holds {', '.join(unread[:3])}, which would not be read; save it as JSONL "
            "or CSV, or give the files that are meant"
        )
    if not usable:
        raise UserError(f"{entry.uri} holds no .jsonl file and none of {', '.join(KINDS[1:])}")
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
    """The split that a file's name or its folder's names."""
    path = PurePosixPath(name)
    for word in (path.stem, *reversed(path.parent.parts)):
        first = re.split(r"[-_.]", word.lower())[0]
        if first in SPLIT_NAMES:
            return SPLIT_NAMES[first]
    return None


def hugging_face(entry: Entry, rest: str) -> Source:
    """`hf://owner/name[@revision][:split]`, or a local folder of datasets in the owner's place."""
    import datasets
    from datasets.exceptions import DatasetNotFoundError

    path, _, split = rest.partition(":")
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
    except (DatasetNotFoundError, FileNotFoundError, KeyError, ValueError) as error:
        if not Path(path).exists() and isinstance(error, FileNotFoundError | ConnectionError):
            raise TryAgain(
                f"{entry.uri} is not in the local cache and the hub does not answer"
            ) from error
        raise UserError(
            f"{entry.uri} cannot be loaded: {' '.join(str(error).split())[:300]}"
        ) from error
    except ConnectionError as error:
        raise TryAgain(f"{entry.uri}: the hub does not answer") from error
    parts = dict(loaded) if isinstance(loaded, dict) else {split or "train": loaded}
    files = []
    for name, part in parts.items():
        given = (
            SPLIT_NAMES.get(re.split(r"[-_.\[]", name.lower())[0])
            if len(parts) > 1 or split
            else None
        )
        if part._indices is not None or not part.cache_files:
            raise UserError(f"{entry.uri} is a selection; write it with save_to_disk first")
        for cached in part.cache_files:
            found = Path(cached["filename"])
            files.append(
                DataFile(str(found), entry.split or given, found.stat().st_size, part._fingerprint)
            )
    # The cached files lie anywhere; a row may name what belongs to its dataset, and nothing else.
    owned = Path(path) if Path(path).is_dir() else Path(datasets.config.HF_CACHE_HOME)
    return Source(entry, Path("/"), tuple(files), media=owned)


def dvc(entry: Entry, rest: str, cache: Path) -> Source:
    """`dvc://repository[@revision]:path`; the repository is a folder or a Git address."""
    try:
        from dvc.api import DVCFileSystem
        from dvc.exceptions import DvcException
        from scmrepo.exceptions import SCMError
    except ImportError as error:
        raise UserError("dvc:// needs DVC; install loraline with the extra dvc") from error

    place, separator, path = rest.rpartition(":")
    if not separator or not place or not path:
        raise UserError(f"--data {entry.uri!r}: expected dvc://repository[@revision]:path")
    repository, at, revision = place.rpartition("@")
    if not at or "/" in revision:
        repository, revision = place, ""
    target = cache / posixpath.basename(path.rstrip("/"))
    try:
        files = DVCFileSystem(repository, rev=revision or None)
        is_folder = files.isdir(path)
        cache.mkdir(parents=True, exist_ok=True)
        files.get(path, str(target), recursive=is_folder)
    except (DvcException, SCMError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{entry.uri} cannot be fetched: {reason}") from error
    return local(entry, target)


def earlier(entry: Entry, rest: str, cache: Path) -> Source:
    """`mlflow://run` of an earlier prepare_data: its rows, splits and prompt."""
    from loraline.tracking import runs, store

    client = store.connect()
    run = runs.upstream_run(client, rest, "prepare_data", flag="--data mlflow://")
    cache.mkdir(parents=True, exist_ok=True)
    folder = runs.download(client, run.info.run_id, "dataset", cache)
    found = local(entry, folder)
    return replace(
        found, files=tuple(file for file in found.files if file.name.endswith(".parquet"))
    )
