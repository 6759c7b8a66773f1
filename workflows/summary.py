"""Print what a local run of the pipeline came to: base beside tuned, the verdict, and where it is.

python workflows/summary.py outputs/latest
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

BETTER = {
    "bleu": "higher",
    "levenshtein": "lower",
    "exact_match": "higher",
    "perplexity": "lower",
}


@click.command()
@click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=Path))
def summary(run: Path) -> None:
    """Print the closing table of a pipeline run; RUN is its folder under outputs/."""
    from rich.console import Console

    scorecard = run / "quality-gate" / "scorecard.json"
    if not scorecard.is_file():
        raise click.UsageError(f"{run} holds no quality-gate/scorecard.json: no gate ran there")
    card = json.loads(scorecard.read_text())
    manifest = run / "deploy-vllm" / "vllm.yaml"
    console = Console()
    console.print(table(card))
    console.print(f"gate        {card['result']} ({card['reason']})", soft_wrap=True)
    if card["version"]:
        console.print(f"registered  models:/{card['model']}/{card['version']} @{card['alias']}")
    if manifest.is_file():
        console.print(f"manifest    {manifest}", soft_wrap=True)
    console.print(f"MLflow      {card['store']}", soft_wrap=True)


def table(card: dict[str, Any]) -> Any:
    """Base beside tuned, one metric a row."""
    from rich.table import Table

    drawn = Table(title=f"Held-out rows: {card['rows']:.0f}", title_justify="left")
    drawn.add_column("metric")
    drawn.add_column("base", justify="right")
    drawn.add_column("tuned", justify="right")
    drawn.add_column("better")
    for name, values in card["metrics"].items():
        cells = ["-" if values[m] is None else f"{values[m]:.3f}" for m in ("base", "tuned")]
        drawn.add_row(name, *cells, BETTER[name])
    return drawn


if __name__ == "__main__":
    summary()
