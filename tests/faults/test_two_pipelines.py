"""Two pipelines that start at once in a new checkout: both end, and neither harms the other."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("rank", ["the same inputs", "other inputs"])
def test_two_pipelines_in_one_checkout_both_end_well(tmp_path: Path, rank: str) -> None:
    """There is no store yet; of the same inputs one trains, and the other one waits for it."""
    for part in ("steps", "workflows", "lora_profiles", "test_data"):
        (tmp_path / part).symlink_to(ROOT / part)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW")}
    ranks = (4, 4 if rank == "the same inputs" else 8)
    line = ("-m", "runner.run_local", "workflows/pipeline.yaml", "-p", "profile=smoke-text", "-p")
    both = [
        subprocess.Popen(
            [sys.executable, *line, f"set=r={each} max_steps=3 num_train_epochs=1 warmup_steps=0"],
            cwd=tmp_path,
            env=environment | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for each in ranks
    ]
    said = [process.communicate(timeout=900)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert not any("Traceback" in text for text in said), said
    folders = [path for path in (tmp_path / "outputs").iterdir() if not path.is_symlink()]
    assert len([path for path in folders if path.name.startswith("loraline-pipeline-")]) == 2
    with closing(sqlite3.connect(tmp_path / "mlruns" / "mlflow.db")) as database:
        unfinished = database.execute("SELECT * FROM runs WHERE status = 'RUNNING'").fetchall()
        trained = database.execute(
            "SELECT count(DISTINCT model_id) FROM logged_models WHERE lifecycle_stage = 'active'"
        ).fetchall()
        locks = database.execute("SELECT * FROM registered_models WHERE name LIKE '%.lock%'")
        assert locks.fetchall() == []
    assert unfinished == []
    assert trained == [(len(set(ranks)),)]
