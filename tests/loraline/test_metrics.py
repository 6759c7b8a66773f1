import math
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rapidfuzz.distance import Levenshtein

from loraline import metrics

texts = st.lists(st.text(st.characters(codec="ascii"), max_size=30), min_size=1, max_size=8)
pairs = st.lists(st.tuples(st.text(max_size=20), st.text(max_size=20)), min_size=1, max_size=8)
FORMATS = ("prose", "latex")


@pytest.mark.parametrize("answer_format", FORMATS)
def test_perfect_answers_score_best(answer_format: str) -> None:
    answers = [r"\frac{a}{b} + x", "y = 2 ^ { n }"]
    assert metrics.bleu(answers, answers, answer_format) == pytest.approx(100)
    assert metrics.levenshtein(answers, answers, answer_format) == 0
    assert metrics.exact_match(answers, answers, answer_format) == 1


def test_white_space_does_not_change_a_formula() -> None:
    assert metrics.exact_match([r"\frac{a}{b}"], [r"\frac { a } { b }"], "latex") == 1
    assert metrics.levenshtein([r"x^2"], ["x ^ 2"], "latex") == 0
    assert metrics.exact_match(["a b"], ["ab"], "prose") == 0


@given(pairs, st.randoms())
def test_metrics_do_not_depend_on_the_order_of_rows(pairs, random) -> None:
    shuffled = list(pairs)
    random.shuffle(shuffled)
    for answer_format in FORMATS:
        for metric in (metrics.bleu, metrics.levenshtein, metrics.exact_match):
            there = metric(*zip(*pairs, strict=True), answer_format)
            back = metric(*zip(*shuffled, strict=True), answer_format)
            assert there == pytest.approx(back)


@given(pairs)
def test_levenshtein_is_symmetric_and_between_0_and_1(pairs) -> None:
    there = metrics.levenshtein(*zip(*pairs, strict=True), "prose")
    back = metrics.levenshtein(*zip(*((b, a) for a, b in pairs), strict=True), "prose")
    assert there == back
    assert 0 <= there <= 1


def test_levenshtein_weighs_rows_by_their_length() -> None:
    found = metrics.levenshtein(["abcd", "x"], ["abcf", "y"], "prose")
    assert found == (Levenshtein.distance("abcd", "abcf") + 1) / 5


def test_an_empty_answer_scores_worst() -> None:
    assert metrics.levenshtein([""], ["abc"], "prose") == 1
    assert metrics.bleu(["", "a b c d e"], ["a b c d e", "a b c d e"], "prose") < 100


def test_bleu_equals_sacrebleu_on_its_own_command_line(tmp_path: Path) -> None:
    predictions = ["the cat sat on the mat .", "a dog, a log & 3.5 frogs"]
    references = ["the cat sat on a mat .", "a dog, a log & 3.6 frogs"]
    (tmp_path / "predictions").write_text("\n".join(predictions))
    (tmp_path / "references").write_text("\n".join(references))
    command = [sys.executable, "-m", "sacrebleu", "references", "-i", "predictions"]
    printed = subprocess.run(
        [*command, "-m", "bleu", "--score-only", "--width", "4"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert metrics.bleu(predictions, references, "prose") == pytest.approx(float(printed), abs=1e-4)


@given(st.lists(st.tuples(st.floats(0, 50), st.integers(1, 40)), min_size=2, max_size=10))
def test_perplexity_counts_every_token_alike(rows) -> None:
    nll, tokens = zip(*rows, strict=True)
    merged = metrics.perplexity([math.fsum(nll)], [sum(tokens)])
    assert metrics.perplexity(nll, tokens) == pytest.approx(merged)
    assert math.log(metrics.perplexity(nll, tokens)) == pytest.approx(
        metrics.eval_loss(nll, tokens), abs=1e-9
    )


def test_an_overflowing_perplexity_is_infinite_and_not_a_number_that_passes() -> None:
    assert metrics.perplexity([1e6], [1]) == math.inf
