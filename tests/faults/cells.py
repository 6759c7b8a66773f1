"""What a fault must lead to: a cell of the fault matrix, declared beside the test that runs it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cell:
    """One fault, met by one step at one moment, and how the step has to end."""

    fault: str
    step: str
    moment: str
    exit_code: int
    sentence: str = ""
    """A part of what the step says on standard error; empty where it has nothing to say."""

    left: str = ""
    """What may stay behind."""

    rerun: str = ""
    """What a plain repetition does."""

    def __str__(self) -> str:
        return f"{self.fault}, {self.step}, {self.moment}"
