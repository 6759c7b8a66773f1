"""Write the fault matrix of a run, and its random kills, into docs/reliability.md.

export LORALINE_FAULT_OUTCOMES=outcomes.jsonl
pytest -m slow tests/faults/test_matrix.py tests/faults/test_random_kills.py
python tests/faults/write_table.py outcomes.jsonl
"""

from __future__ import annotations

import json
import re
import sys
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import table
from cells import Cell

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
BEGIN = "<!-- the table of tests/faults/write_table.py begins -->\n"
END = "<!-- the table ends -->\n"

Outcome = dict[str, Any]


def latest(lines: Iterable[str]) -> dict[tuple[str, str, str], Outcome]:
    """The last outcome of each cell that the table declares."""
    declared = {(cell.fault, cell.step, cell.moment) for cell in table.CELLS}
    result = {}
    for outcome in map(json.loads, lines):
        key = outcome.get("fault"), outcome.get("step"), outcome.get("moment")
        if key in declared:
            result[key] = outcome
    return result


def random_kills(lines: Iterable[str]) -> str:
    """How many random kills there were, and how many of them a plain repetition made good."""
    kills = {}
    for outcome in map(json.loads, lines):
        if "kill" in outcome:
            kills[outcome["seed"], outcome["kill"]] = outcome
    seeds = {seed for seed, _ in kills}
    good = [kill for kill in kills.values() if kill["same"] and not kill["unswept"]]
    times = counted(str(kill["step"]) for kill in kills.values())
    return (
        f"SIGKILL at a random moment ({len(seeds)} seeds; {times}): after {len(good)} of "
        f"{len(kills)} kills a plain repetition ended as a step that met no fault."
    )


def markdown(outcomes: dict[tuple[str, str, str], Outcome], kills: str) -> str:
    """One row for a fault and a step, and what it led to at its moments."""
    lines = [
        f"{len(outcomes)} of {len(table.CELLS)} cells were run; {summary(outcomes)}.",
        "",
        kills,
        "",
        "| fault | step | moments | exit code | it says | may be left | run again |",
        "|---|---|---|---|---|---|---|",
    ]
    groups: dict[tuple[str, str], list[Outcome]] = {}
    for cell in table.CELLS:
        key = cell.fault, cell.step, cell.moment
        if key in outcomes:
            groups.setdefault(key[:2], []).append(outcomes[key])
    for (fault, step), group in groups.items():
        codes = counted(str(outcome["exit_code"]) for outcome in group)
        said = sorted({sentence(outcome) for outcome in group} - {""})
        left = sorted({thing for outcome in group for thing in outcome["left"]} - {"outputs"})
        reruns = counted(str(outcome["rerun_code"]) for outcome in group)
        cells = (fault, step, str(len(group)), codes, "; ".join(said[:2]), ", ".join(left), reruns)
        lines.append("| " + " | ".join(text.replace("|", "/") for text in cells) + " |")
    return "\n".join(lines) + "\n"


def summary(outcomes: dict[tuple[str, str, str], Outcome]) -> str:
    """How many ended as declared, which did not, and which faults have cells that were not run."""
    otherwise, not_run = [], []
    for cell in table.CELLS:
        outcome = outcomes.get((cell.fault, cell.step, cell.moment))
        if outcome is None:
            not_run.append(cell.fault)
        elif not as_declared(cell, outcome):
            otherwise.append(str(cell))
    parts = [f"{len(outcomes) - len(otherwise)} ended as declared"]
    if otherwise:
        parts.append(f"otherwise: {'; '.join(otherwise)}")
    if not_run:
        missing = (f"{fault} ({not_run.count(fault)})" for fault in dict.fromkeys(not_run))
        parts.append(f"not run: {', '.join(missing)}")
    return "; ".join(parts)


def as_declared(cell: Cell, outcome: Outcome) -> bool:
    """Whether a cell ended as `Line.play` asserts."""
    again = outcome["rerun_code"] == 0
    return bool(
        (outcome["exit_code"], outcome["rerun_code"]) == (cell.exit_code, cell.rerun_code)
        and {*outcome["left"]} <= {*cell.left.split(", ")}
        and not (outcome["secrets"] or outcome["traceback"] or outcome["unswept"])
        and outcome["same"] == again
    )


def counted(codes: Iterable[str]) -> str:
    """Exit codes, each with how often it came where there are several."""
    listed = list(codes)
    if len(set(listed)) == 1:
        return listed[0]
    return ", ".join(f"{code} ({listed.count(code)})" for code in sorted(set(listed)))


def sentence(outcome: Outcome) -> str:
    """What the step said when it did not end with 0, without what differs between two runs."""
    if outcome["exit_code"] in (0, -9):
        return ""
    said = str(outcome["sentence"]).partition(": ")[2]
    said = re.sub(r"(?<![0-9a-f])[0-9a-f]{32,64}(?![0-9a-f])", "…", said)
    said = re.sub(r"\btmp/tmp\w{8}\b", "tmp/…", said)
    said = re.sub(r"(sqlite:///|/)[\w./-]*/place/", "", said)
    said = re.sub(r"127\.0\.0\.1:\d+", "HOST", said)
    said = re.sub(r"process \d+", "process N", said)
    return textwrap.shorten(said, 120, placeholder=" …")


def main(arguments: Sequence[str]) -> None:
    lines = Path(arguments[0]).read_text().splitlines()
    page = PAGE.read_text()
    before, _, rest = page.partition(BEGIN)
    _, _, behind = rest.partition(END)
    PAGE.write_text(before + BEGIN + markdown(latest(lines), random_kills(lines)) + END + behind)


if __name__ == "__main__":
    main(sys.argv[1:])
