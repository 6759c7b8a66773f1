import math
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rapidfuzz.distance import Levenshtein

from loraline.evaluation import metrics

texts = st.lists(st.text(min_size=1, max_size=30), min_size=1, max_size=8)
pairs = st.lists(st.tuples(st.text(max_size=20), st.text(max_size=20)), min_size=1, max_size=8)
FORMATS = ("prose", "latex", "json")
OF_TEXTS = {
    "bleu": lambda found, wanted: metrics.bleu(found, wanted, "prose"),
    "bleu of LaTeX": lambda found, wanted: metrics.bleu(found, wanted, "latex"),
    "bleu_13a": metrics.bleu_13a,
    "levenshtein": lambda found, wanted: metrics.levenshtein(found, wanted, "prose"),
    "levenshtein_mean": lambda found, wanted: metrics.levenshtein_mean(found, wanted, "latex"),
    "character_error_rate": lambda found, wanted: metrics.character_error_rate(
        found, wanted, "prose"
    ),
    "exact_match": lambda found, wanted: metrics.exact_match(found, wanted, "latex"),
    "exact_match_raw": metrics.exact_match_raw,
    "json_field_f1": metrics.json_field_f1,
    "grounding_f1": metrics.grounding_f1,
}


@pytest.mark.parametrize("answer_format", FORMATS)
def test_perfect_answers_score_best(answer_format: str) -> None:
    answers = [r"\frac{a}{b} + x", "y = 2 ^ { n }", "Paris"]
    assert metrics.bleu(answers, answers, answer_format).value == pytest.approx(100)
    assert metrics.bleu_13a(answers, answers).value == pytest.approx(100)
    assert metrics.levenshtein(answers, answers, answer_format).value == 0
    assert metrics.levenshtein_mean(answers, answers, answer_format).value == 0
    assert metrics.character_error_rate(answers, answers, answer_format).value == 0
    assert metrics.exact_match(answers, answers, answer_format).value == 1
    assert metrics.exact_match_raw(answers, answers).value == 1


@given(texts)
def test_any_text_is_a_perfect_answer_to_itself(answers) -> None:
    assert metrics.levenshtein(answers, answers, "prose").value == 0
    assert metrics.exact_match(answers, answers, "latex").value == 1
    if any(metrics.canonical(answer, "latex") for answer in answers):
        assert metrics.bleu(answers, answers, "latex").value == pytest.approx(100)


@given(pairs, st.randoms())
@pytest.mark.parametrize("name", OF_TEXTS)
def test_metrics_do_not_depend_on_the_order_of_rows(name: str, pairs, random) -> None:
    shuffled = list(pairs)
    random.shuffle(shuffled)
    there = OF_TEXTS[name](*zip(*pairs, strict=True)).value
    back = OF_TEXTS[name](*zip(*shuffled, strict=True)).value
    assert there == pytest.approx(back, nan_ok=True)


@given(pairs, pairs)
@pytest.mark.parametrize("name", OF_TEXTS)
def test_the_sums_of_two_batches_give_the_metric_of_both(name: str, one, other) -> None:
    def rows(pairs):
        return OF_TEXTS[name](*zip(*pairs, strict=True))

    whole = rows(one + other)
    sums = rows(one).rows.sum(0) + rows(other).rows.sum(0)
    assert float(whole.of_sums(sums)) == pytest.approx(whole.value, nan_ok=True)


def test_white_space_does_not_change_a_formula() -> None:
    assert metrics.exact_match([r"\frac{a}{b}"], [r"\frac { a } { b }"], "latex").value == 1
    assert metrics.exact_match_raw([r"\frac{a}{b}"], [r"\frac { a } { b }"]).value == 0
    assert metrics.levenshtein([r"x^2"], ["x ^ 2"], "latex").value == 0
    assert metrics.exact_match(["a b"], ["ab"], "prose").value == 0
    assert metrics.exact_match(['{"b":1, "a": 2}'], ['{"a":2,"b":1}'], "json").value == 1


@given(pairs)
def test_levenshtein_is_symmetric_and_between_0_and_1(pairs) -> None:
    there = metrics.levenshtein(*zip(*pairs, strict=True), "prose").value
    back = metrics.levenshtein(*zip(*((b, a) for a, b in pairs), strict=True), "prose").value
    assert there == back
    assert 0 <= there <= 1


@given(st.text(max_size=12), st.text(max_size=12), st.text(max_size=12))
def test_edit_distance_keeps_the_triangle_inequality(a: str, b: str, c: str) -> None:
    def distance(one: str, other: str) -> float:
        return float(metrics.levenshtein([one], [other], "latex").rows[0, 0])

    assert distance(a, c) <= distance(a, b) + distance(b, c)
    assert (distance(a, b) == 0) == (metrics.canonical(a, "latex") == metrics.canonical(b, "latex"))


def test_levenshtein_weighs_rows_by_their_length_and_its_mean_does_not() -> None:
    result, wanted = ["abcd", "x"], ["abcf", "y"]
    micro = (Levenshtein.distance("abcd", "abcf") + 1) / 5
    assert metrics.levenshtein(result, wanted, "prose").value == micro
    assert metrics.levenshtein_mean(result, wanted, "prose").value == (1 / 4 + 1) / 2


def test_the_character_error_rate_counts_babble_without_bound() -> None:
    assert metrics.character_error_rate(["abcabc"], ["abc"], "prose").value == 1
    assert metrics.character_error_rate(["x" * 30], ["abc"], "prose").value == 10
    assert metrics.levenshtein(["x" * 30], ["abc"], "prose").value == 1


@pytest.mark.parametrize("name", sorted(set(OF_TEXTS) - {"json_field_f1", "grounding_f1"}))
def test_an_empty_answer_scores_worst(name: str) -> None:
    wanted = ["a b c d e", "f g h i"]
    scores = [OF_TEXTS[name]([answer, wanted[1]], wanted) for answer in ("", "a b c d x")]
    better = scores[1].value - scores[0].value
    assert better >= 0 if scores[0].higher_is_better else better <= 0
    worst = OF_TEXTS[name](["", ""], wanted)
    assert worst.value == (0 if worst.higher_is_better else 1)


@pytest.mark.parametrize(("answer_format", "tokenize"), [("prose", "13a"), ("latex", "none")])
def test_bleu_equals_sacrebleu_on_its_own_command_line(
    tmp_path: Path, answer_format: str, tokenize: str
) -> None:
    predictions = ["the cat sat on the mat .", "a dog, a log & 3.5 frogs", r"\frac{a}{c}"]
    references = ["the cat sat on a mat .", "a dog, a log & 3.6 frogs", r"\frac { a } { b }"]
    for name, lines in (("predictions", predictions), ("references", references)):
        canonical = [metrics.canonical(line, answer_format) for line in lines]
        (tmp_path / name).write_text("\n".join(canonical))
    command = [sys.executable, "-m", "sacrebleu", "references", "-i", "predictions"]
    printed = subprocess.run(
        [*command, "-m", "bleu", "--score-only", "--width", "4", "--tokenize", tokenize],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    result = metrics.bleu(predictions, references, answer_format).value
    assert result == pytest.approx(float(printed), abs=1e-4)
    if answer_format == "prose":
        assert metrics.bleu_13a(predictions, references).value == result


@pytest.mark.parametrize(
    ("predictions", "references"),
    [
        (["the cat is here ."], ["the cat was here ."]),
        (["a b x d e", "q r s t"], ["a b c d e", "u v w x"]),
        (["w x y z"], ["a b c d"]),
    ],
    ids=["no 3-grams match", "no 3-grams of two rows match", "nothing matches"],
)
def test_bleu_equals_sacrebleus_command_where_orders_have_no_match(
    tmp_path: Path, predictions: list[str], references: list[str]
) -> None:
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
    result = metrics.bleu(predictions, references, "prose").value
    assert result == pytest.approx(float(printed), abs=1e-4)


SENTENCES = st.lists(st.sampled_from("abcd"), min_size=1, max_size=9).map(" ".join)


@given(st.lists(st.tuples(SENTENCES, SENTENCES), min_size=1, max_size=5))
def test_bleu_is_sacrebleus_of_the_corpus(pairs: list[tuple[str, str]]) -> None:
    from sacrebleu.metrics import BLEU

    predictions, references = map(list, zip(*pairs, strict=True))
    theirs = BLEU(effective_order=True).corpus_score(predictions, [references]).score
    assert metrics.bleu(predictions, references, "prose").value == pytest.approx(theirs)


def test_the_signature_names_tokenizer_smoothing_and_version() -> None:
    assert metrics.bleu_signature("latex").startswith("nrefs:1|case:mixed|eff:yes|tok:none|")
    assert "tok:13a|smooth:exp|version:" in metrics.bleu_signature("prose")


@given(st.lists(st.tuples(st.floats(0, 50), st.integers(1, 40)), min_size=2, max_size=10))
def test_perplexity_counts_every_token_alike(rows) -> None:
    nll, tokens = zip(*rows, strict=True)
    merged = metrics.perplexity([math.fsum(nll)], [sum(tokens)]).value
    assert metrics.perplexity(nll, tokens).value == pytest.approx(merged)
    assert math.log(metrics.perplexity(nll, tokens).value) == pytest.approx(
        metrics.eval_loss(nll, tokens).value, abs=1e-9
    )


@pytest.mark.parametrize("nll", [1e6, math.inf])
def test_an_overflowing_perplexity_is_infinite_and_not_a_number_that_passes(nll: float) -> None:
    assert metrics.perplexity([nll, 1.0], [1, 1]).value == math.inf


@pytest.mark.parametrize(
    ("result", "wanted", "score"),
    [
        ('{"a": 1, "b": {"c": "x"}}', '{"b": {"c": "x"}, "a": 1}', 1.0),
        ('{"a": 1, "b": 2}', '{"a": 1, "b": 3}', 0.5),
        ('{"a": 1}', '{"a": 1, "b": 3, "c": 4}', 0.5),
        ('{"items": ["x", "y"]}', '{"items": ["y", "x"]}', 1.0),
        ('{"a": "1"}', '{"a": 1}', 0.0),
        ('{"a.b": 1}', '{"a": {"b": 1}}', 0.0),
        ('{"a[]": 1}', '{"a": [1]}', 0.0),
        ('```json\n{"a": 1}\n```', '{"a": 1}', 1.0),
        ("no JSON", '{"a": 1}', 0.0),
        ("", '{"a": 1}', 0.0),
    ],
)
def test_json_answers_are_compared_field_by_field(result: str, wanted: str, score: float) -> None:
    assert metrics.json_field_f1([result], [wanted]).value == pytest.approx(score)


@pytest.mark.parametrize(("result", "score"), [("none", 1.0), (" none\n", 1.0), ("no", 0.0)])
def test_a_reference_that_is_no_json_is_one_field(result: str, score: float) -> None:
    assert metrics.json_field_f1([result], ["none"]).value == score
    both = metrics.json_field_f1([result, '{"a": 1}'], ["none", '{"a": 1}'])
    assert both.value == pytest.approx((1 + score) / 2)


def test_fields_of_all_rows_count_together() -> None:
    result = ['{"a": 1, "b": 2, "c": 3}', '{"a": 0}']
    wanted = ['{"a": 1, "b": 2, "c": 3}', '{"a": 1}']
    assert metrics.json_field_f1(result, wanted).value == pytest.approx(2 * 3 / 8)


@pytest.mark.parametrize(
    ("result", "wanted", "score"),
    [
        ("(0,0),(10,10)", "[0, 0, 10, 10]", 1.0),
        ("(0,0),(10,5)", "(0,0),(10,10)", 1.0),
        ("(0,0),(10,4.9)", "(0,0),(10,10)", 0.0),
        ("(10,10),(0,0)", "(0,0),(10,10)", 1.0),
        ('[{"bbox_2d": [0, 0, 10, 10]}, {"bbox_2d": [0, 0, 10, 10]}]', "(0,0),(10,10)", 2 / 3),
        ("(0,0),(10,10) (20,20),(30,30)", "(20,20),(30,30) (0,0),(10,10)", 1.0),
        ("(1.2.3,0),(10,10)", "(0,0),(10,10)", 0.0),
        ("", "(0,0),(10,10)", 0.0),
        ("nothing there", "nothing", 1.0),
    ],
)
def test_boxes_count_when_they_overlap_by_half(result: str, wanted: str, score: float) -> None:
    assert metrics.grounding_f1([result], [wanted]).value == pytest.approx(score)


corners = st.tuples(*[st.integers(0, 20)] * 4).map(
    lambda c: (min(c[0], c[2]), min(c[1], c[3]), max(c[0], c[2]), max(c[1], c[3]))
)


@given(corners, corners)
def test_iou_is_symmetric_between_0_and_1_and_1_for_itself(one, other) -> None:
    assert metrics.iou(one, other) == metrics.iou(other, one)
    assert 0 <= metrics.iou(one, other) <= 1
    assert metrics.iou(one, one) == 1


@pytest.mark.parametrize("depth", [10, 900, 985, 990, 995, 1000, 100_000])
def test_an_answer_of_any_depth_is_scored(depth: int) -> None:
    nested = "[" * depth + "]" * depth
    for metric in (metrics.json_field_f1([nested], ["[1]"]), metrics.bleu([nested], ["1"], "json")):
        assert metric.value == 0


def test_numbers_are_equal_however_they_are_written() -> None:
    assert metrics.json_field_f1(['{"a": 1.0, "b": 2e3}'], ['{"a": 1, "b": 2000}']).value == 1
    assert metrics.exact_match(['{"a": 1.50}'], ['{"a":1.5}'], "json").value == 1
    assert metrics.json_field_f1(['{"a": 1.5}'], ['{"a": 1}']).value == 0


@pytest.mark.parametrize(
    ("text", "answer_format", "canonical"),
    [
        (r"\frac {a}{b}", "latex", r"\frac { a } { b }"),
        (r"x\%  y", "latex", r"x \% y"),
        ("  two\twords\n here ", "prose", "two words here"),
        ('{"b": 1.0, "a": "é"}', "json", '{"a": "é", "b": 1}'),
        ("no  json", "json", "no json"),
        (r'{"a\udc00": "\ud83d\ude42 \ud83d"}', "json", '{"a\ufffd": "🙂 \ufffd"}'),
    ],
)
def test_the_form_in_which_answers_are_compared(
    text: str, answer_format: str, canonical: str
) -> None:
    assert metrics.canonical(text, answer_format) == canonical


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('```json\n{"a": 1}\n```', {"a": 1}),
        (" \n```[1]``` ", [1]),
        ('```json{"a": "```"}```', {"a": "```"}),
        ("```json```", metrics.INVALID),
        ("```", metrics.INVALID),
        ("`````", metrics.INVALID),
        ('```python\n{"a": 1}\n```', metrics.INVALID),
        ('{"a": 1}\n```', metrics.INVALID),
    ],
)
def test_json_stands_alone_or_in_a_fence(text: str, value: object) -> None:
    assert metrics.parse_json(text) == value


@pytest.mark.parametrize("text", ["```json" + "\n" * 6000, "```" + " " * 3000 + "a" + " " * 3000])
def test_an_answer_that_never_ends_its_fence_is_read_in_a_moment(text: str) -> None:
    started = time.monotonic()
    assert metrics.parse_json(text) is metrics.INVALID
    assert time.monotonic() - started < 1


def test_extremes_are_all_wrong_and_all_right_at_the_mean_weight() -> None:
    rows = np.array([[1.0, 4.0], [2.0, 6.0]])

    assert metrics.extremes_of_share(rows).tolist() == [[0.0, 5.0], [5.0, 5.0]]


def test_a_metric_without_bounds_has_no_row_at_its_extremes() -> None:
    assert metrics.eval_loss([1.0, 2.0], [1, 1]).at_extremes == 0.0


def test_a_perfect_bleu_is_a_hundred_and_not_a_rounding_error_more() -> None:
    assert metrics.bleu(["a b c d e"], ["a b c d e"], "prose").value == 100.0


def test_a_mean_of_shares_divides_by_the_longer_text_and_takes_two_empty_ones_for_equal() -> None:
    # "ab" for "abcd" lacks 2 of 4, "abcd" for "ab" has 2 of 4 too many.
    result = metrics.levenshtein_mean(["ab", "abcd", ""], ["abcd", "ab", ""], "prose")

    assert result.value == pytest.approx((0.5 + 0.5 + 0.0) / 3)


def test_equal_to_the_letter_means_white_space_too() -> None:
    assert metrics.exact_match_raw(["a ", "b"], ["a", "b"]).value == 0.5
    assert metrics.exact_match(["a ", "b"], ["a", "b"], "prose").value == 1.0


def test_each_metric_points_the_way_that_its_name_is_listed_with() -> None:
    texts = (["a b"], ["a b"])
    pointing = {
        "bleu": metrics.bleu(*texts, "prose"),
        "bleu_13a": metrics.bleu_13a(*texts),
        "levenshtein": metrics.levenshtein(*texts, "prose"),
        "levenshtein_mean": metrics.levenshtein_mean(*texts, "prose"),
        "character_error_rate": metrics.character_error_rate(*texts, "prose"),
        "exact_match": metrics.exact_match(*texts, "prose"),
        "exact_match_raw": metrics.exact_match_raw(*texts),
        "eval_loss": metrics.eval_loss([1.0], [1]),
        "perplexity": metrics.perplexity([1.0], [1]),
        "json_field_f1": metrics.json_field_f1(*texts),
        "grounding_f1": metrics.grounding_f1(*texts),
    }
    listed = {name: metrics.HIGHER_IS_BETTER[name] for name in pointing}

    assert {name: metric.higher_is_better for name, metric in pointing.items()} == listed
    assert not any(listed[name] for name in ("eval_loss", "perplexity", "levenshtein"))
    assert listed["bleu"] and listed["exact_match"]


def test_bleus_extremes_are_no_hit_and_every_hit() -> None:
    metric = metrics.bleu(["a b c d"], ["a b c d"], "prose")
    assert metric.extremes is not None
    worst, best = metric.of_sums(metric.extremes)

    assert worst < best == 100.0


def test_a_field_that_is_said_twice_is_one_too_many() -> None:
    assert metrics.json_field_f1(['["a", "a"]'], ['["a"]']).value == pytest.approx(2 / 3)


def test_a_value_under_another_key_is_another_field() -> None:
    assert metrics.json_field_f1(['{"a": 1, "b": 2}'], ['{"a": 2, "b": 1}']).value == 0.0
    assert metrics.json_field_f1(['{"a": [1, {"b": 2}]}'], ['{"a": [{"b": 2}, 1]}']).value == 1.0


def test_the_best_overlap_is_matched_first_even_where_that_leaves_fewer_matches() -> None:
    # A covers X by 0.90 and Y by 0.67, B covers X by 0.67: A takes X, and B is left with Y at 0.38.
    result = "[0.5, 0, 10.5, 10] [-2, 0, 8, 10]"
    wanted = "[0, 0, 10, 10] [2.5, 0, 12.5, 10]"

    assert metrics.grounding_f1([result], [wanted]).value == 0.5


@pytest.mark.parametrize(
    "other", [(2.0, 2.0, 3.0, 3.0), (2.0, 0.0, 3.0, 1.0), (0.0, 2.0, 1.0, 3.0)]
)
def test_boxes_apart_share_nothing(other: tuple[float, float, float, float]) -> None:
    assert metrics.iou((0.0, 0.0, 1.0, 1.0), other) == 0.0
