"""What a fault must lead to: a cell of the fault matrix, declared before it is run."""

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
    """What may stay behind, with commas between."""

    rerun: str = ""
    """What a plain repetition does: a part of its sentence where it does not end with 0."""

    rerun_code: int = 0

    def __str__(self) -> str:
        return f"{self.fault}, {self.step}, {self.moment}"
