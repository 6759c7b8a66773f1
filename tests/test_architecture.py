"""docs/architecture.md has every module in its package, and answers where things are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/architecture.md").read_text()
LINES = re.findall(r"^\| `([\w/]+)/` \| [^|]+ \|([^|]*)\|$", PAGE, re.MULTILINE)
MAP = {package: set(re.findall(r"`(\w+)`", modules)) for package, modules in LINES}
SCRIPTS = ("bench", "steps")
"""Folders of programs that do not import one another; the map names none of them."""


def folders() -> list[str]:
    """Folders that hold code of ours: packages of Python, and folders of scripts."""
    packages = [path.parent for path in ROOT.glob("*/**/__init__.py")]
    named = {str(path.relative_to(ROOT)) for path in packages}
    hidden = {name for name in named if name.startswith((".", "tests", "outputs"))}
    return sorted((named - hidden) | {"bench", "steps", "workflows"})


def test_the_map_has_every_package_once_and_no_other() -> None:
    assert sorted(package for package, _ in LINES) == folders()


@pytest.mark.parametrize("package", [name for name in sorted(MAP) if name not in SCRIPTS])
def test_every_module_is_in_the_package_that_the_map_gives_it(package: str) -> None:
    modules = {path.stem for path in (ROOT / package).glob("*.py")} - {"__init__", "__main__"}

    assert modules == MAP[package], (
        f"bring the line of {package}/ in docs/architecture.md up to date"
    )


def test_each_package_says_in_one_line_what_it_is_for() -> None:
    for package in MAP:
        init = ROOT / package / "__init__.py"
        if init.exists():
            assert re.match(r'"""[^"\n]{10,}\.', init.read_text()), package


QUESTIONS = re.findall(r"^\| (.+\?) \| (.+) \|$", PAGE.partition("Where is …?")[2], re.MULTILINE)


@pytest.mark.parametrize(("question", "answer"), QUESTIONS)
def test_where_something_is_asked_the_answer_is_there(question: str, answer: str) -> None:
    files = re.findall(r"`([\w/.]+)`", answer)

    assert files
    for file in files:
        assert (ROOT / file).is_file(), file


def test_twenty_questions_are_answered() -> None:
    assert len(QUESTIONS) >= 20
