"""What a training is logged with: its cost, and how much of a card it used."""

from __future__ import annotations

from pathlib import Path

import mlflow
import pytest
from transformers import TrainerState

from loraline.tracking import store
from loraline.tracking.lease import Lease
from loraline.training import curves


@pytest.mark.parametrize(
    ("card", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA A10", 125e12),
        ("NVIDIA H100 NVL", None),
        ("NVIDIA H200 NVL", None),
        ("NVIDIA L40", None),
        ("NVIDIA A10G", None),
        ("NVIDIA RTX A1000", None),
        ("NVIDIA GH200 480GB", None),
    ],
)
def test_a_card_has_the_peak_of_its_data_sheet(card: str, peak: float | None) -> None:
    assert curves.peak_flops(card) == peak


def test_a_resumed_training_logs_what_a_killed_one_had_not_sent(workplace: Path) -> None:
    client = store.connect()
    with mlflow.start_run() as run:
        for step in (1, 2):
            mlflow.log_metric("loss", 3.0 - step, step=step)
        earlier = client.get_run(run.info.run_id)
        lease = Lease(client, run.info.run_id)
        callback = curves.CurvesToMlflow(lease, curves.logged_to(client, earlier))
        state = TrainerState(global_step=2, log_history=[{"loss": 1.0}, {"eval_loss": 0.5}])
        for logs in ({"loss": 9.0, "tokens_per_second": 1.0}, {"eval_loss": 0.5}):
            callback.on_log(None, state, None, logs)
        callback.send()
    points = {
        name: [(each.step, each.value) for each in client.get_metric_history(run.info.run_id, name)]
        for name in ("loss", "eval_loss", "train_loss")
    }
    assert points == {
        "loss": [(1, 2.0), (2, 1.0)],
        "eval_loss": [(2, 0.5)],
        "train_loss": [(2, 1.0)],
    }
