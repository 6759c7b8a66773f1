"""A metric of the user's own is measured, shown and judged as ours are."""

from __future__ import annotations

import json
from pathlib import Path

import mlflow
import pytest

from loraline.errors import UserError
from loraline.evaluation import measurement, plugins
from loraline.evaluation.metrics import HIGHER_IS_BETTER
from loraline.profiles.limits import BUILT_IN
from loraline.profiles.profile import Profile

WORDS = '''
"""The share of the reference's words that the answer has."""


def score(answer: str, reference: str) -> float:
    wanted = set(reference.split())
    return len(wanted & set(answer.split())) / max(len(wanted), 1)
'''
LENGTH = """
HIGHER_IS_BETTER = False


def score(answer, reference):
    return abs(len(answer) - len(reference)) / max(len(answer), len(reference), 1)
"""


@pytest.fixture
def files(workplace: Path) -> list[str]:
    (workplace / "metrics").mkdir()
    names = {"word_recall": WORDS, "length_error": LENGTH}
    for name, text in names.items():
        (workplace / "metrics" / f"{name}.py").write_text(text)
    return [f"metrics/{name}.py" for name in names]


def test_a_metric_of_a_file_goes_through_evaluation_gate_and_report(
    step, workplace: Path, data_run, quick, train, files: list[str]
) -> None:
    limits = {"word_recall": 0.9, "length_error": 0.5}
    train_id = train(data_run, quick("one", metrics=files, gate={"limits": limits}))
    ended = step("evaluate", "--run-id", train_id)
    assert "word_recall: base " in ended.stdout
    evaluate_id = (workplace / "outputs" / "run-id").read_text()
    evaluated = mlflow.get_run(evaluate_id)
    for name in limits:
        value = evaluated.data.metrics[f"tuned_{name}"]
        assert value == mlflow.get_run(train_id).data.metrics[f"tuned_{name}"]
        assert evaluated.data.metrics[f"tuned_{name}_low"] <= value
    page = mlflow.artifacts.load_text(f"runs:/{evaluate_id}/report.html")
    assert "<tr><td>word_recall<small>higher is better" in page
    assert "<tr><td>length_error<small>lower is better" in page
    step("quality_gate", "--run-id", evaluate_id)
    card = json.loads((workplace / "outputs" / "scorecard.json").read_text())
    assert card["better"] == {"word_recall": "higher", "length_error": "lower"}
    verdicts = mlflow.artifacts.load_dict(
        f"runs:/{(workplace / 'outputs' / 'run-id').read_text()}/verdict.json"
    )["verdicts"]
    judged = {v["metric"]: (v["relation"], v["limit"], v["value"]) for v in verdicts}
    assert judged["tuned_word_recall"][:2] == ("at least", 0.9)
    assert judged["tuned_length_error"][:2] == ("at most", 0.5)
    assert judged["tuned_word_recall"][2] == evaluated.data.metrics["tuned_word_recall"]


def test_an_edited_metric_measures_anew_and_trains_nothing_anew(
    step, workplace: Path, data_run, quick, train, files: list[str]
) -> None:
    name = quick("one", metrics=files[:1])
    train_id = train(data_run, name)
    step("evaluate", "--run-id", train_id)
    assert "reused" in step("evaluate", "--run-id", train_id).stdout
    file = workplace / files[0]
    file.write_text(file.read_text().replace("max(len(wanted), 1)", "max(len(wanted), 2)"))
    assert train(data_run, name) == train_id
    assert "reused" not in step("evaluate", "--run-id", train_id).stdout


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("def score(answer, reference):\n    return 2\n", "gave 2 for held-out row 0"),
        ("def score(answer, reference):\n    return 1 / 0\n", "row 0: ZeroDivisionError"),
    ],
)
def test_a_score_that_is_none_is_refused(tmp_path: Path, text: str, sentence: str) -> None:
    file = tmp_path / "mine.py"
    file.write_text(text)
    (mine,) = plugins.load([str(file)])
    with pytest.raises(UserError, match=sentence):
        mine.measure(["a"], ["b"])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "has no function score"),
        ("import nowhere_at_all\n", "ModuleNotFoundError"),
        (None, "there is no such file"),
    ],
)
def test_a_file_that_is_no_metric_is_refused(
    tmp_path: Path, text: str | None, sentence: str
) -> None:
    file = tmp_path / "mine.py"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UserError, match=sentence):
        plugins.load([str(file)])


WITH_A_CLASS = """
from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Pair:
    answer: str
    reference: str


def score(answer, reference):
    pair = Pair(answer, reference)
    return pair.answer == pair.reference
"""


def test_a_file_may_have_classes_that_look_up_their_module(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(WITH_A_CLASS)
    (mine,) = plugins.load([str(file)])
    assert mine.measure(["a", "b"], ["a", "c"]).value == 0.5
    file.write_text("raise ValueError\n")
    with pytest.raises(UserError, match="ValueError"):
        plugins.load([str(file)])
    assert mine.measure(["a"], ["a"]).value == 1


def test_an_installed_package_names_a_metric_by_its_entry_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shop_metrics.py").write_text(WORDS)
    folder = tmp_path / "shop_metrics-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: shop-metrics\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text("[loraline.metrics]\nword_recall = shop_metrics\n")
    monkeypatch.syspath_prepend(tmp_path)
    (metric,) = plugins.load(["word_recall"])
    assert metric.measure(["red lamp", "no"], ["red lamp", "red chair"]).value == 0.5
    with pytest.raises(UserError, match=r"loraline.metrics: word_recall"):
        plugins.load(["word_recal"])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"gate": {"limits": {"word_recall": 0.5}}}, "gate.limits: 'word_recall' is refused"),
        ({"gate": {"limits": {"json_field_f1": 0.5}}}, "is measured with answer_format: json"),
        (
            {"answer_format": "json", "gate": {"limits": {"grounding_f1": 0.5}}},
            "gate.limits: 'grounding_f1' is measured with answer_format: boxes alone",
        ),
        ({"gate": {"compare_on": "word_recall"}}, "gate.compare_on: 'word_recall' is refused"),
        ({"metrics": ["a/Word Recall.py"]}, "a name is of small letters"),
        ({"metrics": ["a/m.py", "b/m.py"]}, "a name is of small letters, digits and _, once"),
        ({"metrics": ["a/eval_loss.py"]}, "metrics: 'eval_loss' is refused, it names a number"),
        ({"metrics": ["failed_answers"]}, "metrics: 'failed_answers' is refused"),
        ({"metrics": ["a/bleu_low.py"]}, "metrics: 'bleu_low' is refused"),
        ({"metrics": ["a/m_high.py", "a/m.py"]}, "metrics: 'm_high' is refused"),
    ],
)
def test_a_limit_is_of_a_metric_that_is_measured_under_a_name_of_its_own(
    changes: dict, sentence: str
) -> None:
    keys = {"r": 8, "lora_alpha": 8, "target_modules": ["q_proj"], **changes}
    with pytest.raises(ValueError, match=sentence):
        Profile.model_validate(keys)


def test_no_metric_of_ours_may_be_replaced() -> None:
    counted = measurement.counts([])
    assert set(BUILT_IN) == HIGHER_IS_BETTER.keys() | counted.keys()
