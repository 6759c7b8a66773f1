"""Counts the constructs that the recorded workflows use; writes the table in docs/running.md.

    python tests/runner/constructs.py

The table says of each construct in how many workflows it was held against a real controller, and
what became of them.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs/running.md"
BEGIN, END = "<!-- constructs: generated -->", "<!-- constructs: end -->"

CONSTRUCTS = {
    "`depends`, `dependencies`": r'"depend(s|encies)":',
    "`when`": r'"when":',
    "`withItems`": r'"withItems":',
    "`withParam`": r'"withParam":',
    "`steps`": r'"steps":',
    "a DAG in a DAG, with outputs": r'"valueFrom": \{[^}]*"parameter":',
    "outputs of files, `default`": r'"valueFrom": \{[^}]*"path":',
    "`globalName`": r'"globalName":',
    "`retryStrategy`": r'"retryStrategy":',
    "`timeout`, `activeDeadlineSeconds`": r'"(timeout|activeDeadlineSeconds)":',
    "`onExit`, `workflow.failures`": r'"onExit":',
    "`suspend`": r'"suspend":',
    "`synchronization`, `parallelism`": r'"(synchronization|parallelism)":',
    "`resource`: a Job": r'"resource":',
    "workflow parameters": r"workflow\.parameters\.",
    "`{{references}}` and values of any spelling": r"\.outputs\.parameters\.",
}


def counts(documents: dict[str, Any], verdicts: dict[str, str]) -> dict[str, Counter[str]]:
    """By construct: how many workflows with it are equal, refused or stopped."""
    result: dict[str, Counter[str]] = {name: Counter() for name in CONSTRUCTS}
    for case, document in documents.items():
        text = document if isinstance(document, str) else json.dumps(document)
        for name, pattern in CONSTRUCTS.items():
            if re.search(pattern, text):
                result[name][verdicts[case].partition(":")[0]] += 1
    return result


def table() -> str:
    sys.path.insert(0, str(HERE))
    import conformance

    cases = json.loads((HERE / "cases.json").read_text())
    lines = (HERE / "verdicts.txt").read_text().splitlines()
    verdicts = dict(line.split(" ", 1) for line in lines)
    documents = {name: case["workflow"] for name, case in cases.items()}
    documents |= conformance.CASES
    verdicts |= dict.fromkeys(conformance.CASES, "equal")
    rows = [
        "| construct | workflows | equal | refused by name | stopped in Error |",
        "|---|--:|--:|--:|--:|",
    ]
    for name, result in counts(documents, verdicts).items():
        cells = (result.total(), result["equal"], result["refused"], result["stopped"])
        rows.append(f"| {name} | {' | '.join(map(str, cells))} |")
    total = Counter(verdicts[name].partition(":")[0] for name in documents)
    cells = (total.total(), total["equal"], total["refused"], total["stopped"])
    rows.append(f"| all of them | {' | '.join(map(str, cells))} |")
    return "\n".join(rows)


def with_table(page: str) -> str:
    head, _, rest = page.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n{table()}\n{END}{tail}"


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text()))
