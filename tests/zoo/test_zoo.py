"""What preflight says of an adapter is what vLLM does with it, and nothing passes in silence."""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path

import pytest

from loraline.serving import preflight

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import adapters  # noqa: E402
import bases  # noqa: E402

VERDICTS = json.loads((HERE / "vllm-0.32.0.json").read_text())
CASES = adapters.cases()
ON_EACH_BASE = ("some", "attention", "head", "embeddings", "no-prefix")
"""Cases of the further bases that `make test` looks at; `make test-slow` does at all."""


def marked(case: adapters.Case) -> object:
    often = case.base == "mistral" or case.base in bases.VISION
    often |= case.name.removeprefix(f"on-{case.base}-") in ON_EACH_BASE
    return pytest.param(case, id=case.name, marks=() if often else pytest.mark.slow)


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory):
    @functools.cache
    def build(base: str) -> Path:
        folder = tmp_path_factory.mktemp(base)
        bases.build(base, folder)
        return folder

    return build


def test_the_zoo_is_large_and_every_animal_was_shown_to_vllm() -> None:
    assert len(CASES) >= 400
    assert len({case.base for case in CASES}) >= 9
    assert {case.name for case in CASES} == set(VERDICTS)
    assert {verdict["verdict"] for verdict in VERDICTS.values()} == {
        *("applied", "refused", "unloadable", "ignored", "lost", "other", "not finite")
    }


@pytest.fixture(scope="session")
def saved() -> dict[str, Path]:
    """Adapters as PEFT saved them, by what they were made of."""
    return {}


@pytest.mark.parametrize("case", [marked(case) for case in CASES])
def test_preflight_says_what_vllm_does(case, base_folder, saved, tmp_path: Path) -> None:
    adapters.copied(case, base_folder(case.base), tmp_path / "adapter", saved)
    found = preflight.findings(
        tmp_path / "adapter",
        adapters.BASE,
        case.tower,
        max_rank=adapters.MAX_RANK,
        dtype="float32",
    )
    applied = VERDICTS[case.name]["verdict"] == "applied"
    if case.policy:
        assert applied and found, case.policy
    else:
        assert (found == []) == applied, (VERDICTS[case.name], found)
