"""Progress reaches the file that a workflow reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from loraline.process import progress


def test_the_file_of_the_workflow_gets_what_is_done_of_what_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "progress"
    monkeypatch.setenv("ARGO_PROGRESS_FILE", str(file))
    seen = []
    with progress.bar("rows", 4, main=True) as advance:
        for _ in range(2):
            advance(2, "")
            seen.append(file.read_text())

    assert seen == ["2/4", "4/4"]


def test_a_bar_beside_the_main_one_leaves_the_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "progress"
    monkeypatch.setenv("ARGO_PROGRESS_FILE", str(file))
    with progress.bar("rows", 1) as advance:
        advance(1, "")

    assert not file.exists()


def test_without_a_workflow_no_file_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ARGO_PROGRESS_FILE", raising=False)
    monkeypatch.chdir(tmp_path)
    with progress.bar("rows", 1) as advance:
        advance(1, "")

    assert list(tmp_path.iterdir()) == []
