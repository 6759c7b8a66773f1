"""Answers of a running server beside those that evaluate measured.

`rows` are those of the predictions table, `answers` the server's in the same order, by the table's
columns: `tuned`, and `base` where the server lists it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from loraline.errors import UserError
from loraline.tracking import identity

if TYPE_CHECKING:
    from loraline.records import Record
    from loraline.serving.client import Served


def measured_rows(table: Any, held_out: Sequence[Record]) -> list[dict[str, Any]]:
    """The rows of a predictions table, each with its record.

    UserError for a table that is not one of all held-out rows: a server would be verified by what
    somebody has left in it.
    """
    try:
        rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
        columns = {column for row in rows for column in row if column.endswith("_tokens")}
        complete = [row["row"] for row in rows] == list(range(len(held_out)))
        tokens = all(isinstance(row[column], list) for row in rows for column in columns)
        answers = {"tuned_tokens", "base_tokens"} <= columns
    except (LookupError, TypeError, ValueError):
        complete = tokens = answers = False
    if not (complete and tokens and answers):
        change = f"predictions.json holds no answers to the {len(held_out)} held-out rows"
        raise UserError(identity.changed("evaluate", change))
    return [row | {"record": record} for row, record in zip(rows, held_out, strict=True)]


def refusals(rows: Sequence[dict[str, Any]], answers: dict[str, list[Served]]) -> list[str]:
    """Rows that the server refuses although they were measured; names the first row."""
    problems = []
    for column, served in answers.items():
        refused = [
            (row["row"], each.refusal)
            for row, each in zip(rows, served, strict=True)
            if each.refusal and row[f"{column}_tokens"]
        ]
        if refused:
            problems.append(
                f"the server refuses {len(refused)} of {len(rows)} rows to {column}; "
                f"row {refused[0][0]} first: {refused[0][1]}"
            )
    return problems


def agreements(
    rows: Sequence[dict[str, Any]], answers: dict[str, list[Served]]
) -> dict[str, float]:
    """Share of answers that equal the measured answers token for token."""
    return {
        f"{column}_agreement": sum(
            each.tokens == row[f"{column}_tokens"] for row, each in zip(rows, served, strict=True)
        )
        / len(rows)
        for column, served in answers.items()
    }


def answer_problems(
    rows: Sequence[dict[str, Any]], answers: dict[str, list[Served]], least: float
) -> list[str]:
    """What is wrong with the answers: they differ from the measured answers, or are the base's."""
    problems = []
    for key, share in agreements(rows, answers).items():
        column = key.removesuffix("_agreement")
        if share < least:
            first = differences(rows, {column: answers[column]})[0]
            problems.append(
                f"{share:.0%} of the {column} answers are the measured ones, below {least:.0%}; "
                f"row {first['row']} first: measured {first['measured']!r}, "
                f"served {first['served']!r}"
            )
    apart = [row["tuned_tokens"] != row["base_tokens"] for row in rows]
    if "base" in answers and any(apart) and any(each.tokens for each in answers["tuned"]):
        pairs = zip(answers["tuned"], answers["base"], strict=True)
        if all(tuned.tokens == base.tokens for tuned, base in pairs):
            problems.append("adapter and base give the same answers, so the adapter has no effect")
    return problems


def differences(
    rows: Sequence[dict[str, Any]], answers: dict[str, list[Served]]
) -> list[dict[str, Any]]:
    """Answers that differ from the measured ones: row, model, both texts, first differing token."""
    return [
        {
            "row": row["row"],
            "model": column,
            "measured": row[column],
            "served": each.refusal or each.text,
            "first_other_token": next(
                (
                    place
                    for place, pair in enumerate(zip(row[f"{column}_tokens"], each.tokens))  # noqa: B905 - the shorter one ends it
                    if pair[0] != pair[1]
                ),
                min(len(row[f"{column}_tokens"]), len(each.tokens)),
            ),
        }
        for column, served in answers.items()
        for row, each in zip(rows, served, strict=True)
        if each.tokens != row[f"{column}_tokens"]
    ]
