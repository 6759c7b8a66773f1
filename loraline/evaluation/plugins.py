"""Metrics of a user's own: a score for each row, from a file or from an installed package.

A module with a function `score(answer, reference)` that gives a number from 0 to 1. The metric is
the mean over the rows; `HIGHER_IS_BETTER = False` turns it round.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

import numpy as np

from loraline.errors import UserError
from loraline.evaluation import metrics
from loraline.profiles.limits import metric_name
from loraline.tracking import tags

GROUP = "loraline.metrics"
"""Entry points of installed packages, each a module with a metric."""


@dataclass(frozen=True)
class Plugin:
    """A metric that a profile names."""

    name: str
    score: Callable[[str, str], float]
    higher_is_better: bool
    digest: str
    """SHA-256 of its source: an edited metric measures anew."""

    def measure(self, answers: Sequence[str], references: Sequence[str]) -> metrics.Metric:
        """The mean score over rows. UserError where a score is no number from 0 to 1."""
        scores = np.array(
            [
                self.of_row(row, *pair)
                for row, pair in enumerate(zip(answers, references, strict=True))
            ]
        )
        return metrics.mean(scores, higher_is_better=self.higher_is_better)

    def of_row(self, row: int, answer: str, reference: str) -> float:
        try:
            value = float(self.score(answer, reference))
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            raise UserError(f"metric {self.name} failed on held-out row {row}: {reason}") from error
        if not 0 <= value <= 1:
            raise UserError(
                f"metric {self.name} gave {value:g} for held-out row {row}; a score is from 0 to 1"
            )
        return value


def load(entries: Sequence[str]) -> list[Plugin]:
    """The metrics that a profile names: files ending with .py, or entry points of GROUP."""
    return [plugin(entry) for entry in entries]


def plugin(entry: str) -> Plugin:
    """The metric of one entry; UserError if it has no function `score`."""
    module = from_file(Path(entry)) if entry.endswith(".py") else from_package(entry)
    score = getattr(module, "score", None)
    if not callable(score):
        raise UserError(f"metric {entry} has no function score(answer, reference)")
    source = inspect.getsource(module)
    return Plugin(
        metric_name(entry),
        score,
        bool(getattr(module, "HIGHER_IS_BETTER", True)),
        hashlib.sha256(source.encode()).hexdigest(),
    )


def from_file(path: Path) -> ModuleType:
    """The module in a file, which is run as it is: it is the user's own code."""
    spec = importlib.util.spec_from_file_location(f"metric_{path.stem}", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise UserError(f"metric {path}: there is no such file")
    module = importlib.util.module_from_spec(spec)
    # A data class looks up the module in which it stands.
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[spec.name]
        raise UserError(f"metric {path}: {type(error).__name__}: {error}") from error
    return module


def from_package(name: str) -> ModuleType:
    """The module behind an entry point of GROUP; UserError if there is none or it fails."""
    points = {point.name: point for point in entry_points(group=GROUP)}
    if name not in points:
        installed = ", ".join(sorted(points)) or "none"
        raise UserError(
            f"metric {name!r} is neither a file ending with .py nor an installed package's "
            f"(entry points of {GROUP}: {installed})"
        )
    try:
        module = points[name].load()
    except Exception as error:
        raise UserError(f"metric {name}: {type(error).__name__}: {error}") from error
    if not isinstance(module, ModuleType):
        raise UserError(f"metric {name}: the entry point names no module")
    return module


def as_tag(plugins: Sequence[Plugin]) -> str:
    """Names and directions for an evaluation's tag: who judges need not have the code."""
    return json.dumps({plugin.name: plugin.higher_is_better for plugin in plugins})


def directions(run_tags: Mapping[str, str]) -> dict[str, bool]:
    """Whether higher is better, by name, for the user's metrics that an evaluation measured."""
    measured: dict[str, bool] = json.loads(run_tags.get(tags.METRICS, "{}"))
    return measured
