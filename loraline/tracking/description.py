"""Descriptions of runs and versions: the gate's verdict, and below it the model card.

Every store keeps them: MLflow's column for a version's description takes 5,000 characters, which
PostgreSQL holds to.
"""

from __future__ import annotations

LIMIT = 5000

HEADING = "## Quality gate\n"
"""Begins the verdict. The card begins with its title, a line that starts with `# `."""

CUT = "\n\n(Cut here; all of it is `model_card.md` of the evaluate run.)\n"


def of(verdict: str, card: str) -> str:
    """A description of a verdict, if any, and a card, which is cut where there is no room."""
    text = verdict + card
    return text if len(text) <= LIMIT else text[: LIMIT - len(CUT)] + CUT


def verdict(description: str) -> str:
    """The verdict of a description; empty without one."""
    if not description.startswith(HEADING):
        return ""
    before, title, _ = description.partition("\n# ")
    return f"{before}\n" if title else description


def card(description: str) -> str:
    """The card of a description. Earlier versions of the project wrote the verdict below it."""
    return description.removeprefix(verdict(description)).partition(f"\n{HEADING}")[0]
