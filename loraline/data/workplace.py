"""The request to prepare_data, the work that it makes for many processes, and their folder."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraline.data import boxes, parts
from loraline.data.checks import Policy, policy
from loraline.data.lengths import rows
from loraline.data.reading import entries, sources, tar_files
from loraline.data.reading.media import Limits, parse_limits
from loraline.data.reading.sources import Source
from loraline.data.sentences import brief
from loraline.data.work import Work
from loraline.errors import Stopped, TryAgain, UserError
from loraline.profiles.preparation import Entry, SourceSettings
from loraline.tracking import prompts, tags
from loraline.tracking.fingerprints import fingerprint
from loraline.tracking.prompts import Prompt
from loraline.tracking.runs import artifacts, latest_runs, upstream_run

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

    from loraline.profiles.profile import Profile

TEXT_PART, VISION_PART = 2**20, 2**16
"""Bytes of a data file that make one part; a row with images is worth some milliseconds."""

PLAN = "plan.json"

NAMES_COLUMNS = re.compile(r"prepare(\.columns\b|\.sources\b|=)")
"""An override that may say how columns are named."""

MEDIA = (*tar_files.IMAGE_MEMBERS, *tar_files.VIDEO_MEMBERS)
"""Endings of files that rows show."""

MOST_FILES = 100_000
"""Files that are asked for their size and time, which takes a second or two."""


@dataclass(frozen=True)
class Request:
    """The choices of a run."""

    data: tuple[str | Entry, ...]
    prompt: str | None
    group_by: str
    actions: Policy
    limits: Limits
    encoding: str = ""
    """Encoding of text files whose registry entry names none."""

    defaults: SourceSettings | None = None
    """The profile's settings for sources that do not set them."""

    defaults_from: str = "the recipe"
    """Where the defaults were given, for messages."""

    @staticmethod
    def of(
        profile: str,
        recipe: Profile,
        data: Sequence[str],
        prompt: str | None,
        group_by: str | None,
        on: Sequence[str],
        limit: Sequence[str],
        encoding: str,
        overrides: Sequence[str] = (),
    ) -> Request:
        """The command line's choices, completed by those of the profile's `prepare`."""
        prepare = recipe.prepare
        sources: tuple[str | Entry, ...] = tuple(filter(None, data)) or prepare.sources
        if not sources and recipe.data:
            sources = (recipe.data,)
        if not sources:
            raise UserError(f"profile {profile!r} names no data; give a folder with --data")
        return Request(
            sources,
            prompt or prepare.prompt,
            group_by or prepare.group_by,
            policy([*(f"{check}={action}" for check, action in prepare.checks.items()), *on]),
            parse_limits([*(f"{name}={most}" for name, most in prepare.limits.items()), *limit]),
            encoding,
            prepare,
            "--set" if any(map(NAMES_COLUMNS.match, overrides)) else f"profile {profile!r}",
        )

    @property
    def addresses(self) -> list[str]:
        return [source if isinstance(source, str) else source.uri for source in self.data]

    def key(self, recipe: Profile) -> str:
        """Names the folder that a repeated run finds again."""
        request = [repr(self), recipe.model_dump_json(), os.getcwd()]
        return hashlib.sha256("\n".join(request).encode()).hexdigest()[:16]


@contextmanager
def folder(request: Request, recipe: Profile) -> Iterator[Path]:
    """A folder of this request under the system's temporary folder (TMPDIR).

    Gone when the work is done or the user has to mend something; kept when the work was
    interrupted, for the next run to go on.
    """
    from filelock import FileLock, Timeout

    home = Path(tempfile.gettempdir(), f"loraline-{os.getuid()}")
    home.mkdir(mode=0o700, exist_ok=True)
    status = home.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise UserError(f"{home} belongs to somebody else; set TMPDIR")
    place = home / request.key(recipe)
    lock = FileLock(home / f"{place.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise TryAgain(
            "another prepare_data with the same choices is at work here; run it again when that "
            "one has ended"
        ) from error
    try:
        place.mkdir(exist_ok=True)
        yield place
    except (TryAgain, Stopped, KeyboardInterrupt, OSError):
        raise
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise
    else:
        shutil.rmtree(place, ignore_errors=True)
    finally:
        lock.release()


@brief()
def plan(
    request: Request, recipe: Profile, client: MlflowClient | None, place: Path
) -> tuple[Work, Prompt]:
    """Find the sources, the prompt and the tokenizer, and cut the data into parts."""
    located = tuple(
        sources.locate(
            entry, place / "fetched" / hashlib.sha256(entry.uri.encode()).hexdigest()[:16]
        )
        for entry in entries.entries(
            request.data, request.encoding, request.defaults, request.defaults_from
        )
    )
    beside = None if request.prompt else prompt_beside(located)
    prompt = prompts.resolve(request.prompt, beside, client)
    if recipe.modality == "text" and prompt.template and prompts.PLACEHOLDER not in prompt.template:
        where = request.prompt or beside
        raise UserError(f"{where} must contain {{question}}, the place of the row's question")
    tokenizer = rows.tokenizer_folder(recipe.base, recipe.base_revision)
    target = None
    if any(source.entry.boxes for source in located):
        target = boxes.convention(recipe.base, tokenizer)
        if target is None:
            accepted = ", ".join(boxes.CONVENTIONS)
            raise UserError(f"base {recipe.base!r} has no convention for boxes; known: {accepted}")
    work = Work(
        located,
        tuple(parts.plan(located, VISION_PART if recipe.modality == "vision" else TEXT_PART)),
        prompt.template,
        request.group_by,
        request.actions,
        request.limits,
        recipe,
        tokenizer,
        target,
        place,
    )
    home = (
        place / hashlib.sha256(changed_since(work).encode()).hexdigest()[:8] / identity(work)[:32]
    )
    home.mkdir(parents=True, exist_ok=True)
    return replace(work, folder=home), prompt


def prompt_beside(located: Sequence[Source]) -> Path | None:
    """The prompt beside the data; a UserError where sources have prompts that differ."""
    files = [file for source in located if (file := source.prompt_file())]
    for file in files[1:]:
        if file.read_bytes().strip() != files[0].read_bytes().strip():
            raise UserError(
                f"{files[0]} and {file} differ, and a dataset has one prompt; name it with --prompt"
            )
    return files[0] if files else None


def identity(work: Work) -> str:
    """SHA-256 of all that the parts depend on, the same on every machine with the same data."""
    files: list[Any] = [
        [source.entry.model_dump(), [(f.name, f.split, f.size) for f in source.files]]
        for source in work.sources
    ]
    # Of a bucket the versions, too, are the same everywhere; times of files are not.
    for source in work.sources:
        if source.bucket is not None:
            versions = source.bucket.objects.items()
            read = {file.name for file in source.files}
            files.append(
                [
                    [name, *version]
                    for name, version in sorted(versions)
                    if name in read or name.lower().endswith(MEDIA)
                ]
            )
    inputs = [
        files,
        [(part.start, part.stop) for part in work.parts],
        work.prompt,
        work.group_by,
        dict(work.actions),
        vars(work.limits),
        work.recipe.model_dump(mode="json"),
        work.tokenizer is not None,
        work.boxes,
    ]
    return fingerprint(parts.__file__, {"asked": inputs})


def changed_since(work: Work) -> str:
    """Versions of the files, sizes and times or ETags, by which a resumed run notices a change.

    Those of local media are among them, unless there are too many.
    """
    versions: list[Any] = [[file.version for file in source.files] for source in work.sources]
    if work.recipe.modality == "vision":
        for source in work.sources:
            if source.bucket is not None:
                versions.append(sorted(source.bucket.objects.items()))
            else:
                files = stats(source.media or source.root) or []
                versions.append([file for file in files if file[0].lower().endswith(MEDIA)])
    return repr(versions)


def state(work: Work) -> str | None:
    """SHA-256 of names, sizes and times of all files that a dataset comes from, media included.

    While it is the same, the dataset is the same, and nothing has to be read. None for sources with
    media in a folder of their own, or with too many files.
    """
    states = []
    for source in work.sources:
        if source.media is not None:
            return None
        if source.bucket is not None:
            states.append([source.bucket.uri, sorted(source.bucket.objects.items())])
        else:
            if (files := stats(source.root)) is None:
                return None
            states.append([str(source.root.resolve()), files])
    base = stats(work.tokenizer) if work.tokenizer else None
    inputs = json.dumps([work_identity(work), states, str(work.tokenizer), base])
    return hashlib.sha256(inputs.encode("utf-8", "surrogateescape")).hexdigest()


def stats(folder: Path) -> list[list[Any]] | None:
    """Path, size and time of change of each file under a folder; None if they are too many."""
    listed: list[list[Any]] = []
    for place, _, files in os.walk(folder):
        if len(listed) + len(files) > MOST_FILES:
            return None
        for name in files:
            path = os.path.join(place, name)
            with suppress(OSError):
                status = os.stat(path)
                listed.append([path, status.st_size, status.st_mtime_ns])
    return sorted(listed)


def prepared(client: MlflowClient, state: str) -> Run | None:
    """The finished run that made a dataset of the same `state`: the same files and choices."""
    condition = f"tags.`{tags.SOURCES}` = '{state}' and attributes.status = 'FINISHED'"
    return next(iter(latest_runs(client, "prepare_data", condition, 1)), None)


def share(work: Work, part: str) -> Work:
    """The i-th of n shares of the parts, from `i/n`."""
    match = re.fullmatch(r"(\d+)/(\d+)", part)
    index, count = (int(group) for group in match.groups()) if match else (0, 0)
    if not 1 <= index <= count:
        raise UserError(f"--part {part!r}: expected i/n with i from 1 to n")
    return replace(work, parts=work.parts[index - 1 :: count])


def pack(work: Work, target: Path) -> None:
    """Put finished parts where they can be logged from, with a page that names what they are of."""
    target.mkdir()
    for part in work.parts:
        for ending in (".arrow", ".npz", ".npy", ".json"):
            file = work.file(part, ending)
            file.rename(target / file.name)
    with (target / PLAN).open("w") as page:
        json.dump({"identity": work_identity(work)}, page)


def work_identity(work: Work) -> str:
    return work.folder.name


def gather(work: Work, runs: Sequence[str], client: Any) -> None:
    """Fetch the parts that other runs made; after it no part is left to do.

    Raises UserError when a run's parts are of other data or choices, or when parts are missing.
    """
    for run_id in runs:
        run = upstream_run(client, run_id, "prepare_data_part", flag="--merge")
        with artifacts(client, run.info.run_id, "parts") as fetched:
            plan_of_part = json.loads((fetched / PLAN).read_text())
            if plan_of_part["identity"] != work_identity(work):
                raise UserError(
                    f"--merge: run {run_id} prepared other data, or with other choices; give "
                    "--data and all else as its share was made with, but for --part"
                )
            # The page of a part comes last: where it lies, the part is whole.
            for file in sorted(fetched.glob("[0-9]*"), key=lambda file: file.suffix == ".json"):
                shutil.move(file, work.folder / file.name)
    missing = [part for part in work.parts if not work.file(part, ".json").is_file()]
    if missing:
        raise UserError(
            f"--merge: {len(missing)} of {len(work.parts)} parts are in none of the runs"
        )


def runs_of(text: str) -> list[str]:
    """Run IDs from a JSON list, as a workflow's fan-in gives them, or from words with commas."""
    if text.lstrip().startswith("["):
        try:
            return [str(run) for run in json.loads(text)]
        except json.JSONDecodeError as error:
            raise UserError(f"--merge {text!r} is not a JSON list") from error
    return [run.strip() for run in text.split(",") if run.strip()]
