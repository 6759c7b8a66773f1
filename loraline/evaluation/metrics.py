"""Metrics of generated answers, as pure functions over predictions and references.

Each metric is a function of sums over rows, so it comes as a `Metric`: what every row adds to the
sums, and how the value follows from them. The value does not depend on the rows' order, and the
bootstrap (`loraline.evaluation.bootstrap`) resamples the rows without scoring anything twice.
"""

from __future__ import annotations

import functools
import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

LATEX_TOKEN = re.compile(r"\\[A-Za-z]+|\\.|\S")
"""A LaTeX command, an escaped character, or one visible character."""

HALF_A_SIGN = re.compile("[\ud800-\udfff]")
"""Half of a surrogate pair: an escape of JSON can spell it, and UTF-8 has no form for it."""

HEADLINE = ("bleu", "levenshtein", "exact_match", "eval_loss", "perplexity")
"""Metrics of every task, which a reviewer sees first and which the gate's rules use."""

HIGHER_IS_BETTER = {
    "bleu": True,
    "bleu_13a": True,
    "levenshtein": False,
    "levenshtein_mean": False,
    "character_error_rate": False,
    "exact_match": True,
    "exact_match_raw": True,
    "eval_loss": False,
    "perplexity": False,
    "json_field_f1": True,
    "grounding_f1": True,
}
"""Direction of each metric that an evaluation logs."""

BOX = re.compile(
    r"\(\s*(-?[\d.]+)\s*,\s*(-?[\d.]+)\s*\)\s*,\s*\(\s*(-?[\d.]+)\s*,\s*(-?[\d.]+)\s*\)"
    r"|\[\s*(-?[\d.]+)\s*,\s*(-?[\d.]+)\s*,\s*(-?[\d.]+)\s*,\s*(-?[\d.]+)\s*\]"
)
"""Corners of a box as Qwen2-VL writes them, (x1,y1),(x2,y2), or as Qwen2.5-VL, [x1, y1, x2, y2]."""


@dataclass(frozen=True)
class Metric:
    """A metric on some rows."""

    rows: FloatArray
    """What each row adds to the sums, (rows, sums)."""

    of_sums: Callable[[FloatArray], FloatArray]
    """The value from the sums, (..., sums) to (...)."""

    higher_is_better: bool

    extremes: FloatArray | None = None
    """What a row of the usual size would add with all wrong and with all right, (2, sums); None for
    a metric without bounds."""

    @property
    def value(self) -> float:
        """The metric over all rows; NaN where it is not defined."""
        return float(self.of_sums(self.rows.sum(axis=0)))

    @functools.cached_property
    def at_extremes(self) -> float:
        """Share of the rows that are all wrong or all right; 0 for a metric without bounds."""
        if self.extremes is None:
            return 0.0
        ends = self.of_sums(self.extremes)
        return float(np.isclose(self.of_sums(self.rows)[:, None], ends).any(axis=1).mean())


def ratio(sums: FloatArray) -> FloatArray:
    """First sum over second; NaN over nothing."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(sums[..., 0] / sums[..., 1])


def extremes_of_share(rows: FloatArray) -> FloatArray:
    """The extremes of a share, whose rows add a part and its whole."""
    mean_whole = rows[:, -1].mean()
    return np.array([[0.0, mean_whole], [mean_whole, mean_whole]])


def canonical(text: str, answer_format: str) -> str:
    """The form in which answers are compared.

    LaTeX is split into commands and characters joined by single spaces, since white space between
    them does not change the formula; JSON is written with sorted keys; all else has its runs of
    white space made single spaces. An answer that should be JSON and is not stays as it is.
    """
    if answer_format == "latex":
        return " ".join(LATEX_TOKEN.findall(text))
    if answer_format == "json" and (parsed := parse_json(text)) is not INVALID:
        return HALF_A_SIGN.sub("\ufffd", json.dumps(parsed, sort_keys=True, ensure_ascii=False))
    return " ".join(text.split())


def bleu(predictions: Sequence[str], references: Sequence[str], answer_format: str) -> Metric:
    """Corpus BLEU of canonical answers, 0 to 100, higher is better (Papineni 2002, Post 2018).

    By sacrebleu: LaTeX on its own tokens, all else with 13a; exponential smoothing. Orders of
    n-grams that no answer is long enough for are left out (effective order), so that perfect
    one-word answers score 100; where there are 4-grams the value is that of sacrebleu's command.
    """
    answers = [canonical(text, answer_format) for text in predictions]
    expected = [canonical(text, answer_format) for text in references]
    return _bleu(answers, expected, tokenizer(answer_format))


def bleu_13a(predictions: Sequence[str], references: Sequence[str]) -> Metric:
    """Corpus BLEU of the answers as they are with the 13a tokenizer, 0 to 100, higher is better.

    What Hugging Face's `evaluate` and most papers report (there as 0 to 1).
    """
    return _bleu(predictions, references, "13a")


def tokenizer(answer_format: str) -> str:
    """sacrebleu's name of the tokenizer that `bleu` uses."""
    return "none" if answer_format == "latex" else "13a"


def bleu_signature(answer_format: str) -> str:
    """sacrebleu's signature: values of `bleu` with the same one are comparable (Post 2018)."""
    from sacrebleu.metrics import BLEU

    metric = BLEU(tokenize=tokenizer(answer_format), effective_order=True, force=True)
    metric.corpus_score(["a"], [["a"]])
    return f"{metric.get_signature()}|canonical:{answer_format}"


def _bleu(predictions: Sequence[str], references: Sequence[str], tokenize: str) -> Metric:
    from sacrebleu.metrics import BLEU

    scorer = BLEU(tokenize=tokenize, effective_order=True, force=True)

    def counts(prediction: str, reference: str) -> list[float]:
        score = scorer.corpus_score([prediction], [[reference]])
        return [*score.counts, *score.totals, score.sys_len, score.ref_len]

    def of_sums(sums: FloatArray) -> FloatArray:
        def score(row: FloatArray) -> float:
            *counts, answer_words, reference_words = row.tolist()
            corpus: Any = BLEU.compute_bleu(
                counts[:4],
                counts[4:],
                round(answer_words),
                round(reference_words),
                smooth_method=scorer.smooth_method,
                effective_order=True,
            )
            # A perfect score is a rounding error above 100.
            return min(float(corpus.score), 100.0)

        return np.apply_along_axis(score, -1, sums)

    scored = [counts(*pair) for pair in zip(predictions, references, strict=True)]
    rows = np.array(scored, dtype=float)
    totals, words = rows[:, 4:8].mean(axis=0), rows[:, -1:].mean(axis=0)
    extremes = [np.concatenate([hits, totals, words, words]) for hits in (0 * totals, totals)]
    return Metric(rows, of_sums, True, np.array(extremes))


def _distances(
    predictions: Sequence[str], references: Sequence[str], answer_format: str
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Edit distance, reference length and answer length of each row, in canonical characters."""
    from rapidfuzz.distance import Levenshtein

    answers = [canonical(text, answer_format) for text in predictions]
    expected = [canonical(text, answer_format) for text in references]
    pairs = zip(answers, expected, strict=True)
    distances = [Levenshtein.distance(*pair) for pair in pairs]
    return (
        np.array(distances, dtype=float),
        np.array(list(map(len, expected)), dtype=float),
        np.array(list(map(len, answers)), dtype=float),
    )


def levenshtein(
    predictions: Sequence[str], references: Sequence[str], answer_format: str
) -> Metric:
    """Normalised edit distance, 0 to 1, lower is better: sum of distances / sum of max lengths.

    Counted in characters of the canonical form; insertions, deletions and substitutions cost 1
    (Levenshtein 1966). Two empty texts are 0 apart.
    """
    distance, reference_length, answer_length = _distances(predictions, references, answer_format)
    longest = np.maximum(reference_length, answer_length)

    def of_sums(sums: FloatArray) -> FloatArray:
        return np.asarray(sums[..., 0] / np.maximum(sums[..., 1], 1))

    rows = np.stack([distance, longest], axis=1)
    return Metric(rows, of_sums, False, extremes_of_share(rows))


def levenshtein_mean(
    predictions: Sequence[str], references: Sequence[str], answer_format: str
) -> Metric:
    """Mean over rows of distance / max length, 0 to 1, lower is better.

    As UniMERNet reports its edit distance; short rows weigh as much as long ones.
    """
    distance, reference_length, answer_length = _distances(predictions, references, answer_format)
    share = distance / np.maximum(np.maximum(reference_length, answer_length), 1)
    return mean(share, higher_is_better=False)


def character_error_rate(
    predictions: Sequence[str], references: Sequence[str], answer_format: str
) -> Metric:
    """Sum of distances / sum of reference lengths, 0 and up, lower is better; above 1 for babble.

    The character error rate (CER) of speech and text recognition.
    """
    distance, reference_length, _ = _distances(predictions, references, answer_format)
    rows = np.stack([distance, reference_length], axis=1)
    return Metric(rows, ratio, False, extremes_of_share(rows))


def exact_match(
    predictions: Sequence[str], references: Sequence[str], answer_format: str
) -> Metric:
    """Share of answers equal to their reference in canonical form, 0 to 1, higher is better."""
    return exact_match_raw(
        [canonical(text, answer_format) for text in predictions],
        [canonical(text, answer_format) for text in references],
    )


def exact_match_raw(predictions: Sequence[str], references: Sequence[str]) -> Metric:
    """Share of answers identical to their reference, 0 to 1, higher is better."""
    pairs = zip(predictions, references, strict=True)
    equal = [predicted == reference for predicted, reference in pairs]
    return mean(np.array(equal, dtype=float), higher_is_better=True)


def mean(values: FloatArray, *, higher_is_better: bool) -> Metric:
    """The mean of values from 0 to 1, one a row."""
    rows = np.stack([values, np.ones_like(values)], axis=1)
    return Metric(rows, ratio, higher_is_better, extremes_of_share(rows))


def eval_loss(nll: Sequence[float], tokens: Sequence[int]) -> Metric:
    """Mean negative log-likelihood a target token in nats, lower is better: sum NLL / sum tokens.

    `nll` has each row's sum over its target tokens, the end token included, and `tokens` their
    number. Weighted by tokens, so that it depends on neither batch size nor padding.
    """
    rows = np.stack([np.array(nll, dtype=float), np.array(tokens, dtype=float)], axis=1)
    return Metric(rows, ratio, higher_is_better=False)


def perplexity(nll: Sequence[float], tokens: Sequence[int]) -> Metric:
    """exp of the eval loss, 1 and up, lower is better; infinite when exp overflows."""

    def of_sums(sums: FloatArray) -> FloatArray:
        with np.errstate(over="ignore"):
            return np.asarray(np.exp(ratio(sums)))

    return Metric(eval_loss(nll, tokens).rows, of_sums, higher_is_better=False)


def f1(sums: FloatArray) -> FloatArray:
    """2 hits / (predicted + wanted), the harmonic mean of precision and recall; 1 over nothing."""
    total = sums[..., 1] + sums[..., 2]
    return np.asarray(np.where(total > 0, 2 * sums[..., 0] / np.maximum(total, 1), 1.0))


def _f1(counts: Sequence[Sequence[float]]) -> Metric:
    """F1 of rows that add hits, what was predicted and what was wanted."""
    rows = np.array(counts, dtype=float)
    mean_wanted = rows[:, 2].mean()
    extremes = np.array([[0.0, mean_wanted, mean_wanted], [mean_wanted, mean_wanted, mean_wanted]])
    return Metric(rows, f1, True, extremes)


def json_field_f1(predictions: Sequence[str], references: Sequence[str]) -> Metric:
    """F1 over the fields of JSON answers, 0 to 1, higher is better.

    A field is a path and its value, all rows' fields count together (micro average, as in
    Chinchor 1992 for filled templates). Items of a list are fields without their position, so
    that their order does not matter. An answer that is not JSON has no fields, and a reference
    that is not is one field, its text.
    """

    def counts(prediction: str, reference: str) -> list[float]:
        if (value := parse_json(reference)) is INVALID:
            return [float(prediction.split() == reference.split()), 1, 1]
        predicted, expected = fields(parse_json(prediction)), fields(value)
        return [(predicted & expected).total(), predicted.total(), expected.total()]

    return _f1([counts(*pair) for pair in zip(predictions, references, strict=True)])


INVALID = object()
FENCE = "```"


def parse_json(text: str) -> Any:
    """The JSON value of an answer, also from a fenced block; INVALID if there is none."""
    # No regular expression: a base's answer may be thousands of line ends after a fence.
    content, ends = text.strip(), len(FENCE)
    fenced = len(content) >= 2 * ends and content.startswith(FENCE) and content.endswith(FENCE)
    inner = content[ends:-ends].removeprefix("json").strip()
    try:
        value = json.loads(inner if fenced else text, parse_float=json_number)
        # It is also written in one form: a value nested too deeply for that is invalid, too.
        json.dumps(value)
    except (ValueError, RecursionError):
        return INVALID
    return value


def json_number(text: str) -> float:
    """1.0 and 1 are the same number in JSON."""
    value = float(text)
    return int(value) if value.is_integer() and abs(value) < 2**53 else value


FieldPath = tuple[str | None, ...]
"""Keys down to a leaf of a JSON value; None stands for a list."""


def fields(value: Any) -> Counter[tuple[FieldPath, str]]:
    """Leaves of a JSON value by path, with values as JSON."""
    leaves: Counter[tuple[FieldPath, str]] = Counter()
    waiting: list[tuple[FieldPath, Any]] = [] if value is INVALID else [((), value)]
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, dict) and value:
            waiting += [((*path, key), entry) for key, entry in value.items()]
        elif isinstance(value, list) and value:
            waiting += [((*path, None), entry) for entry in value]
        else:
            leaves[path, json.dumps(value)] += 1
    return leaves


def grounding_f1(predictions: Sequence[str], references: Sequence[str]) -> Metric:
    """F1 of boxes that overlap at IoU 0.5 or more, 0 to 1, higher is better.

    Boxes are matched one to one, best overlap first (Everingham 2010, PASCAL VOC). With one box a
    row on both sides it is the accuracy at IoU 0.5 of referring expressions (Yu 2016, RefCOCO).
    """

    def counts(prediction: str, reference: str) -> list[float]:
        predicted, expected = boxes(prediction), boxes(reference)
        overlaps = sorted(
            ((iou(a, b), i, j) for i, a in enumerate(predicted) for j, b in enumerate(expected)),
            reverse=True,
        )
        paired: tuple[set[int], set[int]] = (set(), set())
        for overlap, i, j in overlaps:
            if overlap >= 0.5 and i not in paired[0] and j not in paired[1]:
                paired[0].add(i)
                paired[1].add(j)
        return [len(paired[0]), len(predicted), len(expected)]

    return _f1([counts(*pair) for pair in zip(predictions, references, strict=True)])


def boxes(text: str) -> list[tuple[float, float, float, float]]:
    """Boxes in an answer as (x1, y1, x2, y2), corners in order; malformed numbers are no box."""
    readable = []
    for match in BOX.finditer(text):
        try:
            a, b, c, d = (float(number) for number in match.groups() if number is not None)
        except ValueError:
            continue
        readable.append((min(a, c), min(b, d), max(a, c), max(b, d)))
    return readable


def iou(
    first: tuple[float, float, float, float], second: tuple[float, float, float, float]
) -> float:
    """Intersection over union of two boxes, 0 to 1 (Jaccard 1901)."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    shared = max(width, 0.0) * max(height, 0.0)
    union = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)) - shared
    return shared / union if union > 0 else float(first == second)
