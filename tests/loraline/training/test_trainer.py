"""The trainer on a tiny base: packing, memory and rates do not change what is learned."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.testing import assert_close
from transformers import TrainerCallback

from loraline.base.encoding import Encoder, Row
from loraline.base.load import attach, load
from loraline.base.locate import locate
from loraline.errors import UserError
from loraline.profiles.profile import Profile
from loraline.training import arguments, attention, curves, lora, loss, memory, pissa, trainer
from loraline.training.readings import Reading

RECIPE = {
    "r": 4,
    "lora_alpha": 8,
    "lora_dropout": 0.0,
    "target_modules": ("q_proj", "v_proj", "down_proj"),
    "learning_rate": 1e-2,
    "warmup_steps": 0,
    "rows_per_step": 8,
    "max_steps": 4,
}
Make = Callable[..., trainer.PackedTrainer]


@pytest.fixture
def make(tiny_base: Callable[[str], Path], tmp_path: Path) -> Make:
    """A trainer of a recipe like RECIPE on 24 rows of uneven length."""
    base = locate(str(tiny_base("mistral")), None)
    encoder = Encoder(base.path, "text")
    generator = torch.Generator().manual_seed(0)

    def row(number: int) -> Row:
        tokens = torch.randint(10, 200, (5 + 7 * (number % 9),), generator=generator).tolist()
        return Row(tokens[:-3], [*tokens[-3:], encoder.end])

    rows = {"train": [row(n) for n in range(24)], "validation": [row(n) for n in range(7)]}

    def build(plan: memory.Plan = memory.CPU, **changes: Any) -> trainer.PackedTrainer:
        recipe = Profile(base=str(base.path), **RECIPE | changes)
        torch.manual_seed(0)
        return trainer.build(recipe, base, encoder, rows, plan, tmp_path)

    return build


def learned(sft: trainer.PackedTrainer) -> dict[str, torch.Tensor]:
    sft.train()
    return {n: p.detach() for n, p in sft.model.named_parameters() if p.requires_grad}


def curve(sft: trainer.PackedTrainer, key: str) -> list[float]:
    return [entry[key] for entry in sft.state.log_history if key in entry]


@pytest.mark.parametrize(
    "plan",
    [
        memory.Plan(1, checkpointing=False, dequantized=False, fused=False),
        memory.Plan(100, checkpointing=False, dequantized=False, fused=False),
        memory.Plan(2048, checkpointing=True, dequantized=False, fused=False),
        memory.Plan(2048, checkpointing=False, dequantized=True, fused=False),
    ],
    ids=["a row a pass", "small packs", "recomputed", "unpacked weights"],
)
def test_how_memory_is_spent_does_not_change_what_is_learned(plan: memory.Plan, make: Make) -> None:
    reference, other = make(), make(plan)
    expected, result = learned(reference), learned(other)
    for key in ("loss", "eval_loss"):
        assert curve(other, key) == pytest.approx(curve(reference, key), abs=1e-4)
    for name, weight in expected.items():
        assert_close(result[name], weight, atol=1e-3, rtol=1e-2, msg=name)


def test_a_base_in_fp8_learns_the_same_under_every_plan(make: Make) -> None:
    changes = {"quantization": "fp8"}
    reference = make(**changes)
    recomputed = make(
        memory.Plan(2048, checkpointing=True, dequantized=True, fused=False), **changes
    )
    expected, result = learned(reference), learned(recomputed)
    for key in ("loss", "eval_loss"):
        assert curve(recomputed, key) == pytest.approx(curve(reference, key), abs=1e-5)
    for name, weight in expected.items():
        assert_close(result[name], weight, atol=1e-4, rtol=1e-3, msg=name)
    packed = make(memory.Plan(100, checkpointing=False, dequantized=False, fused=False), **changes)
    packed.train()
    losses, others = curve(reference, "loss"), curve(packed, "loss")
    assert others[0] == pytest.approx(losses[0], abs=1e-4)
    # Sums in another order differ in their last digits, and what is rounded to 8 bits may then
    # fall the other way.
    assert others == pytest.approx(losses, abs=0.05)


def test_an_adapter_is_measured_on_the_rounded_base_that_it_was_trained_on(
    make: Make, tmp_path: Path
) -> None:
    sft = make(quantization="fp8")
    sft.train()
    measured = sft.evaluate()["eval_loss"]
    sft.model.save_pretrained(tmp_path / "adapter")
    base = locate(sft.model.get_base_model().config.name_or_path, None)
    losses = {}
    for quantization in ("fp8", "none"):
        loaded = load(base, "text", quantization=quantization, dtype="float32")
        served = attach(loaded, tmp_path / "adapter")
        causal = served.get_base_model()
        attention.use(causal)
        loss.return_losses(causal)
        sft.model = served
        losses[quantization] = sft.evaluate()["eval_loss"]
    assert losses["fp8"] == pytest.approx(measured, abs=1e-4)
    assert losses["none"] != pytest.approx(measured, abs=1e-4)


def test_a_base_in_fp8_learns_more_nearly_what_a_whole_one_learns_than_in_nf4(make: Make) -> None:
    losses = {}
    for quantization in ("none", "fp8", "nf4"):
        sft = make(quantization=quantization, max_steps=12)
        sft.train()
        losses[quantization] = torch.tensor(curve(sft, "loss"))
    assert losses["fp8"][-1] < losses["fp8"][0] - 0.2, "it learns"
    apart = {name: float((loss - losses["none"]).norm()) for name, loss in losses.items()}
    assert 0 < apart["fp8"] < apart["nf4"]


def test_a_steps_numbers_are_read_under_the_next_one_and_logged_as_their_own(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    sft = make()
    reads = []
    logs = Reading.logs

    def reading(self: Reading) -> dict[str, float]:
        reads.append((self.step, sft.state.global_step))
        return logs(self)

    monkeypatch.setattr(Reading, "logs", reading)
    sft.train()
    # Three steps an epoch; the last one of an epoch is read before the evaluation.
    assert reads == [(1, 2), (2, 3), (3, 3), (4, 4)]
    entries = [
        (name, entry["step"], round(entry["epoch"], 2))
        for entry in sft.state.log_history
        for name in ("loss", "eval_loss")
        if name in entry
    ]
    losses = [("loss", step, round(step / 3, 2)) for step in (1, 2, 3, 4)]
    assert entries == [*losses[:3], ("eval_loss", 3, 1.0), losses[3], ("eval_loss", 4, 1.33)]


def test_running_out_of_memory_repeats_the_step_in_smaller_passes(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference, other = make(), make()
    expected = learned(reference)
    accumulate = other.accumulate
    calls = []

    def once_out_of_memory(model: Any, step: trainer.Step) -> Any:
        calls.append(other.budget.tokens)
        if len(calls) == 2:
            # Half of the step's gradients are there when the next pass does not fit.
            model(**other.step_of([0, 1]).batches[0]).sum().backward()
            raise torch.OutOfMemoryError("out of memory")
        return accumulate(model, step)

    monkeypatch.setattr(other, "accumulate", once_out_of_memory)
    result = learned(other)
    assert calls[:2] == [2048, 2048]
    assert len(calls) == 5 and calls[2:] == [calls[2]] * 3 and 50 < calls[2] < 200
    for name, weight in expected.items():
        assert_close(result[name], weight, atol=1e-3, rtol=1e-2, msg=name)


def test_running_out_of_memory_again_is_the_users_to_mend(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def always(model: Any, step: trainer.Step) -> Any:
        raise torch.OutOfMemoryError("out of memory")

    sft = make()
    monkeypatch.setattr(sft, "accumulate", always)
    with pytest.raises(UserError, match=r"does not fit .* lower max_length"):
        sft.train()


@pytest.fixture
def give_validation_losses(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Lets a trainer's evaluations end with given losses, whatever its training really did."""

    def give(sft: trainer.PackedTrainer, losses: list[float]) -> None:
        given = iter(losses)
        monkeypatch.setattr(sft, "validation_loss", lambda: next(given))

    return give


def test_the_adapter_with_the_lowest_validation_loss_is_kept(
    make: Make, give_validation_losses: Callable[..., None]
) -> None:
    class WeightsOfEachEpoch(TrainerCallback):
        def __init__(self) -> None:
            self.epochs: list[dict[str, torch.Tensor]] = []

        def on_epoch_end(self, args: Any, state: Any, control: Any, **options: Any) -> None:
            parameters = options["model"].named_parameters()
            self.epochs.append({n: p.detach().clone() for n, p in parameters if p.requires_grad})

    sft, weights = make(max_steps=None, num_train_epochs=4), WeightsOfEachEpoch()
    sft.add_callback(weights)
    give_validation_losses(sft, [3.0, 1.0, 2.0, 1.5])
    sft.train()
    assert sft.restore_best() == 1.0
    for name, parameter in sft.model.named_parameters():
        if parameter.requires_grad:
            assert parameter.equal(weights.epochs[1][name]), name
            assert not parameter.equal(weights.epochs[3][name]), name


@pytest.mark.parametrize(
    ("losses", "epochs"),
    [([3.0, 1.0, 2.0, 1.5, 0.5], 4), ([3.0, 1.0, 2.0, 0.5, 0.6], 5), ([1.0, 1.0, 1.0, 0.5], 3)],
    ids=["two worse ones", "better just in time", "equal is not better"],
)
def test_training_stops_when_validation_no_longer_improves(
    make: Make, give_validation_losses: Callable[..., None], losses: list[float], epochs: int
) -> None:
    sft = make(max_steps=None, num_train_epochs=len(losses), early_stopping_patience=2)
    give_validation_losses(sft, losses)
    sft.train()
    assert curve(sft, "eval_loss") == losses[:epochs]


def test_a_training_that_had_improved_no_more_does_not_go_on_from_its_checkpoint(
    make: Make, give_validation_losses: Callable[..., None], tmp_path: Path
) -> None:
    class SaveAtTheEnd(TrainerCallback):
        def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_save = state.global_step == 9

    stopped = make(max_steps=None, num_train_epochs=5, early_stopping_patience=2)
    stopped.add_callback(SaveAtTheEnd())
    give_validation_losses(stopped, [1.0, 2.0, 3.0])
    stopped.train()
    resumed = make(max_steps=None, num_train_epochs=5, early_stopping_patience=2)
    give_validation_losses(resumed, [0.5, 0.4])
    resumed.train(resume_from_checkpoint=str(tmp_path / "trainer" / "checkpoint-9"))
    assert resumed.state.global_step == 9
    assert curve(resumed, "eval_loss") == [1.0, 2.0, 3.0]
    assert resumed.restore_best() == 1.0


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_validation_loss_that_is_no_number_ends_the_training_when_it_comes(
    value: float, make: Make, give_validation_losses: Callable[..., None]
) -> None:
    sft = make(max_steps=None, num_train_epochs=4)
    give_validation_losses(sft, [3.0, value, 2.0])
    with pytest.raises(UserError, match="the validation loss is not a number at step 6"):
        sft.train()
    assert sft.state.global_step == 6


def test_the_cost_of_a_resumed_run_is_that_of_all_attempts(make: Make) -> None:
    sft = make()
    sft.train()
    first = curves.Cost(sft, None)
    run = SimpleNamespace(data=SimpleNamespace(tags=first.tags()))
    second = curves.Cost(sft, run)  # type: ignore[arg-type]
    assert first.total()["seconds"] == sft.clock.seconds() > 0
    assert second.total() == {name: 2 * value for name, value in first.total().items()}


def test_an_unquantized_base_and_rank_stabilized_scaling_learn(make: Make) -> None:
    sft = make(quantization="none", use_rslora=True, max_steps=12)
    assert not any("4bit" in type(module).__name__ for module in sft.model.modules())
    layer = next(m for n, m in sft.model.named_modules() if n.endswith("q_proj"))
    assert layer.scaling["default"] == 8 / 4**0.5
    sft.train()
    losses = curve(sft, "loss")
    assert losses[-1] < losses[0]


def test_dora_learns_magnitudes_by_pefts_own_forward(make: Make) -> None:
    sft = make(use_dora=True, export="merged", max_steps=12)
    layer = next(m for n, m in sft.model.named_modules() if n.endswith("q_proj"))
    assert "forward" not in vars(layer) and layer.lora_variant
    before = {n: p.detach().clone() for n, p in sft.model.named_parameters() if "magnitude" in n}
    result = learned(sft)
    assert before and all(not result[name].equal(weight) for name, weight in before.items())
    losses = curve(sft, "loss")
    assert losses[-1] < losses[0]


def test_dora_on_a_4_bit_base_does_not_widen_the_residual_stream(
    tiny_base: Callable[[str], Path],
) -> None:
    base = locate(str(tiny_base("mistral")), None)
    model = load(base, "text", quantization="nf4", dtype="bfloat16")
    tuned = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"], use_dora=True))
    layer = next(m for n, m in tuned.named_modules() if n.endswith("q_proj"))
    stream = torch.randn(1, 3, model.config.hidden_size, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16), pytest.MonkeyPatch.context() as patch:
        # PEFT asks whether there is autocast on a GPU, whatever runs here.
        patch.setattr(torch, "is_autocast_enabled", lambda *_: True)
        widened = layer(stream)
        lora.keep_input_dtype(tuned)
        kept = layer(stream)
    assert (widened.dtype, kept.dtype) == (torch.float32, torch.bfloat16)
    assert kept.equal(widened.bfloat16())


@pytest.mark.parametrize(
    "changes",
    [
        {"use_dora": True, "export": "merged"},
        {"neftune_noise_alpha": 5.0, "lora_dropout": 0.1},
        {"init_lora_weights": "pissa", "quantization": "none"},
        {"init_lora_weights": "pissa_niter_16", "quantization": "none"},
        {"quantization": "fp8", "lora_dropout": 0.1},
    ],
    ids=["DoRA", "noise and dropout", "PiSSA", "fast PiSSA", "FP8"],
)
def test_a_checkpoint_goes_on_as_if_there_had_been_none(
    make: Make, tmp_path: Path, changes: dict[str, object]
) -> None:
    class SaveAtTwo(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_save = state.global_step == 2

    whole = make(**changes)
    whole.add_callback(SaveAtTwo())
    expected = learned(whole)
    resumed = make(**changes)
    resumed.train(resume_from_checkpoint=str(tmp_path / "trainer" / "checkpoint-2"))
    result = {n: p for n, p in resumed.model.named_parameters() if p.requires_grad}
    assert result.keys() == expected.keys()
    for name, weight in expected.items():
        assert_close(result[name].detach(), weight, atol=1e-6, rtol=0, msg=name)


@pytest.mark.parametrize("method", ["pissa", "pissa_niter_16"])
def test_pissa_begins_as_the_base_and_ends_as_a_lora_on_it(
    method: str, make: Make, tmp_path: Path
) -> None:
    plain = make(quantization="none", max_steps=1)
    sft = make(quantization="none", init_lora_weights=method)
    layer = next(m for n, m in sft.model.named_modules() if n.endswith("q_proj"))
    assert layer.lora_B["default"].weight.any(), "it begins with components"
    plain.train()
    sft.train()
    assert curve(sft, "loss")[0] == pytest.approx(curve(plain, "loss")[0], abs=1e-4)
    measured = sft.evaluate()["eval_loss"]
    assert measured < curve(plain, "eval_loss")[-1] - 0.01, "it has learned"

    pissa.save(sft.model, sft.initial, tmp_path / "adapter")
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"]) == (8, 16)
    assert settings["init_lora_weights"] is True
    base = locate(sft.model.get_base_model().config.name_or_path, None)
    untouched = load(base, "text", quantization="none", dtype="float32")
    served = attach(untouched, tmp_path / "adapter")
    causal = served.get_base_model()
    attention.use(causal)
    loss.return_losses(causal)
    sft.model = served
    assert sft.evaluate()["eval_loss"] == pytest.approx(measured, abs=1e-5)


def test_a_checkpoints_components_are_taken_out_of_the_base_again(
    make: Make, tmp_path: Path
) -> None:
    sft = make(quantization="none", init_lora_weights="pissa")
    layer = next(m for n, m in sft.model.named_modules() if n.endswith("q_proj"))
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    rest = layer.get_base_layer().weight
    whole = (rest + layer.scaling["default"] * b @ a).detach().clone()
    before = rest.detach().clone()
    pissa.write(sft.initial, tmp_path)
    pissa.adopt(sft.model, sft.initial, tmp_path)
    assert rest.equal(before), "the same components leave the base as it is"
    other = {name: 1.1 * weight for name, weight in sft.initial.items()}
    pissa.write(other, tmp_path)
    result = pissa.adopt(sft.model, sft.initial, tmp_path)
    name = next(n for n in result if n.endswith("q_proj.lora_A.weight"))
    taken = result[name.replace("lora_A", "lora_B")] @ result[name]
    assert not rest.equal(before)
    assert_close(rest + layer.scaling["default"] * taken, whole, atol=1e-6, rtol=1e-5)


def test_lora_plus_gives_b_a_rate_of_its_own(make: Make) -> None:
    sft = make(loraplus_lr_ratio=16)
    groups = {group["lr"]: group["params"] for group in sft.create_optimizer().param_groups}
    learning = {n: p for n, p in sft.model.named_parameters() if p.requires_grad}
    for part, rate in (("lora_A", 0.01), ("lora_B", 0.16)):
        expected = {id(p) for name, p in learning.items() if part in name}
        assert {id(p) for p in groups[rate]} == expected


def test_parameters_are_counted_without_packing(make: Make) -> None:
    packed, plain = make(), make(quantization="none")
    assert packed.flops == plain.flops


def test_no_step_is_logged_twice_and_each_has_its_pace(make: Make) -> None:
    sft = make()
    sft.train()
    assert [e["step"] for e in sft.state.log_history if "loss" in e] == [1, 2, 3, 4]
    assert all(pace > 0 for pace in curve(sft, "tokens_per_second"))
    assert sft.clock.seconds() > 0 and sft.tokens_seen > 0


def test_the_trainer_leaves_weights_where_they_are(make: Make) -> None:
    assert make().place_model_on_device is False


def test_a_constant_rate_warms_up_first(make: Make) -> None:
    sft = make(lr_scheduler_type="constant", warmup_steps=2)
    sft.train()
    assert curve(sft, "learning_rate") == pytest.approx([0.0, 5e-3, 1e-2, 1e-2])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"warmup_steps": 3}, ""),
        ({"warmup_steps": 4}, "warmup_steps 4 covers all 4 steps"),
        ({"warmup_steps": 2, "max_steps": None, "num_train_epochs": 0.5}, "covers all 2 steps"),
        ({"warmup_steps": 2, "max_steps": None, "num_train_epochs": 1}, ""),
    ],
)
def test_a_warm_up_that_never_ends_is_named(changes: dict[str, Any], said: str, make: Make) -> None:
    sft = make(**changes)
    sft.train()
    reached = max(curve(sft, "learning_rate")) == pytest.approx(1e-2)
    assert reached == (not said)
    sentence = arguments.unfinished_warmup(Profile(**RECIPE | changes), len(sft.steps))
    assert said in sentence if said else not sentence
