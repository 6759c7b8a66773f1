"""Print the result of a local pipeline run, and the next commands.

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
    console = Console()
    console.print(table(card))
    for name, text in [("verdict", verdict(card)), *cost(card), *links(card, run)]:
        console.print(f"{name.ljust(12)}{text}", soft_wrap=True, markup=False, highlight=False)


def table(card: dict[str, Any]) -> Any:
    """Base, tuned and champion with their 95% intervals, one row per metric."""
    from rich.table import Table

    title = f"{card['rows']:.0f} held-out rows, with 95% intervals"
    drawn = Table(title=title, title_justify="left")
    models = ["base", "tuned", *(["champion"] if card["champion"] else [])]
    drawn.add_column("metric")
    for model in models:
        version = f" v{card['champion']}" if model == "champion" else ""
        drawn.add_column(f"{model}{version}", justify="right")
    drawn.add_column("better")
    better = {**BETTER, **card.get("better", {})}
    for name, values in card["metrics"].items():
        drawn.add_row(name, *(cell(values.get(model)) for model in models), better[name])
    return drawn


def cell(value: list[float | None] | None) -> str:
    if value is None or value[0] is None:
        return "-"
    number, low, high = value
    if low is None or high is None:
        return f"{number:.3f}"
    return f"{number:.3f} ({low:.3f} to {high:.3f})"


def verdict(card: dict[str, Any]) -> str:
    """The verdict as a sentence; a gain that is too small is explained."""
    if card["result"] == "passed":
        return f"passed: registered as models:/{card['model']}/{card['version']} @{card['alias']}"
    reasons = []
    for reason in card["reason"].split("; "):
        if reason.startswith("gain_over_champion_"):
            reason = f"not surely better than champion v{card['champion']} ({reason})"
        elif reason.startswith("gain_over_base_"):
            reason = f"not surely better than the base ({reason})"
        reasons.append(reason)
    return f"FAILED: {'; '.join(reasons)}"


def cost(card: dict[str, Any]) -> list[tuple[str, str]]:
    """What the training took."""
    spent = card.get("cost") or {}
    words = {
        "train_seconds": "trained in {:,.0f} s",
        "train_tokens_per_second": "{:,.0f} tokens/s",
        "peak_memory_gib": "{:.1f} GiB",
    }
    parts = [text.format(spent[name]) for name, text in words.items() if spent.get(name)]
    return [("cost", ", ".join(parts))] if parts else []


def links(card: dict[str, Any], run: Path) -> list[tuple[str, str]]:
    """Where to look, and the next commands."""
    store = card["store"]
    if store.startswith(("http://", "https://")):
        page = f"{store.rstrip('/')}/#/experiments/{card['experiment']}/runs"
        lines = [
            ("MLflow", f"{page}/{card['train']}"),
            ("report", f"{page}/{card['evaluate']}/artifacts (report.html)"),
        ]
    else:
        page = f"http://127.0.0.1:5000/#/experiments/{card['experiment']}/runs"
        lines = [
            ("store", store),
            ("MLflow", f"make mlflow, then {page}/{card['train']}"),
            ("report", f"make mlflow, then {page}/{card['evaluate']}/artifacts (report.html)"),
        ]
    manifest = run / "deploy-vllm" / "vllm.yaml"
    if manifest.is_file():
        latest = (run.parent / "latest").resolve() == run.resolve()
        serve = "make serve" if latest else f"python steps/serve_local.py {manifest}"
        lines += [("manifest", str(manifest)), ("serve it", serve)]
    if card["result"] == "passed":
        promote = f"python steps/promote.py --model {card['model']} --version {card['version']}"
        lines.append(("promote it", promote))
    else:
        lines.append(("what now", "docs/own_data.md, What comes out, says what to try"))
    return lines


if __name__ == "__main__":
    summary()
