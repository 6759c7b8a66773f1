"""The person who runs this process."""

from __future__ import annotations

import getpass
import os


def name() -> str:
    """Their name, or their number where a container knows no name for it."""
    try:
        return os.environ.get("USER") or getpass.getuser()
    # Python 3.13 made the KeyError of an unknown number an OSError.
    except (KeyError, OSError):
        return f"somebody without a name (user ID {os.getuid()})"
