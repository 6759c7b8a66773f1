"""What preflight says of an adapter is what vLLM does with it, and nothing passes in silence."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from loraline.serving import preflight

HERE = Path(__file__).parent
VERDICTS = json.loads((HERE / "vllm-0.32.0.json").read_text())


def load_adapters():
    spec = importlib.util.spec_from_file_location("zoo_adapters", HERE / "adapters.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


adapters = load_adapters()
CASES = adapters.cases()


def test_the_zoo_is_large_and_every_animal_was_shown_to_vllm() -> None:
    assert len(CASES) >= 60
    assert {case.name for case in CASES} == set(VERDICTS)
    assert {verdict["verdict"] for verdict in VERDICTS.values()} == {
        *("applied", "refused", "ignored", "other", "not finite")
    }


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_preflight_says_what_vllm_does(case, tiny_base, tmp_path: Path) -> None:
    adapters.make(case, tiny_base(case.base), tmp_path / "adapter")
    found = preflight.findings(
        tmp_path / "adapter", adapters.BASE, case.tower, max_rank=adapters.MAX_RANK
    )
    applied = VERDICTS[case.name]["verdict"] == "applied"
    if case.policy:
        assert applied and found, case.policy
    else:
        assert (found == []) == applied, (VERDICTS[case.name], found)
