"""Progress reaches the file that a workflow reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from loraline import progress


def test_the_file_of_the_workflow_gets_what_is_done_of_what_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "progress"
    monkeypatch.setenv("ARGO_PROGRESS_FILE", str(file))
    seen = []
    with progress.bar("rows", 5) as advance:
        for _ in range(3):
            advance(2, "")
            seen.append(file.read_text())

    assert seen == ["2/5\n", "4/5\n", "5/5\n"]


def test_without_a_workflow_no_file_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ARGO_PROGRESS_FILE", raising=False)
    monkeypatch.chdir(tmp_path)
    with progress.bar("rows", 1) as advance:
        advance(1, "")

    assert list(tmp_path.iterdir()) == []
