"""What a training shows while it runs: curves in MLflow, a progress bar in the terminal."""

from __future__ import annotations

import atexit
import json
import math
import re
import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import mlflow
from mlflow.entities import Metric
from transformers import TrainerCallback

from loraline.process import progress
from loraline.tracking.tags import SPENT, json_object

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

    from loraline.tracking.lease import Lease
    from loraline.training.trainer import PackedTrainer

TRACKED = {
    "loss",
    "eval_loss",
    "eval_perplexity",
    "learning_rate",
    "grad_norm",
    "tokens_per_second",
}
"""What the trainer reports and a reviewer looks at."""

SEND_EVERY = 5.0
"""Seconds between the calls that log the curves."""


class CurvesToMlflow(TrainerCallback):
    """Sends the trainer's curves to the open MLflow run and to a progress bar."""

    def __init__(self, lease: Lease, logged_to: Mapping[str, int] | None = None) -> None:
        """`logged_to` is the last step that a resumed run has logged, by metric."""
        self.lease = lease
        self.logged_to = logged_to or {}
        self.waiting: list[Metric] = []
        self.sent_at = time.monotonic()
        self.stack = ExitStack()
        self.remark = ""
        # A training that is cut off never ends, and a bar left open hides the cursor.
        atexit.register(self.stack.close)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.advance = self.stack.enter_context(progress.bar("train", state.max_steps, main=True))
        self.advance(state.global_step, self.remark)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.advance(1, self.remark)
        self.lease.check()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any, **_: Any) -> None:
        if "loss" in logs:
            self.remark = f"loss {logs['loss']:.3f}, {logs['tokens_per_second']:,.0f} tokens/s"
        tracked = {key: value for key, value in logs.items() if key in TRACKED}
        if "eval_loss" in logs:
            tracked["train_loss"] = mean_since_evaluation(state.log_history)
        step, milliseconds = state.global_step, int(time.time() * 1000)
        self.waiting += [
            Metric(name, value, milliseconds, step)
            for name, value in tracked.items()
            if step > self.logged_to.get(name, 0)
        ]
        if time.monotonic() - self.sent_at > SEND_EVERY:
            self.send()

    def send(self) -> None:
        """One call for many points: a tracking server would slow down every step."""
        run = mlflow.active_run()
        assert run is not None, "the step opens the run"
        for start in range(0, len(self.waiting), 1000):
            mlflow.MlflowClient().log_batch(run.info.run_id, self.waiting[start : start + 1000])
        self.waiting.clear()
        self.sent_at = time.monotonic()

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.send()

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        # Before the checkpoint is uploaded: what it continues from is then logged.
        self.send()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.send()
        self.stack.close()


def mean_since_evaluation(history: list[dict[str, float]]) -> float:
    """Mean training loss of the steps between the last two evaluations: of an epoch."""
    losses: list[float] = []
    for entry in history[:-1]:
        if "eval_loss" in entry:
            losses.clear()
        elif "loss" in entry:
            losses.append(entry["loss"])
    return sum(losses) / len(losses) if losses else math.nan


def logged_to(client: MlflowClient, resumed: Run | None) -> dict[str, int]:
    """The last step that a run has logged, by metric; what a resume repeats is not logged twice."""
    if resumed is None:
        return {}
    histories = {
        name: client.get_metric_history(resumed.info.run_id, name)
        for name in (*TRACKED, "train_loss")
    }
    return {name: max(point.step for point in h) for name, h in histories.items() if h}


PEAK_FLOPS: dict[str, float | None] = {
    "H200 NVL": None,
    "H200": 989e12,
    "H100 NVL": None,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10": 125e12,
}
"""Dense bf16 FLOP/s of cards by words of their name, from their makers' data sheets.

The data sheet of the H100 PCIe says 1,513 TFLOP/s with sparsity; without it, the card does half as
many. NVL cards are slower than SXM cards of the same name, and have no figure here.
"""


def peak_flops(card: str) -> float | None:
    """The peak of a card by the name that CUDA gives it: the first whose words are all there."""
    peaks = (peak for name, peak in PEAK_FLOPS.items() if re.search(rf"\b{name}\b", card))
    return next(peaks, None)


class Cost:
    """What a training has cost: the sum of all attempts at its run, lost work included."""

    def __init__(self, trainer: PackedTrainer, earlier: Run | None) -> None:
        self.trainer = trainer
        self.before = spent_before(earlier) if earlier else {}

    def total(self) -> dict[str, float]:
        """Seconds of training, tokens in all processes, and seconds times processes."""
        seconds = self.trainer.clock.seconds()
        attempt = {
            "seconds": seconds,
            "tokens": self.trainer.tokens_seen,
            "process_seconds": seconds * self.trainer.args.world_size,
        }
        return {name: value + self.before.get(name, 0) for name, value in attempt.items()}

    def tags(self) -> dict[str, str]:
        """The tag to which a later attempt at the run adds its own cost."""
        return {SPENT: json.dumps(self.total())}


def spent_before(run: Run) -> dict[str, float]:
    """The cost of earlier attempts at a run, from its tag; only finite numbers from 0 up."""
    recorded = json_object(run.data.tags, SPENT)
    return {
        name: value
        for name, value in recorded.items()
        if isinstance(value, int | float) and math.isfinite(value) and value >= 0
    }


def utilization(trainer: PackedTrainer) -> dict[str, float]:
    """Model FLOP utilization of this attempt where the card is known.

    Frozen weights take two FLOPs a parameter and token forward and two backward, and two more where
    they learn; the vision tower is left out (MFU as in PaLM, arXiv 2204.02311, appendix B).
    """
    import torch

    if not torch.cuda.is_available():
        return {}
    peak = peak_flops(torch.cuda.get_device_name())
    if peak is None:
        return {}
    flops = trainer.flops * trainer.tokens_seen
    return {"mfu": flops / max(trainer.clock.seconds(), 1e-9) / peak / trainer.args.world_size}


def log_results(trainer: PackedTrainer, cost: Cost) -> None:
    """Log how the training ended and what it took, all attempts together."""
    import torch

    from loraline.training import allocator

    lowest = float(trainer.best["eval_loss"])
    total = cost.total()
    figures = {
        "final_eval_loss": lowest,
        "final_perplexity": math.exp(min(lowest, 700)),
        "train_seconds": total["seconds"],
        "train_tokens_per_second": total["tokens"] / max(total["seconds"], 1e-9),
        "peak_memory_gib": allocator.peak() / 2**30,
    }
    if torch.cuda.is_available():
        figures["gpu_seconds"] = total["process_seconds"]
        figures["peak_reserved_gib"] = allocator.reserved() / 2**30
    mlflow.log_metrics(figures | utilization(trainer))


def figure(history: list[dict[str, float]]) -> Any:
    """Training and validation loss over optimizer steps."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(7, 4), layout="constrained")
    axes = drawn.subplots()
    for key, label in (("loss", "training"), ("eval_loss", "validation")):
        points = [(entry["step"], entry[key]) for entry in history if key in entry]
        if points:
            axes.plot(
                *zip(*points, strict=True), marker="." if len(points) < 30 else "", label=label
            )
    axes.set(xlabel="optimizer step", ylabel="loss (nats a token)", ylim=(0, None))
    axes.legend()
    return drawn
