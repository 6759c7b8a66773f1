import json
import subprocess
import sys
from pathlib import Path

import pytest

from loraline.answering import vllm_engine


@pytest.mark.slow
@pytest.mark.parametrize(
    ("modality", "champion", "part"),
    [
        ("text", "adapter", "language model"),
        ("text", "merged", "language model"),
        ("vision", "adapter", "language model"),
        ("vision", "adapter", "tower"),
        ("vision", "merged", "tower"),
    ],
)
def test_both_engines_give_the_same_tokens_and_likelihoods(
    modality: str, champion: str, part: str, tmp_path: Path
) -> None:
    compare(tmp_path, modality, champion, part)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["llama3", "qwen3", "gemma3", "phi3"])
def test_both_engines_agree_on_every_family_of_text(architecture: str, tmp_path: Path) -> None:
    compare(tmp_path, "text", "adapter", "language model", architecture)


def compare(folder: Path, modality: str, champion: str, part: str, *architecture: str) -> None:
    """Measure with both engines in a process of their own, and hold the results together."""
    script = Path(__file__).with_name("both_engines.py")
    command = [sys.executable, script, modality, champion, part, folder, *architecture]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-4000:]
    result = json.loads((folder / "found.json").read_text())
    ours, vllm = result["hf"], result["vllm_engine"]
    for name in ("base", "tuned", "champion"):
        assert vllm[name]["answers"] == ours[name]["answers"]
        assert vllm[name]["nll"] == pytest.approx(ours[name]["nll"], rel=1e-3, abs=1e-3)
    answers = [ours[name]["answers"] for name in ("base", "tuned", "champion")]
    assert answers[0] != answers[1] != answers[2]


def test_an_images_tokens_become_the_one_that_vllm_expands() -> None:
    assert vllm_engine.collapsed([1, 9, 9, 9, 2, 2, 9, 3], image=9) == [1, 9, 2, 2, 9, 3]
