"""Commit a manifest to a git checkout."""

from __future__ import annotations

import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

from loraline.delivery.kube import name_of, read, version_of
from loraline.errors import UserError


def commit(manifest: Path, folder: Path) -> str:
    """Put the manifest into a folder of a git checkout and commit it; returns what was done.

    Raises UserError, and leaves the checkout as it was, when the folder is in no checkout, the file
    there holds changes of someone else that are not committed, or git refuses.
    """
    objects = read(manifest)
    if shutil.which("git") is None or not folder.is_dir():
        raise UserError(f"--git {folder}: git is not installed or the folder does not exist")
    target = folder.resolve() / f"{name_of(objects)}.yaml"
    git(folder, "rev-parse", "--show-toplevel")
    before = target.read_bytes() if target.exists() else None
    changed = git(folder, "status", "--porcelain", "--", str(target))
    if changed and before not in (None, manifest.read_bytes()):
        raise UserError(f"{target} has changes that are not committed; commit or discard them")
    try:
        target.write_bytes(manifest.read_bytes())
        git(folder, "add", "--", str(target))
        if not git(folder, "status", "--porcelain", "--", str(target)):
            return f"{target} is committed already"
        message = f"Serve {version_of(objects)}"
        git(folder, "commit", "--quiet", "--message", message, "--", str(target))
    except BaseException:
        if before is None:
            target.unlink(missing_ok=True)
        else:
            target.write_bytes(before)
        with suppress(UserError):
            git(folder, "reset", "--quiet", "--", str(target))
        raise
    return f"{target} is in commit {git(folder, 'rev-parse', '--short', 'HEAD')}"


def git(folder: Path, *arguments: str) -> str:
    """Run git in a folder and return its output; UserError with git's reason if it fails."""
    ended = subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False
    )
    if ended.returncode:
        lines = [line.strip() for line in (ended.stderr or ended.stdout).splitlines()]
        lines = [line for line in lines if line and not line.startswith("hint:")]
        # Git's reason comes first and its advice after it; a hook may print anything.
        errors = [line for line in lines if line.startswith(("fatal:", "error:"))][:1]
        reason = " ".join(errors or lines)[:300] or "no reason given"
        raise UserError(f"--git {folder}: git {arguments[0]} failed: {reason}")
    return ended.stdout.strip()
