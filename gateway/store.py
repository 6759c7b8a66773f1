"""Folders of jobs and sessions, by caller. Writes are atomic; old folders are swept."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from gateway.errors import Problem
from gateway.keys import Caller

ID = re.compile(r"[0-9a-f]{32}")
MEDIA = "media"


class Store:
    """`root/OWNER/ID/`, where OWNER is a digest of the caller's name and ID random.

    Replicas may share the folder: what is changed is locked, what is read was written whole.
    """

    def __init__(self, root: Path, document: str) -> None:
        self.root = root
        self.document = document
        root.mkdir(parents=True, exist_ok=True, mode=0o700)

    def owner(self, caller: Caller) -> Path:
        return self.root / hashlib.sha256(caller.name.encode()).hexdigest()[:32]

    def create(self, caller: Caller, document: dict[str, Any]) -> Path:
        """A new folder with its document, to which the ID is added."""
        name = uuid.uuid4().hex
        folder = self.owner(caller) / name
        making = self.owner(caller) / f".{name}"
        try:
            (making / MEDIA).mkdir(parents=True, mode=0o700)
            write(making / self.document, {"id": name, **document})
            making.rename(folder)
        except OSError:
            shutil.rmtree(making, ignore_errors=True)
            raise
        return folder

    def folder(self, caller: Caller, name: str) -> Path:
        """The caller's folder of that ID; Problem of 404 if there is none or another has it."""
        folder = self.owner(caller) / name
        if not ID.fullmatch(name) or not (folder / self.document).is_file():
            raise missing()
        return folder

    def read(self, folder: Path) -> dict[str, Any]:
        try:
            document: dict[str, Any] = json.loads((folder / self.document).read_bytes())
        except FileNotFoundError:
            raise missing() from None
        return document

    def of(self, caller: Caller) -> list[Path]:
        owner = self.owner(caller)
        return sorted(owner.glob(f"[0-9a-f]*/{self.document}")) if owner.is_dir() else []

    def all(self) -> list[Path]:
        return [path.parent for path in self.root.glob(f"*/[0-9a-f]*/{self.document}")]

    @contextmanager
    def locked(self, folder: Path, *, wait: bool = True) -> Iterator[bool]:
        """Lock the folder against other replicas; yields whether this one got the lock."""
        try:
            file = (folder / "lock").open("w")
        except FileNotFoundError:
            raise missing() from None
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
                return
            yield True

    def change(self, folder: Path, change: Any) -> dict[str, Any]:
        """Apply `change` to the document and write it."""
        with self.locked(folder):
            document = self.read(folder)
            change(document)
            document["changed"] = time.time()
            write(folder / self.document, document)
        return document

    def remove(self, folder: Path) -> None:
        gone = folder.with_name(f".{folder.name}")
        try:
            folder.rename(gone)
        except FileNotFoundError:
            raise missing() from None
        shutil.rmtree(gone, ignore_errors=True)

    def sweep(self, hours: float) -> None:
        """Remove folders unchanged for this long, and what a killed process left unfinished.

        A job at work holds its folder's lock, and writes its document only at its end: it stays.
        """
        oldest = time.time() - hours * 3600
        for folder in self.all():
            # A caller or another replica may remove it first.
            with suppress(FileNotFoundError, Problem):
                if (folder / self.document).stat().st_mtime < oldest:
                    with self.locked(folder, wait=False) as is_free:
                        if is_free:
                            self.remove(folder)
        for half in self.root.glob("*/.[0-9a-f]*"):
            with suppress(FileNotFoundError):
                if half.stat().st_mtime < time.time() - 3600:
                    shutil.rmtree(half, ignore_errors=True)


def missing() -> Problem:
    return Problem(404, "not_found", "There is no such thing for this key.")


def write(path: Path, document: dict[str, Any]) -> None:
    """Replace a file; a full disk leaves the old one."""
    new = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        new.write_bytes(encoded(document))
        os.replace(new, path)
    except OSError:
        new.unlink(missing_ok=True)
        raise


def encoded(document: dict[str, Any]) -> bytes:
    return json.dumps(document, ensure_ascii=False).encode()


def add_medium(folder: Path, content: bytes, sha256: str) -> None:
    """Store a medium once, under its digest."""
    path = folder / MEDIA / sha256
    if path.exists():
        return
    new = path.with_name(f".{sha256}.{uuid.uuid4().hex[:8]}")
    try:
        new.write_bytes(content)
        os.replace(new, path)
    except OSError:
        new.unlink(missing_ok=True)
        raise


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
