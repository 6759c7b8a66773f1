"""What the images copy is there for them: the ignore file lets it through."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
IMAGES = sorted((ROOT / "images").glob("*.Dockerfile"))
LET_THROUGH = [
    line.removeprefix("!")
    for line in (ROOT / ".dockerignore").read_text().splitlines()
    if line.startswith("!")
]


def copied(file: Path) -> set[str]:
    """Sources of an image's COPY lines, without those of another stage."""
    lines = re.findall(r"^COPY (?!--from)(.+)$", file.read_text(), re.MULTILINE)
    return {source for line in lines for source in line.split()[:-1]}


@pytest.mark.parametrize("file", IMAGES, ids=lambda file: file.stem)
def test_what_an_image_copies_is_there_and_let_through(file: Path) -> None:
    for source in copied(file):
        assert (ROOT / source).exists(), source
        assert any(source == path or source.startswith(f"{path}/") for path in LET_THROUGH), source


def test_what_is_let_through_is_copied() -> None:
    wanted = set().union(*map(copied, IMAGES))
    assert set(LET_THROUGH) <= wanted
