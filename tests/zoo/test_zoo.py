"""What preflight says of an adapter is what vLLM does with it, and nothing passes in silence."""

from __future__ import annotations

import functools
import json
import sys
from collections import Counter
from pathlib import Path

import pytest

from loraline.serving import preflight

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import adapters  # noqa: E402
import ask_vllm  # noqa: E402
import bases  # noqa: E402

VERDICTS = json.loads((HERE / "vllm-0.32.0.json").read_text())
CASES = adapters.cases()
ON_EACH_BASE = ("some", "attention", "head", "embeddings", "no-prefix")
"""Cases that `make test` looks at for each of the text bases."""

EVERY = 3
"""Of cases alike, in module, base and verdict, `make test` looks at the first of so many."""


def case_parameters() -> list[object]:
    """All cases; those that only `make test-slow` looks at are marked."""
    alike: Counter[tuple[str, str, str]] = Counter()
    params = []
    for case in CASES:
        verdict = VERDICTS.get(case.name, {}).get("verdict", "")
        group = (case.name.partition("-")[0], case.base, verdict)
        often = case.name.removeprefix(f"on-{case.base}-") in ON_EACH_BASE
        often |= alike[group] % EVERY == 0
        alike[group] += 1
        marks = () if often else pytest.mark.slow
        params.append(pytest.param(case, id=case.name, marks=marks))
    return params


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


@pytest.mark.parametrize(("base", "pictures"), [("mistral", [False, False]),
                                                ("qwen2-vl", [True, False])])  # fmt: skip
def test_what_vllm_is_asked_has_tokens_and_pictures(
    base_folder, base: str, pictures: list[bool]
) -> None:
    asked = ask_vllm.asked_as(base_folder(base), ask_vllm.questions(any(pictures)))

    assert all(len(prompt["prompt_token_ids"]) > 5 for prompt in asked)
    assert ["multi_modal_data" in prompt for prompt in asked] == pictures


@pytest.fixture(scope="session")
def saved() -> dict[str, Path]:
    """Adapters as PEFT saved them, by what they were made of."""
    return {}


@pytest.mark.parametrize("case", case_parameters())
def test_preflight_says_what_vllm_does(case, base_folder, saved, tmp_path: Path) -> None:
    adapters.copied(case, base_folder(case.base), tmp_path / "adapter", saved)
    result = preflight.findings(
        tmp_path / "adapter",
        adapters.BASE,
        case.tower,
        max_rank=adapters.MAX_RANK,
        dtype="float32",
    )
    applied = VERDICTS[case.name]["verdict"] == "applied"
    if case.policy:
        assert applied and result, case.policy
    else:
        assert (result == []) == applied, (VERDICTS[case.name], result)
