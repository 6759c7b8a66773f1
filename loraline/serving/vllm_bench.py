"""`vllm bench serve` against a running server: its workloads, and what is kept of its result."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from loraline.addresses import redacted, without_credentials
from loraline.errors import UserError
from loraline.serving import versions

RANDOM_TOKENS = 128
"""Length of a random prompt and of its answer."""

FIELDS = {
    "request_throughput": "requests_per_second",
    "request_goodput": "goodput",
    "output_throughput": "tokens_per_second",
    **{
        f"{statistic}_{metric}_ms": f"{metric}_{statistic}_ms"
        for metric in ("ttft", "tpot", "itl", "e2el")
        for statistic in ("median", "p99")
    },
    "completed": "completed",
    "failed": "failed",
}
"""Fields of vLLM's result, and what they are called in the table."""

RANDOM = (
    *("--dataset-name", "random", "--ignore-eos"),
    *("--random-input-len", str(RANDOM_TOKENS), "--random-output-len", str(RANDOM_TOKENS)),
)


def of_rows(requests: Path, max_new_tokens: int) -> tuple[str, ...]:
    """Arguments for the file of requests that prepare_data wrote, named after vLLM's dataset.

    Raises UserError when no row was held out.
    """
    (file,) = requests.glob("custom*.jsonl")
    if not file.stat().st_size:
        raise UserError("the dataset has no held-out rows without videos to ask about")
    length = ("--custom-output-len", str(max_new_tokens))
    return ("--dataset-name", file.stem, "--dataset-path", str(file), *length)


def run(
    url: str,
    model: str,
    workload: tuple[str, ...],
    rate: float,
    prompts: int,
    goodput: str,
    tokenizer: Path,
    folder: Path,
) -> dict[str, Any]:
    """One run of `vllm bench serve`; a UserError with its last line when it fails."""
    program = Path(sys.executable).with_name("vllm")
    if not program.is_file():
        raise UserError(versions.NOT_INSTALLED)
    result = folder / "result.json"
    command = [
        *(str(program), "bench", "serve", "--backend", "openai-chat"),
        *("--endpoint", "/v1/chat/completions", "--base-url", url, "--model", model),
        *("--tokenizer", str(tokenizer), *workload[1:], "--skip-chat-template"),
        *("--num-prompts", str(prompts), "--request-rate", str(rate), "--temperature", "0"),
        *("--percentile-metrics", "ttft,tpot,itl,e2el", "--metric-percentiles", "99"),
        *("--goodput", *goodput.split(), "--disable-tqdm"),
        *("--save-result", "--result-dir", str(folder), "--result-filename", result.name),
    ]
    variables = {**os.environ, "OPENAI_API_KEY": os.environ.get("VLLM_API_KEY", "")}
    ended = subprocess.run(command, env=variables, capture_output=True, text=True)
    if ended.returncode:
        reason = ended.stderr.strip().splitlines() or ["it said nothing"]
        # Below its error a library may tell of what it did not free.
        reason = [line for line in reason if re.match(r"[\w.]*Error\b", line)] or reason
        message = without_credentials(reason[-1], url)
        raise UserError(f"vllm bench serve ended with {ended.returncode}: {message}")
    content = json.loads(result.read_text())
    if not content["completed"]:
        raise UserError(
            f"{redacted(url)} answered none of {prompts} requests for {model}; see its log"
        )
    numbers = {name: content.get(field) for field, name in FIELDS.items()}
    return {"workload": workload[0], "model": model, "rate": rate, **numbers}
