"""Metrics of generated answers, as pure functions over predictions and references."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

LATEX_TOKEN = re.compile(r"\\[A-Za-z]+|\\.|\S")
"""A LaTeX command, an escaped character, or one visible character."""


def canonical(text: str, answer_format: str) -> str:
    """The form in which answers are compared: tokens joined by single spaces.

    Prose is split at white space, LaTeX into commands and characters, since white space between
    them does not change the formula.
    """
    tokens = LATEX_TOKEN.findall(text) if answer_format == "latex" else text.split()
    return " ".join(tokens)


def bleu(predictions: Sequence[str], references: Sequence[str], answer_format: str) -> float:
    """Corpus BLEU, 0 to 100, higher is better (Post 2018, sacrebleu; exp smoothing).

    Prose is tokenised with 13a; LaTeX is scored on its own tokens.
    """
    from sacrebleu.metrics import BLEU

    metric = BLEU(tokenize="none" if answer_format == "latex" else "13a", force=True)
    return float(
        metric.corpus_score(
            [canonical(text, answer_format) for text in predictions],
            [[canonical(text, answer_format) for text in references]],
        ).score
    )


def levenshtein(predictions: Sequence[str], references: Sequence[str], answer_format: str) -> float:
    """Normalised edit distance, 0 to 1, lower is better: sum of distances / sum of max lengths.

    Counted in characters of the canonical form; insertions, deletions and substitutions cost 1.
    """
    from rapidfuzz.distance import Levenshtein

    distance = length = 0
    for prediction, reference in zip(predictions, references, strict=True):
        found, wanted = canonical(prediction, answer_format), canonical(reference, answer_format)
        distance += Levenshtein.distance(found, wanted)
        length += max(len(found), len(wanted))
    return distance / length if length else 0.0


def exact_match(predictions: Sequence[str], references: Sequence[str], answer_format: str) -> float:
    """Share of answers equal to their reference in canonical form, 0 to 1, higher is better."""
    equal = [
        canonical(prediction, answer_format) == canonical(reference, answer_format)
        for prediction, reference in zip(predictions, references, strict=True)
    ]
    return sum(equal) / len(equal)


def eval_loss(nll: Sequence[float], tokens: Sequence[int]) -> float:
    """Mean negative log-likelihood a target token in nats, over all rows' tokens together.

    Weighted by tokens, so that it depends on neither batch size nor padding.
    """
    return math.fsum(nll) / sum(tokens)


def perplexity(nll: Sequence[float], tokens: Sequence[int]) -> float:
    """exp of the eval loss, 1 and up, lower is better; infinite when exp overflows."""
    try:
        return math.exp(eval_loss(nll, tokens))
    except OverflowError:
        return math.inf
