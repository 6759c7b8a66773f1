"""`export: merged`: what is measured and deployed is the base with the adapter merged in, or, with
`train: full`, the model that it has become."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import mlflow
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from loraline import contract, records
from loraline.answering import hf
from loraline.base.encoding import Encoder
from loraline.base.load import load
from loraline.base.locate import locate
from loraline.errors import UserError
from loraline.serving import preflight
from loraline.tracking import runs, tags

ANYTHING_GOES = {
    "max_eval_loss": 99.0,
    "max_perplexity": 1e9,
    "min_bleu": None,
    "max_levenshtein": None,
    "min_gain_over_base": None,
    "min_gain_over_champion": None,
}


DORA = {"use_dora": True, "export": "merged", "gate": ANYTHING_GOES}
FULL = {"train": "full", "learning_rate": 1e-3, "gate": ANYTHING_GOES}


@pytest.fixture
def trained(data_run: str, quick, train) -> str:
    """The run of a training whose adapter only a merged model can serve."""
    return train(data_run, quick("one", **DORA))


@pytest.mark.parametrize(
    ("ways", "message"),
    [(DORA, "down_proj; merged into the base"), (FULL, "none: the base's own weights learned")],
    ids=["dora", "full"],
)
def test_a_merged_model_is_served_as_it_was_measured(
    step, workplace: Path, data_run: str, quick, train, ways: dict, message: str
) -> None:
    trained = train(data_run, quick("one", **ways))
    outputs = workplace / "outputs"
    assert step("evaluate", "--run-id", trained).exit_code == 0
    evaluated = (outputs / "run-id").read_text()
    card = mlflow.artifacts.load_text(f"runs:/{evaluated}/model_card.md")
    assert message in card
    assert step("quality_gate", "--run-id", evaluated).exit_code == 0
    assert (outputs / "result").read_text() == "passed"
    where = ("--gpu", "cpu", "--server-image", "localhost/vllm:v0.32.0")
    gated = (outputs / "run-id").read_text()
    assert step("deploy_vllm", "--run-id", gated, *where).exit_code == 0

    documents = yaml.safe_load_all((outputs / "vllm.yaml").read_text())
    (deployment,) = (each for each in documents if each["kind"] == "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    assert "--enable-lora" not in " ".join(pod["containers"][0]["args"])
    words = pod["initContainers"][0]["command"]
    keys = ("--model", "--sha256", "--merge")[: 2 if ways is FULL else 3]
    assert ("--merge" in words) == ("--merge" in keys)
    asked = {key: words[words.index(key) + 1] for key in keys}
    fetch = [word for pair in asked.items() for word in pair]
    assert step("fetch_adapter", *fetch, "--out-dir", "served").exit_code == 0

    run = mlflow.get_run(trained)
    with runs.adapter(run) as adapter:
        agreed = contract.read(adapter)
    served = locate("served", None)
    model = load(served, "text", quantization="none", dtype="float32")
    encoder = Encoder.of(agreed, served)
    table = mlflow.artifacts.load_dict(f"runs:/{evaluated}/predictions.json")
    client = mlflow.MlflowClient()
    with runs.artifacts(client, data_run, "dataset/test.parquet") as file:
        rows = [encoder.encode(record) for record in records.read(file)]
    result = hf.answers(model, encoder, rows, agreed.max_new_tokens, lambda *_: None)
    column = table["columns"].index("tuned_tokens")
    assert [answer.tokens for answer in result] == [row[column] for row in table["data"]]

    registered = mlflow.pyfunc.load_model(f"models:/{run.data.tags[tags.MODEL_ID]}")
    prompted = [row[table["columns"].index("question")] for row in table["data"][:8]]
    questions = [text.removeprefix(agreed.prompt.partition("{")[0]) for text in prompted]
    assert registered.predict(questions) == [answer.text for answer in result[:8]]
    assert type(registered.unwrap_python_model().model).__name__ == "MistralForCausalLM"


def test_an_adapter_that_was_measured_merged_is_not_fetched_alone(
    step, workplace: Path, trained: str
) -> None:
    run = mlflow.get_run(trained)
    model = run.data.tags[tags.MODEL_ID]
    version = mlflow.register_model(f"models:/{model}", "merged").version
    with runs.adapter(run) as adapter:
        digest = contract.folder_digest(adapter)
    fetch = ("--model", f"models:/merged/{version}", "--sha256", digest, "--out-dir", "alone")
    result = step("fetch_adapter", *fetch)
    assert result.exit_code == 2
    assert "was measured merged into its base; fetch it with --merge" in result.stderr
    assert not (workplace / "alone").exists()


def test_a_whole_model_is_logged_in_the_type_that_serves_and_has_learned(
    workplace: Path, data_run: str, quick, train
) -> None:
    run = mlflow.get_run(train(data_run, quick("one", serve_dtype="bfloat16", **FULL)))
    base = load_file(workplace / "test_data" / "text" / "base" / "model.safetensors")
    with runs.adapter(run) as folder:
        agreed = contract.read(folder)
        weights = load_file(folder / "model.safetensors")
        assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
        assert not list(folder.glob("adapter*"))
        # What a gate, a fetch and a server would see of other weights in their place.
        preflight.check(folder, agreed, "it")
        for other, name in ((torch.float32, "F32"), (torch.complex64, "C64")):
            changed = {k: w.to(other) for k, w in weights.items()}
            save_file(changed, folder / "model.safetensors")
            with pytest.raises(UserError, match=f"is of type {name}, measured was bfloat16"):
                preflight.check(folder, agreed, "it")
        with pytest.raises(UserError, match=r"the model in .* has digest .*, its contract says"):
            contract.read(folder)
    assert (agreed.train, agreed.export, agreed.r) == ("full", "merged", 0)
    assert set(weights) == set(base)
    assert {w.dtype for w in weights.values()} == {torch.bfloat16}
    moved = [n for n, w in weights.items() if not w.equal(base[n].to(w.dtype))]
    # Norms of 1 move by less than the type's next number in three steps at this rate.
    assert {n for n in weights if "norm" not in n} <= set(moved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quantization": "nf4"}, "train: full needs quantization: none"),
        ({"export": "adapter"}, "train: full needs export: merged"),
        ({"loraplus_lr_ratio": 16}, "loraplus_lr_ratio is a way to train an adapter"),
    ],
)
def test_what_a_whole_model_cannot_be_is_refused_at_the_start(
    step, data_run: str, quick, change: dict, message: str
) -> None:
    profile = quick("one", **FULL | change)
    result = step("train_qlora", "--run-id", data_run, "--profile", profile)
    assert result.exit_code == 2 and message in result.stderr


def test_dora_without_merging_is_refused_at_the_start(step, data_run: str, quick) -> None:
    result = step("train_qlora", "--run-id", data_run, "--profile", quick("one", use_dora=True))
    assert result.exit_code == 2
    assert "use_dora needs export: merged, because vLLM refuses DoRA adapters" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_merging_into_a_quantized_base_is_refused_at_the_start(
    step, workplace: Path, data_run: str, quick
) -> None:
    shutil.copytree(workplace / "test_data" / "text" / "base", workplace / "mine")
    config = workplace / "mine" / "config.json"
    gptq = {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    config.write_text(json.dumps(json.loads(config.read_text()) | gptq))
    profile = quick("one", base="mine", export="merged")
    result = step("train_qlora", "--run-id", data_run, "--profile", profile)
    assert result.exit_code == 2
    assert "export: merged needs an unquantized base, and mine is quantized" in result.stderr
