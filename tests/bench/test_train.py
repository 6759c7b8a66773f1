"""The training bench runs on a CPU with a tiny base; its numbers are of GPUs."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_trl_and_ours_train_the_same_rows_with_the_pinned_datasets(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "test_data/text/base", tmp_path / "text")
    arms = ("--arm", "trl", "--arm", "small")
    command = ("bench/train.py", "--task", "text", *arms, "--steps", "5", "--rows-per-step", "4")
    ended = subprocess.run(
        [sys.executable, *command, "--bases", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr[-4000:]
    measured = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("{")]
    assert [figures["arm"] for figures in measured] == ["trl", "small"]
    assert all(figures["tokens_per_second"] > 0 for figures in measured)
    assert "datasets 5." in ended.stdout
    table = ended.stdout.splitlines()[-4:]
    assert [row.split("|")[1].strip() for row in table] == ["text", "---", "trl", "small"]


def test_the_arms_of_unsloth_ask_for_its_environment(script) -> None:
    bench = script("bench/train.py")
    result = CliRunner().invoke(bench.train, ["--arm", "unsloth"])
    assert result.exit_code == 2
    assert "--unsloth, the Python of its environment" in result.output


def test_unsloth_is_asked_in_its_own_environment_for_what_the_profile_says(
    script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Python that says what it was asked stands in for unsloth's, which needs a GPU."""
    bench = script("bench/train.py")
    shutil.copytree(ROOT / "test_data/text/base", tmp_path / "text")
    python = tmp_path / "python"
    python.write_text(
        f"#!{sys.executable}\nimport json, os, sys\n"
        "print(json.dumps({'asked': sys.argv[1:], 'path': os.environ.get('PYTHONPATH')}))\n"
    )
    python.chmod(0o755)
    monkeypatch.setenv("PYTHONPATH", "ours")
    message = bench.run_unsloth(python, "unsloth-small", tmp_path / "text", 18, 16)
    named, arm, base, steps, settings = message["asked"]
    assert Path(named) == ROOT / "bench/train_unsloth.py"
    assert (arm, base, steps) == ("unsloth-small", str(tmp_path / "text"), "18")
    assert message["path"] is None
    profile = json.loads(settings)
    assert profile["r"] == 8 and profile["lora_dropout"] == 0.05
    assert profile["target_modules"] == ["q_proj", "k_proj", "v_proj", "o_proj"]
    assert profile["rows_per_step"] == 16


def test_the_report_says_what_one_card_would_do(script, capsys) -> None:
    bench = script("bench/train.py")
    figures = {
        "tokens_per_second": 10.0,
        "mfu": 0.5,
        "peak_gib": 61.0,
        "seconds_per_step": 1.0,
        "plan": "memory: 2048 tokens a pass, activations kept, weights shared out",
        "planned_gib": 66.0,
        "estimated_gib": 60.0,
        "longest_pass": 1900,
        "one_card": "refused: the training needs 113.0 GiB of a GPU",
        "one_card_with_host_memory": "memory: 2048 tokens a pass",
    }
    bench.report("text", {"full, 2 GPUs": figures})
    printed = capsys.readouterr().out
    assert "planned 66.00 GiB a card; estimated 60.00 for the 1900 tokens" in printed
    assert "on one card alone: refused: the training needs 113.0 GiB" in printed
