from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from loraline.errors import UserError
from loraline.serving import calibration, sizing
from loraline.serving.sizing import Demand
from loraline.tracking import store

VISION = Path(__file__).parent / "bases" / "Qwen3-VL-8B-Instruct.json"
BASE = Path(__file__).parent / "bases" / "Mistral-7B-v0.1.json"
DEMAND = Demand(json.loads(BASE.read_text()), "bfloat16", 1024, max_lora_rank=8)
KNOWN = {"model": "my-lora", "revision": "abc"}
LOG = "Model loading took 13.60 GiB\nAvailable KV cache memory: 2.00 GiB\n"


def test_what_was_learned_counts_for_the_same_base_only() -> None:
    message = {"L4": "abc 3.5"}
    assert calibration.plan(DEMAND, "L4", remembered=message, **KNOWN).activation == 3.5
    other = {**KNOWN, "revision": "def"}
    assert calibration.plan(DEMAND, "L4", remembered=message, **other).activation == 2.5


def test_what_was_learned_counts_where_the_card_is_chosen() -> None:
    assert calibration.plan(DEMAND, None, remembered={}, **KNOWN).gpu == "L4"
    assert calibration.plan(DEMAND, None, remembered={"L4": "abc 9"}, **KNOWN).gpu == "A10"


def test_a_log_counts_more_than_what_is_remembered() -> None:
    result = calibration.plan(DEMAND, "L4", log=LOG, remembered={"L4": "abc 3.0"}, **KNOWN)
    assert result.activation == pytest.approx(21.99 * 0.9 - 13.6 - 2.0, abs=0.01)


@pytest.mark.parametrize(
    ("log", "source"),
    [
        ("", "tag loraline.activation.L4 of registered model my-lora; delete it to forget"),
        (LOG.replace("2.00", "-4.00"), "the log given"),
    ],
)
def test_a_card_that_is_too_small_by_what_was_learned_says_where(log: str, source: str) -> None:
    with pytest.raises(UserError) as error:
        calibration.plan(DEMAND, "L4", log=log, remembered={"L4": "abc 9"}, **KNOWN)
    assert str(error.value).endswith(f"(activations learned from {source})")


SMALL = Demand(json.loads(VISION.read_text()), "bfloat16", 2048, max_pixels=512 * 512)
VIDEO = replace(SMALL, max_pixels=None)


def learned_by(demand: Demand, gib: float) -> dict[str, str]:
    plan = sizing.sized(replace(demand, activation=gib), "L40S", 1)
    return {"L40S": calibration.learned_text("abc", plan, demand)}


def test_what_was_learned_at_a_size_counts_up_to_that_size() -> None:
    def activation(demand: Demand, message: dict[str, str]) -> float:
        chosen = calibration.plan(demand, "L40S", remembered=message, **KNOWN).activation
        if demand == SMALL:
            smaller = replace(SMALL, max_pixels=256 * 256)
            assert calibration.plan(smaller, "L40S", remembered=message, **KNOWN).activation == (
                chosen
            )
        return chosen

    assert activation(SMALL, learned_by(SMALL, 1.25)) == 1.25
    assert activation(SMALL, learned_by(VIDEO, 6.5)) == 6.5
    assert activation(VIDEO, learned_by(SMALL, 1.25)) == sizing.activation_gib(VIDEO)
    longer = replace(SMALL, max_num_batched_tokens=4096)
    assert activation(longer, learned_by(SMALL, 1.25)) == sizing.activation_gib(longer)
    assert activation(VIDEO, learned_by(SMALL, 9.5)) == 9.5, "more than that is needed"


def test_what_was_learned_at_no_known_size_is_the_least() -> None:
    """As earlier versions wrote it."""
    message = {"L40S": "abc 1.25"}
    plan = calibration.plan(SMALL, "L40S", remembered=message, **KNOWN)
    assert plan.activation == sizing.activation_gib(SMALL)


@pytest.mark.parametrize(
    "message",
    [
        "abc 3.5 x 0",
        "abc 3.5 0 0",
        "abc 3.5 -1 0",
        "abc 3.5 2048 -1",
        "abc 3.5 2048",
        "",
        "x",
        "abc d",
        "abc 1 2",
        "abc nan",
        "abc inf",
        "abc -1",
        "abc 0",
    ],
)
def test_what_nobody_has_learned_is_refused_with_the_tag_that_says_it(message: str) -> None:
    with pytest.raises(UserError, match=r"tag loraline.activation.L4 of registered model my-lora"):
        calibration.plan(DEMAND, "L4", remembered={"L4": message}, **KNOWN)


def test_a_card_that_is_not_known_is_told_with_those_that_are() -> None:
    with pytest.raises(UserError, match="--gpu 'GTX-1080' is not known; accepted: cpu, T4,"):
        calibration.plan(DEMAND, "GTX-1080", remembered={}, **KNOWN)


def test_what_is_remembered_comes_back(workplace: Path) -> None:
    client = store.connect()
    client.create_registered_model("my-lora", tags={"loraline.promoted": "by someone"})
    result = calibration.plan(DEMAND, "L4", log=LOG, remembered={}, **KNOWN)
    calibration.remember(client, "my-lora", "L4", calibration.learned_text("abc", result, DEMAND))
    message = calibration.remembered(client.get_registered_model("my-lora"))
    assert set(message) == {"L4"}
    assert calibration.plan(DEMAND, "L4", remembered=message, **KNOWN) == result
