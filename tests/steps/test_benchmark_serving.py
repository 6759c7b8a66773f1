from pathlib import Path

import pytest

from loraline.errors import UserError
from loraline.serving import vllm_bench

NAME = "tiny-lora"


@pytest.fixture(scope="module")
def benchmark(script):
    return script("steps/benchmark_serving.py")


def row(model: str, rate: float, **numbers: float) -> dict[str, object]:
    known = {"tokens_per_second": 100.0, "ttft_median_ms": 200.0, "tpot_median_ms": 5.0}
    known |= {"requests_per_second": 2.0, "goodput": 2.0, "completed": 4, "failed": 0}
    return {"workload": "rows", "model": model, "rate": rate, **known, **numbers}


def test_targets_are_met_or_not_or_not_measured(benchmark) -> None:
    table = [row("base", 1, tpot_median_ms=99.0), row(NAME, 1), row(NAME, 4)]
    met = benchmark.targets(table, NAME, 59.0)
    assert list(met.values()) == ["59 s, met", "2.75 s (TTFT + 511 TPOT), met", "120, met"]
    slow = [row(NAME, 1, tpot_median_ms=10.0, requests_per_second=0.1)]
    missed = benchmark.targets(slow, NAME, None)
    assert list(missed.values()) == [
        "not measured",
        "5.31 s (TTFT + 511 TPOT), not met",
        "6, not met",
    ]


def test_headline_is_the_adapters_at_the_highest_rate(benchmark) -> None:
    unknown = dict.fromkeys(vllm_bench.FIELDS.values())
    table = [row(NAME, 1), row(NAME, 8, tokens_per_second=300.0), row("base", 16)]
    table = [unknown | each for each in table]
    assert benchmark.headline(table, NAME)["tokens_per_second"] == 300.0


def test_figures_have_a_line_for_each_model(benchmark) -> None:
    table = [row(model, rate) for model in ("base", NAME) for rate in (1, float("inf"))]
    axes = benchmark.figure(table, ("tokens_per_second", "goodput")).axes
    assert len(axes) == 2
    assert [line.get_label() for line in axes[0].lines] == ["base, rows", f"{NAME}, rows"]


@pytest.mark.parametrize("dataset", ["custom", "custom_image"])
def test_the_requests_are_those_that_prepare_data_wrote(dataset: str, tmp_path: Path) -> None:
    file = tmp_path / f"{dataset}.jsonl"
    file.write_text('{"prompt": "who?", "output_tokens": 3}\n')

    arguments = vllm_bench.of_rows(tmp_path, 64)

    assert arguments == (
        *("--dataset-name", dataset, "--dataset-path", str(file)),
        *("--custom-output-len", "64"),
    )


def test_a_dataset_without_held_out_rows_is_refused(tmp_path: Path) -> None:
    (tmp_path / "custom.jsonl").touch()

    with pytest.raises(UserError, match="no held-out rows"):
        vllm_bench.of_rows(tmp_path, 64)


@pytest.mark.parametrize(
    ("program", "sentence"),
    [
        (
            'while [ "$1" != --result-dir ]; do shift; done; echo \'{"completed": 0}\' '
            '> "$2/result.json"',
            "http://server:8000 answered none of 3 requests for tiny-lora",
        ),
        (
            'echo "ConnectError: no answer of http://me:pass-word@server:8000 as me:pass-word" >&2'
            "; exit 1",
            "ended with 1: ConnectError: no answer of http://server:8000 as …",
        ),
    ],
)
def test_the_servers_password_is_not_in_a_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, sentence: str
) -> None:
    vllm = tmp_path / "vllm"
    vllm.write_text(f"#!/bin/sh\n{program}\n")
    vllm.chmod(0o755)
    monkeypatch.setattr(vllm_bench.sys, "executable", str(tmp_path / "python"))
    url = "http://me:pass-word@server:8000"
    with pytest.raises(UserError) as error:
        vllm_bench.run(url, NAME, ("rows",), 1.0, 3, "ttft:1", tmp_path, tmp_path)
    assert sentence in str(error.value)


def test_a_benchmark_without_requests_is_refused(step, workplace) -> None:
    result = step("benchmark_serving", "--run-id", "x", "--url", "http://x", "--prompts", "0")
    assert (result.exit_code, "Invalid value for '--prompts'" in result.stderr) == (2, True)
