"""The allocator is set before CUDA begins, unless the environment has set it."""

from __future__ import annotations

import os

import pytest

from loraline.training import allocator


@pytest.mark.parametrize("name", allocator.SETTINGS)
def test_what_the_environment_says_counts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for setting in allocator.SETTINGS:
        monkeypatch.delenv(setting, raising=False)
    monkeypatch.setenv(name, "max_split_size_mb:64")
    allocator.follow_allocated()
    assert {n: os.environ[n] for n in allocator.SETTINGS if n in os.environ} == {
        name: "max_split_size_mb:64"
    }


def test_segments_grow_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    for setting in allocator.SETTINGS:
        monkeypatch.delenv(setting, raising=False)
    # Set and taken back by monkeypatch, whatever the function does.
    monkeypatch.setenv(allocator.SETTING, "")
    monkeypatch.delenv(allocator.SETTING)
    allocator.follow_allocated()
    assert os.environ[allocator.SETTING] == "expandable_segments:True"
    monkeypatch.delenv(allocator.SETTING)
