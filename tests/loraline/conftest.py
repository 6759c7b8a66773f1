"""Datasets prepared without a step: sources through checks to a merged dataset."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from multiprocessing import util
from pathlib import Path
from typing import Any

import pytest
from made_data import profile

from loraline.data import checks, dataset, pool, workplace
from loraline.data.merged import Dataset
from loraline.data.reading import media

Prepare = Callable[..., Dataset]


@pytest.fixture
def prepare(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Prepare]:
    """Prepare sources and return what was merged; parts stay until the test ends."""
    # This process has one folder for its workers. Made in a test's folder, it would go with that
    # test, and be missed when the process ends.
    util.get_temp_dir()
    with ExitStack() as stack:

        def run(
            *data: str | Path,
            modality: str = "text",
            on: tuple[str, ...] = (),
            limit: tuple[str, ...] = (),
            prompt: str | None = None,
            group_by: str = "answer",
            size: int = 2**20,
            workers: int = 1,
            stop: bool = False,
            encoding: str = "",
            **changes: Any,
        ) -> Dataset:
            # A folder of its own, or a repeated call would meet the first one's lock.
            folder = tempfile.mkdtemp(dir=tmp_path_factory.mktemp("tmp"))
            monkeypatch.setattr("tempfile.tempdir", folder)
            for name, value in (("TEXT_PART", size), ("VISION_PART", size)):
                monkeypatch.setattr(workplace, name, value)
            if workers > 1:
                monkeypatch.setattr(pool, "PARALLEL_FROM", 0)
            recipe = profile(modality, **changes)
            uris = tuple(map(str, data))
            request = workplace.Request(
                uris, prompt, group_by, checks.policy(on), media.parse_limits(limit), encoding
            )
            place = stack.enter_context(workplace.folder(request, recipe))
            work, _ = workplace.plan(request, recipe, None, place)
            return dataset.merge(dataset.read(work, workers, stop_at_failure=stop))

        yield run
