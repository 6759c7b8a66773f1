"""The page's words in each language; English is the key, and stays where there is no other."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import yaml

PATHS = {"de": "/de/", "en": "/"}
"""Where each language is; the root comes last, since it takes every path."""

NAMES = {"en": "English", "de": "Deutsch"}


@cache
def table(language: str) -> dict[str, str]:
    if language == "en":
        return {}
    texts: dict[str, str] = yaml.safe_load((Path(__file__).parent / f"{language}.yaml").read_text())
    return texts


def of(language: str) -> Callable[[str], str]:
    return lambda text: table(language).get(text, text)
