"""docs/architecture.md has every module in its package, and answers where things are."""

from __future__ import annotations

import ast
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
    """Folders that hold code of ours: packages of Python, and folders of scripts.

    A logged model under mlruns/ has packages too, in folders that are none.
    """
    tops = [init.parent for init in ROOT.glob("*/__init__.py") if init.parent.name != "tests"]
    packages = [init.parent for top in tops for init in top.rglob("__init__.py")]
    return sorted({str(path.relative_to(ROOT)) for path in packages} | {*SCRIPTS, "workflows"})


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


LONGEST = {"module": 400, "class": 200, "step": 220}
"""Lines. What is longer is split where there is a seam, or says why not in its docstring."""

REASON = "It is long because"
"""How such a docstring begins that sentence."""


def too_long(source: str, *, is_step: bool = False) -> list[str]:
    """A module and its classes with their lines, where they are too many without a reason."""
    module = ast.parse(source)
    size = "step" if is_step else "module"
    measured = [(size, len(source.splitlines()), size, ast.get_docstring(module))]
    for node in ast.walk(module):
        if isinstance(node, ast.ClassDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            measured.append((node.name, lines, "class", ast.get_docstring(node)))
    return [
        f"{name}: {lines} lines"
        for name, lines, size, docstring in measured
        if lines > LONGEST[size] and REASON not in (docstring or "")
    ]


def test_nothing_is_too_long_to_be_read_at_once() -> None:
    modules = [path for package in set(MAP) - {"bench"} for path in (ROOT / package).glob("*.py")]
    lengths = {
        str(path.relative_to(ROOT)): too_long(path.read_text(), is_step=path.parent.name == "steps")
        for path in modules
    }

    assert {path: names for path, names in lengths.items() if names} == {}


def test_what_is_too_long_is_named_unless_it_says_why() -> None:
    grown = "class Grown:\n" + "    x = 1\n" * 200

    assert too_long(grown) == ["Grown: 201 lines"]
    assert too_long(grown.replace("    x = 1\n", f'    """{REASON} of its table."""\n', 1)) == []
    assert too_long("x = 1\n" * 221, is_step=True) == ["step: 221 lines"]
    assert too_long("x = 1\n" * 401) == ["module: 401 lines"]
