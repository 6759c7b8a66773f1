"""Break the code in many places, one at a time, and say which breakages no test notices.

    python tests/mutants/run.py [NAME ...]        NAME is a list beside this file, such as packing
    python tests/mutants/run.py packing --only 3-9         these of its mutants, counted from 1

Each list names a module, the tests that are about it, and texts to put in the place of others. A
mutant is applied to a copy of the tree in a temporary folder. It is noticed when a test fails, or
when the tests take longer than LIMIT. Exit code 1 tells of tests that fail without a mutant, of a
mutant whose text is no longer in the module exactly once, of one that nothing notices and nobody
explains, or of fewer than SHARE noticed.
"""

from __future__ import annotations

import importlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from pydantic import BaseModel, ConfigDict

ROOT = Path(__file__).parents[2]
LIMIT = 180
"""Seconds after which the tests of a mutant are ended."""

SHARE = 0.9
"""Share of all mutants that the tests have to notice."""


class Mutant(BaseModel):
    """One breakage."""

    model_config = ConfigDict(extra="forbid")

    old: str
    """Text that stands once in the module."""

    new: str
    survives: str = ""
    """Why no test can notice it, or need not."""


class Mutants(BaseModel):
    """The breakages of one module."""

    model_config = ConfigDict(extra="forbid")

    file: str
    """The module; or the folder of those in which the texts stand."""

    tests: list[str]
    imports: list[str] = []
    """Libraries that the tests need: imported once, since every run is a fork of this process."""

    mutants: list[Mutant]

    def modules(self, tree: Path) -> list[Path]:
        """The files that the breakages are in."""
        path = tree / self.file
        return sorted(path.glob("*.py")) if path.is_dir() else [path]

    def faults(self, tree: Path) -> Iterator[str]:
        """What is wrong with the list itself, for the modules' text of today."""
        source = "".join(module.read_text() for module in self.modules(tree))
        for number, mutant in enumerate(self.mutants, 1):
            count = source.count(mutant.old)
            if count != 1:
                yield f"{self.file} mutant {number} no longer applies: {count} x {mutant.old!r}"
            elif mutant.old == mutant.new:
                yield f"{self.file} mutant {number} changes nothing"


def load(name: str) -> Mutants:
    """The list of that name beside this file."""
    text = Path(__file__).with_name(f"{name}.yaml").read_text()
    return Mutants.model_validate(yaml.safe_load(text))


def names() -> list[str]:
    return sorted(path.stem for path in Path(__file__).parent.glob("*.yaml"))


def copy_of_the_tree(target: Path) -> None:
    """What git tracks or would track; no bytecode, which could be of another mutant."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file() and not (ROOT / name).is_symlink():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)


def passes(tree: Path, tests: list[str], log: Path) -> bool:
    """Whether the tests pass in a fork of this process; their output is in `log`."""
    child = os.fork()
    if child == 0:
        os.setsid()
        with log.open("wb") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        os.chdir(tree)
        sys.path.insert(0, str(tree))
        os._exit(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests]))
    until = time.monotonic() + LIMIT
    while time.monotonic() < until:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status) == 0
        time.sleep(0.05)
    # It may have ended in the meantime.
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def run(name: str, tree: Path, only: range) -> tuple[int, int, int]:
    """Mutants of a list, those that are noticed, and those of the rest that nobody explains."""
    listed, log = load(name), tree / "mutant.log"
    for library in listed.imports:
        importlib.import_module(library)
    if faults := list(listed.faults(tree)):
        raise click.ClickException("\n".join(faults))
    if not passes(tree, listed.tests, log):
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-30:])
        raise click.ClickException(f"{name}: the tests fail without a mutant\n{tail}")
    noticed = unexplained = 0
    chosen = [(n, mutant) for n, mutant in enumerate(listed.mutants, 1) if n in only]
    for number, mutant in chosen:
        module = next(m for m in listed.modules(tree) if mutant.old in m.read_text())
        source = module.read_text()
        module.write_text(source.replace(mutant.old, mutant.new))
        survived = passes(tree, listed.tests, log)
        module.write_text(source)
        if survived:
            unexplained += not mutant.survives
            reason = mutant.survives or "and nobody explains it"
            click.echo(f"  {name} {number}: not noticed: {reason}")
            click.echo(f"    - {mutant.old!r}\n    + {mutant.new!r}")
        else:
            noticed += 1
            if mutant.survives:
                click.echo(f"  {name} {number}: is noticed now; take its explanation away")
    return len(chosen), noticed, unexplained


class Numbers(click.ParamType):
    """`3` or `3-9`."""

    name = "FIRST-LAST"

    def convert(self, value: Any, param: Any, ctx: Any) -> range:
        first, _, last = str(value).partition("-")
        try:
            return range(int(first), int(last or first) + 1)
        except ValueError:
            self.fail(f"{value!r} is not like 3 or 3-9", param, ctx)


@click.command()
@click.argument("lists", nargs=-1, type=click.Choice(names()))
@click.option("--only", type=Numbers(), default="1-9999", help="These mutants of each list.")
def main(lists: tuple[str, ...], only: range) -> None:
    """Say which mutants no test notices; of all lists unless some are named."""
    sys.dont_write_bytecode = True
    count = noticed = unexplained = 0
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        tree = Path(folder)
        copy_of_the_tree(tree)
        os.environ |= {"PYTHONPATH": folder, "PYTHONDONTWRITEBYTECODE": "1"}
        for name in lists or names():
            begun = time.monotonic()
            total, seen, loose = run(name, tree, only)
            count, noticed, unexplained = count + total, noticed + seen, unexplained + loose
            took = time.monotonic() - begun
            click.echo(f"{name}: {seen} of {total} mutants are noticed, in {took:.0f} s")
    if not count:
        raise click.UsageError("--only names no mutant of these lists")
    click.echo(f"{noticed} of {count} mutants are noticed ({noticed / count:.0%})")
    sys.exit(1 if unexplained or noticed < SHARE * count else 0)


if __name__ == "__main__":
    main()
