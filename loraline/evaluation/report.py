"""The page that a reviewer reads: one HTML file that needs nothing else.

Texts of rows and answers come from data and models, so the template escapes everything and the
page forbids itself scripts and requests.
"""

from __future__ import annotations

import base64
import html
import io
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraline.evaluation import calls, conclusion, measurement, metrics
from loraline.tracking import tags

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from PIL.Image import Image

    from loraline.contract import Contract
    from loraline.evaluation.bootstrap import Interval
    from loraline.evaluation.measurement import Comparison, Measurement
    from loraline.records import Record

TEMPLATE = Path(__file__).with_suffix(".html.j2")

SHOWN = 8
"""Worst rows and best rows on the page."""

THUMBNAIL = (480, 320)
"""Largest width and height of an image on the page, in pixels."""

Curves = Mapping[str, Sequence[tuple[int, float]]]
"""Points (optimizer step, value) of each curve, by its label."""


@dataclass(frozen=True)
class Evaluation:
    """The contents of the page."""

    title: str

    facts: Mapping[str, str]
    """What was measured, on which data, with which engine: a label and a value in each line."""

    held_out: Sequence[Record]
    measured: Mapping[str, Measurement]
    """By model: base, tuned and, where it can be compared, champion."""

    comparison: Comparison
    answer_format: str
    curves: Curves
    profile: str
    prompt: str
    costs: Mapping[str, str]

    user_metrics: Mapping[str, bool] = field(default_factory=dict)
    """Whether higher is better, by name, for the profile's own metrics."""

    @property
    def headline(self) -> tuple[str, ...]:
        """The metrics that a reviewer sees first."""
        return (*metrics.HEADLINE, *self.user_metrics)


def facts(agreed: Contract, train_run: Run, data_run: Run, champion: str | None) -> dict[str, str]:
    """The page's facts about the adapter, the data, and a champion that was compared."""
    data, vision = data_run.data.params, ("vision parts",) if agreed.trains_vision else ()
    targets = ", ".join((*agreed.target_modules, *vision))
    targets += "; merged into the base" if agreed.export == "merged" else ""
    rounded = ", linear layers of the base in FP8" if agreed.quantization == "fp8" else ""
    adapter = f"rank {agreed.r}, alpha {agreed.lora_alpha}: {targets}"
    return {
        "base": f"{agreed.base} at {agreed.base_revision[:19]}",
        "precision": f"{agreed.dtype}{rounded}, as served",
        "adapter": adapter if agreed.train == "lora" else "none: the base's own weights learned",
        "profile": train_run.data.tags[tags.PROFILE],
        "data": f"{data['source']}, version {data['version']}",
        "training run": train_run.info.run_id,
        **({"champion": champion} if champion else {}),
    }


def costs(train_run: Run, evaluation: str) -> dict[str, str]:
    """The cost of training and evaluation."""
    spent = train_run.data.metrics
    figures = {
        "training": ("train_seconds", "s"),
        "GPUs": ("gpu_seconds", "s"),
        "training speed": ("train_tokens_per_second", "tokens/s"),
        "peak memory": ("peak_memory_gib", "GiB"),
        "reserved by the allocator": ("peak_reserved_gib", "GiB"),
    }
    spent_on = {
        label: f"{spent[key]:,.1f} {unit}" for label, (key, unit) in figures.items() if key in spent
    }
    return {**spent_on, "evaluation": evaluation}


def curves(client: MlflowClient, train_run: Run) -> Curves:
    """Training and validation loss as the training run logged them."""
    return {
        label: [
            (point.step, point.value)
            for point in client.get_metric_history(train_run.info.run_id, key)
        ]
        for key, label in (("loss", "training"), ("eval_loss", "validation"))
    }


@dataclass(frozen=True)
class PageRow:
    """One row on the page."""

    number: int
    question: str
    """Empty if all rows ask the same."""

    reference: str
    answers: Mapping[str, str]
    diff: str
    """HTML of the tuned answer with missing and superfluous words marked."""

    distance: float
    """Edit distance / longer length, 0 to 1, in canonical characters."""

    images: Sequence[str]
    """Data URLs of those that are pictures."""

    remark: str


def render(evaluation: Evaluation) -> str:
    """The page as HTML."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters["number"] = number
    environment.filters["marked"] = Markup
    order = ranked(evaluation)
    best = list(reversed(order[-SHOWN:]))
    return environment.from_string(TEMPLATE.read_text()).render(
        evaluation=evaluation,
        models=list(evaluation.comparison.values),
        headline=headline(evaluation),
        conclusion=conclusion.sentences(evaluation.comparison, evaluation.headline),
        others=[
            name
            for name in evaluation.comparison.values["tuned"]
            if name not in evaluation.headline
        ],
        direction={**metrics.HIGHER_IS_BETTER, **evaluation.user_metrics},
        counts={
            model: measurement.counts(measured.answers)
            for model, measured in evaluation.measured.items()
        },
        worst=[page_row(evaluation, index) for index in order[:SHOWN]],
        best=[page_row(evaluation, index) for index in best],
        lengths=by_length(evaluation),
        outcomes=answer_outcomes(evaluation),
        confusions=confusions(evaluation),
        curves=curve_lines(evaluation.curves),
    )


def headline(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Rows of the first table: each headline metric with its interval drawn on one scale."""
    rows = []
    for name in evaluation.headline:
        by_model = {model: values[name] for model, values in evaluation.comparison.values.items()}
        ends = [
            end
            for value in by_model.values()
            for end in (value.low, value.high, value.value)
            if math.isfinite(end)
        ]
        low, high = (min(ends), max(ends)) if ends else (0.0, 1.0)
        span = (high - low) or 1.0
        rows.append(
            {
                "name": name,
                "values": by_model,
                "places": {
                    model: [
                        100 * (end - low) / span for end in (value.low, value.value, value.high)
                    ]
                    for model, value in by_model.items()
                    if all(map(math.isfinite, (value.low, value.value, value.high)))
                },
                "gains": {
                    model: gains[name] for model, gains in evaluation.comparison.gains.items()
                },
            }
        )
    return rows


def number(value: float) -> str:
    """A number for reading: three significant digits, more for large ones."""
    if not math.isfinite(value):
        return "∞" if value > 0 else "-∞" if value < 0 else "-"
    return f"{value:.1f}" if abs(value) >= 100 else f"{value:.3g}"


def with_interval(interval: Interval) -> str:
    return f"{number(interval.value)} ({number(interval.low)} to {number(interval.high)})"


def canonical_pair(evaluation: Evaluation, index: int) -> tuple[str, str]:
    """Reference and tuned answer of a row as they are compared."""
    record = evaluation.held_out[index]
    answer = calls.comparable_answer(evaluation.measured["tuned"].answers[index].text, record)
    answer_format = evaluation.answer_format
    reference = metrics.canonical(calls.reference(record), answer_format)
    return reference, metrics.canonical(answer, answer_format)


def distance(evaluation: Evaluation, index: int) -> float:
    from rapidfuzz.distance import Levenshtein

    return float(Levenshtein.normalized_distance(*canonical_pair(evaluation, index)))


def ranked(evaluation: Evaluation) -> list[int]:
    """Indices of the rows, the worst answer first; among equal answers, the least likely first."""
    tuned = evaluation.measured["tuned"]
    return sorted(
        range(len(evaluation.held_out)),
        key=lambda i: (-distance(evaluation, i), -tuned.nll[i] / tuned.tokens[i], i),
    )


def same_question(evaluation: Evaluation) -> bool:
    """Whether all rows ask the same question about an image; the page shows the prompt once."""
    first, *others = evaluation.held_out
    return bool(first.images) and all(record.context == first.context for record in others)


def page_row(evaluation: Evaluation, index: int) -> PageRow:
    record = evaluation.held_out[index]
    answer = evaluation.measured["tuned"].answers[index]
    remarks = {
        "failed: the server would refuse this row": answer.failed,
        "cut at the longest answer allowed": answer.truncated,
        "empty": not answer.text and not answer.failed,
    }
    return PageRow(
        number=index,
        question="" if same_question(evaluation) else record.context,
        reference=calls.reference(record),
        answers={
            model: measured.answers[index].text for model, measured in evaluation.measured.items()
        },
        diff=difference(*canonical_pair(evaluation, index)),
        distance=distance(evaluation, index),
        images=list(filter(None, map(data_url, record.images))),
        remark=", ".join(text for text, applies in remarks.items() if applies),
    )


def difference(reference: str, answer: str) -> str:
    """HTML that turns `reference` into `answer`: <del> is missing, <ins> is superfluous."""
    from rapidfuzz.distance import Levenshtein

    parts = []
    for tag, i, j, k, m in Levenshtein.opcodes(reference, answer):
        if tag == "equal":
            parts.append(html.escape(reference[i:j]))
            continue
        parts += [f"<del>{html.escape(reference[i:j])}</del>"] if j > i else []
        parts += [f"<ins>{html.escape(answer[k:m])}</ins>"] if m > k else []
    return "".join(parts)


def data_url(image: bytes) -> str:
    """A picture drawn anew at the page's size; empty for what is no picture."""
    picture = thumbnail(image)
    if picture is None:
        return ""
    file = io.BytesIO()
    picture.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def thumbnail(image: bytes) -> Image | None:
    """A picture at the page's size; None for what is no picture."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(image)) as opened:
            picture = opened.convert("RGB")
    except (OSError, ValueError, SyntaxError):
        return None
    picture.thumbnail(THUMBNAIL)
    return picture


def by_length(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Rows in four groups by the length of their reference: count, share right, distance."""
    lengths = [len(canonical_pair(evaluation, i)[0]) for i in range(len(evaluation.held_out))]
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    groups = []
    for quarter in range(4):
        chosen = order[len(order) * quarter // 4 : len(order) * (quarter + 1) // 4]
        if chosen:
            distances = [distance(evaluation, i) for i in chosen]
            groups.append(
                {
                    "from": lengths[chosen[0]],
                    "to": lengths[chosen[-1]],
                    "rows": len(chosen),
                    "exact": sum(d == 0 for d in distances) / len(chosen),
                    "distance": sum(distances) / len(chosen),
                }
            )
    return groups


def answer_outcomes(evaluation: Evaluation) -> dict[str, int]:
    """Counts of the tuned answers that are right, nearly right, wrong, or missing."""
    nearly = "nearly right (under 10% of the characters)"
    outcomes: Counter[str] = Counter()
    for index, answer in enumerate(evaluation.measured["tuned"].answers):
        off = distance(evaluation, index)
        if answer.failed:
            outcomes["failed"] += 1
        elif not answer.text:
            outcomes["empty"] += 1
        elif off == 0:
            outcomes["right"] += 1
        elif answer.truncated:
            outcomes["cut"] += 1
        else:
            outcomes[nearly if off < 0.1 else "wrong"] += 1
    order = ("right", nearly, "wrong", "cut", "empty", "failed")
    return {outcome: outcomes[outcome] for outcome in order}


def confusions(evaluation: Evaluation, most: int = 10) -> list[tuple[str, str, int]]:
    """Most frequent confusions of words or LaTeX tokens: the reference's, the answer's, a count."""
    from rapidfuzz.distance import Levenshtein

    replaced: Counter[tuple[str, str]] = Counter()
    for index in range(len(evaluation.held_out)):
        reference, answer = (text.split() for text in canonical_pair(evaluation, index))
        for tag, i, j, k, m in Levenshtein.opcodes(reference, answer):
            if tag != "equal":
                replaced[" ".join(reference[i:j]), " ".join(answer[k:m])] += 1
    return [(expected, written, count) for (expected, written), count in replaced.most_common(most)]


def curve_lines(curves: Curves) -> dict[str, Any]:
    """The curves as points of an SVG of 600 by 200, and the ends of its axes."""
    points = [point for curve in curves.values() for point in curve if math.isfinite(point[1])]
    if not points:
        return {}
    last_step = max(step for step, _ in points) or 1
    highest = max(value for _, value in points) or 1.0
    return {
        "last": last_step,
        "highest": highest,
        "lines": {
            label: " ".join(
                f"{600 * step / last_step:.1f},{200 - 200 * value / highest:.1f}"
                for step, value in curve
                if math.isfinite(value)
            )
            for label, curve in curves.items()
        },
    }


def model_card(evaluation: Evaluation, page: str) -> str:
    """The run's description in Markdown: the adapter, a link to the report, metrics, cost."""
    comparison = evaluation.comparison
    models = list(comparison.values)
    lines = [f"# {evaluation.title}", "", f"[The report, with every row]({page})", ""]
    lines += [f"- {label}: {value}" for label, value in evaluation.facts.items()]
    columns = ["metric", *models, *(f"gain over {other}" for other in comparison.gains)]
    lines += ["", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    rows = [*comparison.values.values(), *comparison.gains.values()]
    for name in evaluation.headline:
        values = [with_interval(row[name]) for row in rows]
        lines.append(f"| {name} | {' | '.join(values)} |")
    counted = measurement.counts(evaluation.measured["tuned"].answers)
    lines += ["", "95% intervals in parentheses; a gain is positive where the adapter is better. "]
    lines[-1] += ", ".join(f"{name.replace('_', ' ')}: {n}" for name, n in counted.items()) + "."
    lines += ["", "Asked with this prompt:", ""]
    lines += [f"    {line}" for line in evaluation.prompt.splitlines()]
    lines += [""] + [f"- {label}: {value}" for label, value in evaluation.costs.items()]
    return "\n".join(lines) + "\n"
