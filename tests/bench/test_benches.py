"""The benches run on what is here; their numbers are in the documentation."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from click import ClickException
from click.testing import CliRunner
from PIL import Image

ROOT = Path(__file__).parents[2]


def run(*command: str | Path) -> str:
    ended = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-4000:]
    return ended.stdout


@pytest.mark.slow
def test_the_ways_to_generate_are_timed_on_the_same_rows() -> None:
    printed = run("bench/generation.py", "--rows", "16", "--new-tokens", "8").splitlines()
    assert "tiny-text, 16 rows, up to 8 tokens" in printed[0]
    engines = {line[:10].strip(): line.split()[-1] for line in printed[2:]}
    assert set(engines) >= {"one by one", "batched"}
    assert set(engines.values()) == {"16/16"}


@pytest.mark.slow
def test_prepare_data_is_timed_beside_datasets_on_the_same_files() -> None:
    printed = run("bench/prepare_data.py", "--rows", "400", "--images", "40").splitlines()
    assert "tokens a text row" in printed[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed[4:]]
    assert [row[:2] for row in rows] == [
        ["loraline, text", "400"],
        ["datasets map (tokens only), text", "400"],
        ["loraline, images", "40"],
        ["datasets map (decode only), images", "40"],
    ]
    assert all(float(row[-1]) > 0 for row in rows)


@pytest.mark.slow
def test_prepare_data_is_timed_beside_an_older_commit_on_the_same_files(script) -> None:
    bench = script("bench/prepare_data.py")
    arguments = ["--rows", "400", "--images", "0", "--rounds", "1", "--baseline", "HEAD"]
    result = CliRunner().invoke(bench.prepare_data, arguments)
    lines = [line.split("|")[1:3] for line in result.stdout.splitlines() if line.startswith("| ")]
    assert [[cell.strip() for cell in line] for line in lines[1:]] == [
        ["HEAD, text", "400"],
        ["now, text", "400"],
    ]
    # Small runs differ by more than the bar; the verdict is the printed shares', either way.
    shares = re.findall(r"text: (seconds|peak memory) ([0-9.]+) of HEAD's", result.stderr)
    assert result.exit_code == any(float(share) > bench.SLOWER for _, share in shares)


def test_a_baseline_that_is_no_commit_is_refused(script, tmp_path: Path) -> None:
    bench = script("bench/prepare_data.py")
    with pytest.raises(ClickException, match="--baseline nosuch: fatal: "):  # noqa: SIM117
        with bench.older("nosuch", tmp_path):
            pytest.fail("there is no such tree")


@pytest.mark.slow
def test_evaluation_is_measured_beside_the_plan_of_the_training() -> None:
    printed = run("bench/evaluation.py", "--tiny", "--rows", "2").splitlines()
    lines = [[cell.strip() for cell in line.split("|")[1:4]] for line in printed if "|" in line]
    assert lines[2:] == [
        [profile, part, "2"]
        for profile in ("latex-ocr", "qwen3-vl")
        for part in ("training, planned", "likelihoods", "answers")
    ]


@pytest.mark.parametrize(
    ("profile", "parameters"),
    # As the hub counts Qwen2-VL-7B-Instruct and Qwen3-VL-8B-Instruct.
    [("latex-ocr", 8_291_375_616), ("qwen3-vl", 8_767_123_696)],
)
def test_the_shapes_of_the_evaluation_are_those_of_the_models(
    script, tmp_path: Path, profile: str, parameters: int
) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    script("bench/evaluation.py").write_shape(profile, tmp_path / "base")
    config = AutoConfig.from_pretrained(tmp_path / "base")
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    assert sum(each.numel() for each in model.parameters()) == parameters


@pytest.mark.slow
def test_the_learning_curve_is_measured_and_drawn(tmp_path: Path) -> None:
    sizes = ("--sizes", "4,8", "--steps", "2", "--tested", "4")
    printed = run("bench/learning_curve.py", *sizes, "--picture", tmp_path / "curve.png")
    rows = [line.split("|")[1:3] for line in printed.splitlines()[2:]]
    ways = [(way.strip(), size.strip()) for way, size in rows]
    assert len(ways) == 8
    assert {("LoRA, packed", "8"), ("full fine-tune", "4")} <= set(ways)
    with Image.open(tmp_path / "curve.png") as drawn:
        assert drawn.width > 500


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--sizes", "abc"), "'abc' is not accepted: use numbers from 1, such as 18,72"),
        (("--sizes", "0"), "'0' is not accepted"),
        (("--sizes", "18,"), "'18,' is not accepted"),
        (("--steps", "0"), "0 is not in the range x>=1"),
        (("--tested", "0"), "0 is not in the range x>=1"),
        (("--modality", "vision", "--tested", "1000000"), "leaves no row of"),
        (("--picture", "/nosuch/x.png"), "its folder is not there"),
        (("--picture", "x.jpg"), "a PNG file is drawn"),
    ],
)
def test_a_learning_curve_that_cannot_be_is_refused_before_training(
    script, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    bench = script("bench/learning_curve.py")
    monkeypatch.setattr(bench, "trained", lambda *given: pytest.fail("it trained"))
    result = CliRunner().invoke(bench.learning_curve, arguments)
    assert result.exit_code == 2, result.output
    assert message in result.stderr


def test_the_bench_asks_with_the_prompt_that_prepare_data_makes(script) -> None:
    train, test = script("bench/learning_curve.py").split("vision", 4)
    prompt = (ROOT / "test_data" / "vision" / "prompt.txt").read_text()
    assert prompt.endswith("\n")
    assert {record.question for record in train + test} == {f"<image>{prompt.strip()}"}


@pytest.mark.parametrize("modality", ["text", "vision"])
def test_packed_and_padded_trainings_minimise_the_same_loss(script, modality: str) -> None:
    import torch

    from loraline.base.encoding import Encoder
    from loraline.base.locate import locate

    bench = script("bench/learning_curve.py")
    base = locate(str(ROOT / "test_data" / modality / "base"), None)
    limits = {"min_pixels": 4704, "max_pixels": 4704} if modality == "vision" else {}
    encoder = Encoder(base.path, modality, **limits)
    train, _ = bench.split(modality, 4)
    rows = [encoder.encode(record) for record in train[:5]]
    model = bench.untrained(base, modality, bench.VARIANTS[modality][0]).eval()
    with torch.inference_mode():
        padded = float(bench.padded_loss(model, encoder)(rows))
        packed = float(bench.packed_loss(model, encoder)(rows))
    assert packed == pytest.approx(padded, rel=1e-5)


def test_the_learning_rate_rises_and_falls(script) -> None:
    share = script("bench/learning_curve.py").share
    values = [share(step, 100) for step in range(100)]
    assert max(values) == 1 == values[10]
    assert values == sorted(values[:10]) + sorted(values[10:], reverse=True)
    assert values[-1] < 0.01


@pytest.mark.slow
def test_the_gateway_is_measured_beside_the_server_that_it_stands_before() -> None:
    command = ("bench/gateway.py", "--seconds", "1", "--requests", "300")
    printed = run(*command)
    assert f"python {' '.join(command)}" in printed.splitlines()[0]
    assert re.search(r"Python 3.*, fastapi .*, aiohttp ", printed)
    for part in ("chunks", "first-token", "images", "video", "soak"):
        assert f"\n{part}\n" in printed
    assert printed.count("  direct ") == printed.count("  gateway ") == 3
    bars = re.findall(
        r"^(\S.*?)  +[-0-9.]+ +[<>]= [0-9.]+   (?:holds|MISSED)$", printed, re.MULTILINE
    )
    assert len(bars) == 9, printed
    # What a small run on a busy machine holds as well.
    for name in ("files that are left", "sockets that are open", "memory that a 100 MB video"):
        assert re.search(rf"^{name}.* holds$", printed, re.MULTILINE), printed


QUICK = """
install pipeline:
\t@true
serve:
\t@echo "vLLM is starting"; echo "curl http://127.0.0.1:8000"; exec sleep 600
"""


def test_the_first_hour_is_timed_command_by_command(tmp_path: Path) -> None:
    (tmp_path / "Makefile").write_text(QUICK)
    printed = run("bench/first_hour.py", "--clone", tmp_path, "--rounds", "2").splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed[4:]]
    assert [(name, bar) for name, _, bar in rows] == [
        ("`make install` in a fresh clone", "180"),
        ("`make pipeline`, the first one", "90"),
        ("`make pipeline`, unchanged", "8"),
        ("`make serve` until it answers", "60"),
    ]
    assert all(float(seconds) < 60 for _, seconds, _ in rows)


def test_a_command_that_fails_is_no_time(tmp_path: Path) -> None:
    (tmp_path / "Makefile").write_text("install:\n\t@echo broken; false\n")
    command = [sys.executable, "bench/first_hour.py", "--clone", str(tmp_path)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "make install ended with 2" in ended.stderr
    assert "| |" not in ended.stdout
