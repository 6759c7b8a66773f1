"""The conclusion of a comparison in sentences: where the tuned model is surely better or not."""

from __future__ import annotations

from collections.abc import Sequence

from loraline.evaluation.measurement import Comparison


def sentences(comparison: Comparison, headline: Sequence[str]) -> list[str]:
    """One sentence for each model that the tuned one was compared with.

    A gain is sure where its 95% interval does not hold zero.
    """
    lines = []
    for other, gains in comparison.gains.items():
        better = [name for name in headline if gains[name].low > 0]
        worse = [name for name in headline if gains[name].high < 0]
        undecided = [name for name in headline if name not in (*better, *worse)]
        parts = [
            f"{words} {listed(names)}"
            for words, names in (
                ("surely better in", better),
                ("surely worse in", worse),
                ("neither for sure in", undecided),
            )
            if names
        ]
        lines.append(f"Against the {other}, tuned is {', '.join(parts)}.")
    return lines


def listed(names: Sequence[str]) -> str:
    """Names as a sentence has them."""
    words = [name.replace("_", " ") for name in names]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
