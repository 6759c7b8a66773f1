"""The images whose answers are worst, on one sheet, each with its reference and its answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loraline.evaluation.report import canonical_pair, ranked, thumbnail

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from loraline.evaluation.report import Evaluation

SHEET = 24
"""Images on the sheet."""


def contact_sheet(evaluation: Evaluation) -> Figure | None:
    """A figure of the worst rows' images with reference and answer; None without images."""
    from matplotlib.figure import Figure

    chosen = [i for i in ranked(evaluation) if evaluation.held_out[i].images][:SHEET]
    if not chosen:
        return None
    columns = 4
    lines = -(-len(chosen) // columns)
    drawn = {i: thumbnail(evaluation.held_out[i].images[0]) for i in chosen}
    pictures = {i: picture for i, picture in drawn.items() if picture is not None}
    tallest = max((picture.height / picture.width for picture in pictures.values()), default=0.5)
    figure = Figure(
        figsize=(4 * columns, (4 * min(tallest, 1) + 0.5) * lines), layout="constrained"
    )
    for place, index in enumerate(chosen, start=1):
        axes = figure.add_subplot(lines, columns, place)
        axes.set_xticks([])
        axes.set_yticks([])
        if index in pictures:
            axes.imshow(pictures[index], aspect="equal")
        reference, answer = canonical_pair(evaluation, index)
        is_right = reference == answer
        axes.set_title(f"row {index}: {clipped(reference)}", fontsize=7, parse_math=False)
        axes.set_xlabel(
            clipped(answer) or "(empty)",
            fontsize=7,
            color="tab:green" if is_right else "tab:red",
            parse_math=False,
        )
    return figure


def clipped(text: str, longest: int = 60) -> str:
    """Text on one line that a font can draw."""
    plain = "".join(c if c.isprintable() else "?" for c in text)
    return plain if len(plain) <= longest else f"{plain[: longest - 1]}…"
