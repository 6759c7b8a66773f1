"""How long a training takes and at what pace, by a clock that the test moves."""

from __future__ import annotations

import time

import pytest

from loraline.training.clock import Clock


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which is its last entry."""
    times = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: times[-1])
    return times


def test_the_pace_counts_from_the_beginning_of_the_training(at: list[float]) -> None:
    clock = Clock()
    # The trainer is built: weights are loaded, rows are packed.
    at.append(160.0)
    with clock.running():
        at.append(170.0)
        assert clock.pace(1000) == 100
        with clock.paused():
            at.append(190.0)
        at.append(200.0)
        assert clock.pace(3000) == 200
    assert clock.seconds() == 20
