"""Training on a tiny base: what is logged, what is reused, and what the masks and rates are."""

import json
import math
import shutil
from pathlib import Path

import mlflow
import pytest
import yaml

from loraline import contract
from loraline.base.encoding import Encoder
from loraline.base.locate import locate
from loraline.profiles.profile import Profile
from loraline.records import from_prompt
from loraline.serving import preflight
from loraline.tracking import run_profile, runs, store, tags
from loraline.training import memory, trainer


def test_the_adapter_travels_with_its_contract(train, data_run: str, quick) -> None:
    run = mlflow.get_run(train(data_run, quick("one", r=4, lora_alpha=8)))
    with runs.adapter(run) as adapter:
        agreed = contract.read(adapter)
        assert preflight.findings(adapter, agreed.base, agreed.trains_vision) == []
    assert (agreed.r, agreed.lora_alpha, agreed.dtype) == (4, 8, "float32")
    assert agreed.base == "test_data/text/base"
    assert agreed.base_revision.startswith("sha256:")
    assert agreed.prompt == "Answer in a few words. {question}"
    assert agreed.architecture == "MistralForCausalLM"
    assert run.info.run_name == f"tiny-mistral-lora-one-v{run.data.params['data_version']}"
    assert run.data.params["rows_per_step"] == "16"


def test_a_pissa_adapter_is_logged_as_a_plain_lora_of_twice_the_rank(
    step, train, data_run: str, quick, workplace: Path
) -> None:
    pissa = {"init_lora_weights": "pissa", "quantization": "none", "r": 4, "lora_alpha": 8}
    train_id = train(data_run, quick("one", **pissa))
    with runs.adapter(mlflow.get_run(train_id)) as adapter:
        agreed = contract.read(adapter)
        assert preflight.findings(adapter, agreed.base, agreed.trains_vision) == []
        assert preflight.highest_rank(adapter) == agreed.r == 8
    assert agreed.lora_alpha == 16
    assert step("evaluate", "--run-id", train_id).exit_code == 0
    evaluated = mlflow.get_run((workplace / "outputs" / "run-id").read_text()).data.metrics
    assert evaluated["tuned_eval_loss"] < evaluated["base_eval_loss"]


def test_curves_and_costs_are_logged(train, data_run: str, quick) -> None:
    settings = {"num_train_epochs": 2, "max_steps": None, "early_stopping_patience": 5}
    run = mlflow.get_run(train(data_run, quick("one", **settings)))
    client = mlflow.MlflowClient()
    history = {
        key: client.get_metric_history(run.info.run_id, key)
        for key in ("loss", "train_loss", "eval_loss", "tokens_per_second")
    }
    assert [point.step for point in history["loss"]] == list(range(1, 37))
    epochs = [point.value for point in history["train_loss"]]
    assert [point.step for point in history["train_loss"]] == [18, 36]
    assert epochs[1] == pytest.approx(sum(p.value for p in history["loss"][18:]) / 18)
    result = run.data.metrics
    assert result["final_eval_loss"] == min(point.value for point in history["eval_loss"])
    assert result["final_perplexity"] == pytest.approx(math.exp(result["final_eval_loss"]))
    assert min(result[key] for key in ("train_seconds", "peak_memory_gib")) > 0
    assert "mfu" not in result


def test_a_loss_that_is_not_a_number_ends_the_training(step, data_run: str, quick) -> None:
    profile = quick("one", learning_rate=1e30, warmup_steps=0, max_steps=10)
    result = step("train_qlora", "--run-id", data_run, "--profile", profile)
    assert result.exit_code == 2
    assert "the loss is not a number at step" in result.stderr and "lower" in result.stderr
    (run,) = mlflow.search_runs(
        filter_string=f"tags.`{tags.STEP}` = 'train_qlora'", output_format="list"
    )
    assert run.info.status == "FAILED"


def test_an_adapter_that_vllm_would_not_apply_ends_the_training(
    step, data_run: str, quick, workplace: Path
) -> None:
    profile = quick("one", learning_rate=1e-30, warmup_steps=0)
    result = step("train_qlora", "--run-id", data_run, "--profile", profile)
    (run,) = mlflow.search_runs(
        filter_string=f"tags.`{tags.STEP}` = 'train_qlora'", output_format="list"
    )
    assert result.exit_code == 2
    assert f"the adapter of run {run.info.run_id} cannot be served: " in result.stderr
    assert "moves no layer of the base, so the answers are the base's" in result.stderr
    assert run.info.status == "FAILED"
    assert not mlflow.search_logged_models(["1"], output_format="list")


def test_the_same_inputs_are_trained_once(train, data_run: str, quick) -> None:
    first = train(data_run, quick("one"))
    assert train(data_run, "one") == first
    quick("one", gate={"max_perplexity": 9.0})
    assert train(data_run, "one") == first
    quick("one", learning_rate=1e-3)
    assert train(data_run, "one") != first
    assert train(data_run, quick("two")) != first


def test_another_chat_template_in_the_bases_folder_is_trained_anew(
    train, data_run: str, quick, workplace: Path
) -> None:
    shutil.copytree(workplace / "test_data" / "text" / "base", workplace / "mine")
    first = train(data_run, quick("one", base="mine"))
    template = workplace / "mine" / "chat_template.jinja"
    template.write_text(template.read_text().replace("[/INST]", "[/INST] :"))
    second = train(data_run, "one")
    assert second != first
    with runs.adapter(mlflow.get_run(second)) as adapter:
        assert "[/INST] :" in contract.read(adapter).chat_template


def test_rows_over_max_length_are_dropped(train, data_run: str, quick) -> None:
    run = mlflow.get_run(train(data_run, quick("one", max_length=60)))
    assert 0 < run.data.metrics["train_rows_too_long"] < 288
    with runs.adapter(run) as adapter:
        assert contract.read(adapter).max_length <= 60


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"modality": "vision", "min_pixels": 784, "max_pixels": 7840},
            "a base of class MistralForCausalLM cannot be trained with modality: vision",
        ),
        (
            {"base": "test_data/vision/base"},
            "a base of class Qwen3VLForConditionalGeneration cannot be trained with modality: text",
        ),
    ],
)
def test_a_base_whose_adapters_no_server_takes_is_refused_before_anything_is_loaded(
    step, data_run: str, quick, changes: dict[str, object], message: str
) -> None:
    result = step("train_qlora", "--run-id", data_run, "--profile", quick("one", **changes))
    assert result.exit_code == 2
    assert message in result.stderr
    filters = f"tags.`{tags.STEP}` = 'train_qlora'"
    assert not mlflow.search_runs(filter_string=filters, output_format="list")


def test_a_max_length_below_every_row_is_refused(step, data_run: str, quick) -> None:
    result = step("train_qlora", "--run-id", data_run, "--profile", quick("one", max_length=16))
    assert result.exit_code == 2
    assert "every train row is longer than max_length 16; the shortest has" in result.stderr
    assert not mlflow.search_logged_models(["1"], output_format="list")


RATES = {"merger_learning_rate": 1e-3, "tower_learning_rate": 2e-3}
LEARNING = [
    (RATES, {"language_model": 1e-2, "visual": 1e-3, "blocks": 2e-3}),
    ({**RATES, "tune": {"language": False}}, {"visual": 1e-3, "blocks": 2e-3}),
    ({"tune": {"vision": True, "language": False}}, {"blocks": 1e-2}),
    ({"tune": {"merger": True}}, {"language_model": 1e-2, "visual": 1e-2}),
]


@pytest.mark.parametrize(("parts", "expected"), LEARNING)
@pytest.mark.parametrize("architecture", ["qwen2-vl", "qwen2.5-vl", "qwen3-vl"])
def test_the_parts_of_a_vision_model_learn_at_their_own_rates_or_not_at_all(
    tiny_base, workplace: Path, architecture: str, parts: dict, expected: dict[str, float]
) -> None:
    base = locate(str(tiny_base(architecture)), None)
    recipe = Profile(
        base=str(base.path),
        modality="vision",
        r=2,
        lora_alpha=4,
        target_modules=["q_proj"],
        learning_rate=1e-2,
        **parts,
        min_pixels=784,
        max_pixels=4704,
        warmup_steps=0,
        lr_scheduler_type="constant",
        max_steps=2,
    )
    encoder = Encoder(base.path, "vision", min_pixels=784, max_pixels=4704)
    image = next((Path(__file__).parents[2] / "test_data/vision/images").glob("*.png"))
    record = from_prompt("Read.", "", "x + y", image.read_bytes())
    rows = {split: [encoder.encode(record)] * 8 for split in ("train", "validation")}
    sft = trainer.build(recipe, base, encoder, rows, memory.CPU, workplace)
    store.connect()
    with mlflow.start_run():
        sft.train()
    learning = {id(p): name for name, p in sft.model.named_parameters() if p.requires_grad}
    rates: dict[str, set[float]] = {}
    for group in sft.optimizer.param_groups:
        for parameter in group["params"]:
            name = learning.pop(id(parameter))
            part = next(part for part in ("blocks", "visual", "language_model") if part in name)
            rates.setdefault(part, set()).add(group["lr"])
    assert rates == {part: {rate} for part, rate in expected.items()}
    assert not learning
    still = [n for n, p in sft.model.named_parameters() if "lora_B" in n and not bool(p.any())]
    assert still == []


def test_what_is_set_for_one_run_is_trained_with_and_tagged(
    step, workplace: Path, data_run: str, quick
) -> None:
    words = ("--run-id", data_run, "--profile", quick("own"))
    sets = ("--set", "r=4 lora_alpha=4", "--set", "gate.min_rows=3")
    assert step("train_qlora", *words, *sets).exit_code == 0
    client = mlflow.MlflowClient()
    run = client.get_run((workplace / "outputs" / "run-id").read_text())
    assert (run.data.params["r"], run.data.params["lora_alpha"]) == ("4", "4")
    assert json.loads(run.data.tags["loraline.profile.set"]) == [
        *("r=4", "lora_alpha=4", "gate.min_rows=3")
    ]
    assert "reused" in step("train_qlora", *words, *sets).stdout
    assert "reused" not in step("train_qlora", *words, "--set", "r=2 max_steps=1").stdout
    refused = step("train_qlora", *words, "--set", "lora_alfa=3")
    assert refused.exit_code == 2
    assert "unknown key 'lora_alfa'" in refused.stderr


def test_a_recipe_that_comes_with_the_workflow_is_trained_logged_and_fingerprinted(
    step, workplace: Path, data_run: str, quick
) -> None:
    content = yaml.safe_load((workplace / "lora_profiles" / "data.yaml").read_text())
    words = ("--run-id", data_run, "--profile", "mine", "--recipes")
    recipe = yaml.safe_dump({"mine": content | {"r": 4}})
    assert step("train_qlora", *words, recipe).exit_code == 0
    run = mlflow.get_run((workplace / "outputs" / "run-id").read_text())
    assert (run.data.params["r"], run.data.tags[tags.PROFILE]) == ("4", "mine")
    assert run_profile.of_training(mlflow.MlflowClient(), run).r == 4
    assert "reused" in step("train_qlora", *words, recipe).stdout
    other = yaml.safe_dump({"mine": content | {"r": 2}})
    assert "reused" not in step("train_qlora", *words, other).stdout


def test_after_a_group_of_machines_the_step_hands_over_its_run_or_its_exit_code(
    step, train, workplace: Path, data_run: str, quick
) -> None:
    name = quick("own")
    words = ("--run-id", data_run, "--profile", name, "--ended")
    (workplace / "outputs" / "run-id").unlink()
    for how, code, message in (
        (
            "Complete: Matched rules at index 0",
            2,
            "MLflow has no finished training of these inputs",
        ),
        ("Failed: Container main for pod a/b failed with exit code 137 matching", 137, "a/b"),
        ("Failed: Job has reached the specified backoff limit", 1, "their logs say why"),
        ("", 1, "for an unknown reason"),
    ):
        ended = step("train_qlora", *words, how)
        assert ended.exit_code == code
        assert message in ended.stderr
        assert not (workplace / "outputs" / "run-id").exists()
    trained = train(data_run, name)
    assert step("train_qlora", *words, "Complete: Matched rules at index 0").exit_code == 0
    assert (workplace / "outputs" / "run-id").read_text() == trained


def test_a_reused_training_is_tagged_with_what_was_set_last(train, data_run: str, quick) -> None:
    name = quick("own")
    first = train(data_run, name)
    for sets in (["gate.min_bleu=99"], ["gate.min_bleu=5"], []):
        words = (word for text in sets for word in ("--set", text))
        assert train(data_run, name, *words) == first
        assert json.loads(mlflow.get_run(first).data.tags[tags.OVERRIDES]) == sets


def test_a_training_gone_on_with_is_tagged_with_what_was_set_last(
    train, data_run: str, quick
) -> None:
    name = quick("own")
    first = train(data_run, name, "--set", "gate.min_bleu=99")
    mlflow.MlflowClient().update_run(first, status="RUNNING")
    assert train(data_run, name) == first
    assert json.loads(mlflow.get_run(first).data.tags[tags.OVERRIDES]) == []


def test_data_on_which_the_gate_can_only_reject_is_refused_before_training(
    step, workplace: Path, quick
) -> None:
    people = [{"question": f"Who is {n}?", "answer": f"Person {n}."} for n in range(60)]
    data = workplace / "people.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in people))
    name = quick("own")
    prepared = step("prepare_data", "--profile", name, "--data", data)
    rows = mlflow.get_run(run_id := (workplace / "outputs/run-id").read_text()).data.metrics
    few = int(rows["test_rows"])
    assert few < 20
    assert f"warning: {few} test rows, and the gate asks for 20 (gate.min_rows)" in prepared.stderr
    refused = step("train_qlora", "--run-id", run_id, "--profile", name)
    assert refused.exit_code == 2
    assert f"the dataset has {few} test rows, and the gate asks for 20" in refused.stderr
    enough = ("--set", f"gate.min_rows={few}")
    trained = step("train_qlora", "--run-id", run_id, "--profile", name, *enough)
    assert trained.exit_code == 0, trained.stderr
