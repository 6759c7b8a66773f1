import math
from dataclasses import replace
from pathlib import Path

import pytest

from loraline.answering.hf import Answer
from loraline.base.encoding import Encoder
from loraline.contract import Contract
from loraline.errors import UserError
from loraline.evaluation import measurement, metrics
from loraline.evaluation.measurement import Measurement
from loraline.records import Video, from_prompt

DATA = Path(__file__).parents[3] / "test_data"
ROWS = [from_prompt("{question}", "q", answer) for answer in ("yes it is so", "no", "maybe")]


def contract(**changes: object) -> Contract:
    settings = {
        "base": str(DATA / "vision" / "base"),
        "base_revision": "sha256:0",
        "modality": "vision",
        "architecture": "Qwen3VLForConditionalGeneration",
        "prompt": "{question}",
        "chat_template": "{{ messages }}",
        "min_pixels": 4704,
        "max_pixels": 4704,
        "max_length": 100,
        "max_new_tokens": 64,
        "dtype": "float32",
        "r": 8,
        "lora_alpha": 16,
        "target_modules": ("q_proj",),
        "trains_vision": False,
        "adapter_sha256": "0",
    }
    return Contract(**(settings | changes))


def measured(texts: list[str], **changes: object) -> Measurement:
    answers = [Answer(text, [1], False) for text in texts]
    return replace(Measurement(answers, [2.0, 1.0, 1.0], [2, 1, 1]), **changes)


def test_empty_cut_and_failed_answers_are_counted_and_count_against_the_model() -> None:
    answers = [Answer("", [], False), Answer("no", [5], True), measurement.FAILED]
    result = measured(["", "", ""], answers=answers, nll=[2.0, 1.0, math.inf])
    assert measurement.counts(answers) == {
        "empty_answers": 2,
        "truncated_answers": 1,
        "failed_answers": 1,
    }
    scores = measurement.scores(result, ROWS, "prose")
    assert scores["exact_match"].value == pytest.approx(1 / 3)
    assert scores["levenshtein"].value == pytest.approx(17 / 19)
    assert scores["eval_loss"].value == math.inf


def test_a_row_that_the_server_would_refuse_is_failed_and_not_skipped() -> None:
    encoder = Encoder(DATA / "vision" / "base", "vision", min_pixels=4704, max_pixels=4704)
    image = (DATA / "vision" / "images" / "0001.png").read_bytes()
    held_out = [
        from_prompt("Read it.", "", "a", image),
        from_prompt("Read it.", "", "a", b"no image"),
        from_prompt("Read it. " * 600, "", "a", image),
    ]
    assert list(measurement.askable(held_out, encoder, contract())) == [0]


@pytest.mark.parametrize(
    ("answer_format", "extra"), [("json", "json_field_f1"), ("boxes", "grounding_f1")]
)
def test_structured_answers_get_a_metric_of_their_own(answer_format: str, extra: str) -> None:
    result = measured(["yes", "no", "maybe"])
    scores = measurement.scores(result, ROWS, answer_format)
    assert extra in scores
    for name, metric in scores.items():
        assert metrics.HIGHER_IS_BETTER[name] == metric.higher_is_better
    assert extra not in measurement.scores(result, ROWS, "prose")


def test_the_marks_around_boxes_are_part_of_an_answer() -> None:
    base = DATA / "shapes" / "base-qwen2-vl"
    encoder = Encoder(base, "vision", min_pixels=4704, max_pixels=4704)
    cat = "<|object_ref_start|>cat<|object_ref_end|><|box_start|>(1,2),(3,4)<|box_end|>"
    image = (DATA / "vision" / "images" / "0001.png").read_bytes()
    asked = from_prompt("Where?", "", cat, image)
    tokens = encoder.encode(asked).answer
    assert encoder.decode(tokens) == cat
    scores = measurement.scores(measured([encoder.decode(tokens)] * 3), [asked] * 3, "boxes")
    assert scores["exact_match"].value == 1
    assert scores["levenshtein"].value == 0
    assert scores["grounding_f1"].value == 1


def test_gains_are_paired_and_positive_where_the_tuned_model_is_better() -> None:
    wanted = [record.answer for record in ROWS]
    models = {"base": measured(["", "", ""]), "tuned": measured(wanted)}
    result = measurement.compare(
        {name: measurement.scores(model, ROWS, "prose") for name, model in models.items()}
    )
    assert result.gains["base"]["levenshtein"].value == 1
    assert set(result.gains) == {"base"}
    flat = result.flat()
    assert flat["tuned_bleu"] == pytest.approx(100)
    assert flat["gain_over_base_exact_match"] == 1
    assert flat["gain_over_base_exact_match_low"] == result.gains["base"]["exact_match"].low < 1
    assert flat["gain_over_base_eval_loss"] == 0


def test_fingerprints_follow_vocabulary_template_pixels_and_rows(tiny_base) -> None:
    encoder = Encoder(DATA / "text" / "base", "text")
    other = Encoder(tiny_base("mistral"), "text")
    first = measurement.fingerprints(encoder, contract(), ROWS)
    assert first == measurement.fingerprints(encoder, contract(), list(ROWS))

    def differing(encoder: Encoder, agreed: Contract, rows: list) -> set[str]:
        result = measurement.fingerprints(encoder, agreed, rows)
        return {name for name in first if first[name] != result[name]}

    assert differing(other, contract(), ROWS) == {"tokenizer"}
    assert differing(encoder, contract(chat_template="other"), ROWS) == {"template"}
    assert differing(encoder, contract(max_pixels=9408), ROWS) == {"template"}
    assert differing(encoder, contract(prompt="Answer. {question}"), ROWS) == {"prompt"}
    assert differing(encoder, contract(), ROWS[:2]) == {"rows"}
    assert differing(encoder, contract(), ROWS[::-1]) == {"rows"}
    with_image = [*ROWS[:2], from_prompt("{question}", "q", "maybe", b"image")]
    assert differing(encoder, contract(), with_image) == {"rows"}
    videos = [Video((b"a", b"b"), 2.0), Video((b"a", b"c"), 2.0), Video((b"a", b"b"), 1.0)]
    with_videos = [[replace(ROWS[0], videos=(video,))] for video in videos]
    result = [measurement.fingerprints(encoder, contract(), rows)["rows"] for rows in with_videos]
    assert len(set(result)) == 3


def test_what_is_not_installed_is_refused(monkeypatch) -> None:
    monkeypatch.setattr(measurement, "find_spec", lambda name: None)
    assert measurement.chosen_engine("auto", "bfloat16") == "hf"
    with pytest.raises(UserError, match="--engine vllm: vLLM is not installed here"):
        measurement.chosen_engine("vllm", "bfloat16")


def test_without_a_gpu_auto_is_hugging_face() -> None:
    assert measurement.chosen_engine("auto", "bfloat16") == "hf"


def test_on_a_gpu_vllm_takes_what_it_can_apply_there(monkeypatch) -> None:
    monkeypatch.setattr(measurement, "find_spec", lambda name: "found")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    chosen = measurement.chosen_engine
    assert chosen("auto", "bfloat16") == chosen("vllm", "bfloat16") == "vllm"
    assert chosen("auto", "float32") == chosen("hf", "float32") == "hf"
    assert chosen("auto", "bfloat16", 1) == "hf"
    with pytest.raises(UserError, match="rows with videos are not measured with it"):
        chosen("vllm", "bfloat16", 1)
    with pytest.raises(UserError, match="adapters on GPUs in bfloat16 or float16 only; use"):
        chosen("vllm", "float32")
