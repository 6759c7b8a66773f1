"""Files that visitors download; each is kept as long as a download takes."""

from __future__ import annotations

import tempfile
import time
from contextlib import suppress
from pathlib import Path

KEPT_S = 1800
"""Seconds; Gradio hands out a copy, which it sweeps itself."""


class Downloads:
    """A folder of this process; what is old is removed when something new comes."""

    def __init__(self) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="loraline-page-")

    def write(self, name: str, content: bytes) -> Path:
        """A new file of that name in a folder that nobody can guess."""
        self.sweep()
        path = Path(tempfile.mkdtemp(dir=self.folder.name)) / name
        path.write_bytes(content)
        return path

    def sweep(self) -> None:
        for path in Path(self.folder.name).glob("*/*"):
            # Another thread may remove the same file.
            with suppress(FileNotFoundError):
                if path.stat().st_mtime < time.time() - KEPT_S:
                    path.unlink()
                    path.parent.rmdir()

    def close(self) -> None:
        self.folder.cleanup()
