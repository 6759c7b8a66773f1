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


def test_a_log_gets_a_line_at_the_begin_each_minute_and_at_the_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock)
    with progress.bar("train", 100) as advance:
        for step in range(1, 101):
            clock = 2.0 * step
            advance(1, f"loss {step / 100:.2f}")

    assert capsys.readouterr().err.splitlines() == [
        "train: 0 of 100",
        "train: 30 of 100, 0:02:20 left, loss 0.30",
        "train: 60 of 100, 0:01:20 left, loss 0.60",
        "train: 90 of 100, 0:00:20 left, loss 0.90",
        "train: 100 of 100, done in 0:03:20, loss 1.00",
    ]


def test_the_time_left_counts_from_where_a_resumed_training_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock)
    with progress.bar("train", 100) as advance:
        advance(80, "")
        clock = 60.0
        advance(10, "")

    assert capsys.readouterr().err.splitlines()[1:] == ["train: 90 of 100, 0:01:00 left"]
