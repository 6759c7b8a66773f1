"""Fingerprints: a step's inputs, settings and code in one SHA-256, so that finished work is reused.

A step's code is its own file and the packages of the library that it imports, and those that they
import, templates included. An edit elsewhere leaves its finished runs valid.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LIBRARY = Path(__file__).parents[1]

SOURCES = (".py", ".j2")
"""Files of a package that decide what a step does."""


def fingerprint(step_file: str, inputs: Mapping[str, Any]) -> str:
    """SHA-256 over a step's inputs, its settings and the code that it runs."""
    digest = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode())
    digest.update(code_digest(step_file).encode())
    return digest.hexdigest()


def code_digest(step_file: str) -> str:
    """SHA-256 over a step's own source and the packages that it imports."""
    step = Path(step_file)
    digest = hashlib.sha256(step.name.encode() + step.read_bytes())
    for source in sources(step):
        digest.update(source.relative_to(LIBRARY).as_posix().encode() + source.read_bytes())
    return digest.hexdigest()


def sources(step: Path) -> list[Path]:
    """The library's files that a step's code comes from, sorted."""
    reached: set[Path] = set()
    waiting = {step}
    while waiting:
        imported = {part for file in waiting for part in imported_parts(file)}
        waiting = {file for part in imported for file in files_of(part)} - reached
        reached |= waiting
    return sorted(reached)


def imported_parts(file: Path) -> tuple[str, ...]:
    """Names of the library's packages and root modules that a Python file imports."""
    return parts_in(file.read_bytes()) if file.suffix == ".py" else ()


@functools.lru_cache(maxsize=1024)
def parts_in(source: bytes) -> tuple[str, ...]:
    """The same of a file's content; kept, since to parse the library takes a tenth of a second."""
    parts = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            package, *submodules = node.module.split(".")
            if package == LIBRARY.name:
                parts += submodules[:1] or [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            names = (alias.name.split(".") for alias in node.names)
            parts += [name[1] for name in names if name[0] == LIBRARY.name and len(name) > 1]
    return tuple(parts)


def files_of(part: str) -> list[Path]:
    """The files of one of the library's packages, or of a module at its root."""
    package = LIBRARY / part
    if not package.is_dir():
        return [package.with_suffix(".py")]
    return [file for file in package.rglob("*") if file.suffix in SOURCES]
