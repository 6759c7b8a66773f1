"""Documentation and docstrings are written in plain English: the words of dialect.yaml stay out."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
WORDS: dict[str, str] = yaml.safe_load((ROOT / "tests" / "dialect.yaml").read_text())
VAGUE = re.compile(
    "found|told|one|own|kind|take|hold|given|made|said|what|way|several|asked|wanted|seen|shown"
)
"""Names that say nothing of what they hold."""

TERMS = {"runner": {"kind"}, "workflows": {"kind"}}
"""Names that are terms in a folder: an object of Kubernetes has a kind, and a token of a lexer."""

FOLDERS = ("bench", "gateway", "loraline", "loraline_cli", "runner", "steps", "workflows")
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


def slips(text: str) -> list[str]:
    """The lines of a text that hold one of the words, each with what to write instead."""
    return [
        f"{number}: {result[0]!r}, write: {better}"
        for number, line in enumerate(text.splitlines(), 1)
        for pattern, better in WORDS.items()
        if (result := re.search(pattern, line))
    ]


def docstrings(source: str) -> Iterator[str]:
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, documented):
            yield ast.get_docstring(node) or ""


def names(source: str) -> Iterator[str]:
    """Names that a module gives to functions, classes, parameters, variables and attributes."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case (
                ast.FunctionDef(name=name)
                | ast.AsyncFunctionDef(name=name)
                | ast.ClassDef(name=name)
            ):
                yield name
            case ast.arg(arg=name) | ast.Name(id=name, ctx=ast.Store()):
                yield name
            case ast.Attribute(attr=name, ctx=ast.Store()):
                yield name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_is_in_plain_words(page: Path) -> None:
    assert slips(page.read_text()) == []


@pytest.mark.parametrize("folder", FOLDERS)
def test_docstrings_are_in_plain_words(folder: str) -> None:
    wrong = {
        str(file.relative_to(ROOT)): result
        for file in sorted((ROOT / folder).rglob("*.py"))
        if (result := [slip for text in docstrings(file.read_text()) for slip in slips(text)])
    }
    assert wrong == {}


@pytest.mark.parametrize(
    "sentence",
    [
        "The server is told of such an adapter.",
        "Rows are counted out by a check.",
        "make submit runs the line on a cluster.",
    ],
)
def test_the_words_are_noticed(sentence: str) -> None:
    assert slips(sentence)


@pytest.mark.parametrize("folder", FOLDERS)
def test_names_say_what_they_hold(folder: str) -> None:
    vague = {
        str(file.relative_to(ROOT)): result
        for file in sorted((ROOT / folder).rglob("*.py"))
        if (
            result := set(filter(VAGUE.fullmatch, names(file.read_text())))
            - TERMS.get(folder, set())
        )
    }
    assert vague == {}


@pytest.mark.parametrize(
    "source",
    ["def told(): ...", "def f(kind): ...", "made = 1", "self.found = 1", "[one for one in rows]"],
)
def test_vague_names_are_noticed(source: str) -> None:
    assert any(map(VAGUE.fullmatch, names(source)))
