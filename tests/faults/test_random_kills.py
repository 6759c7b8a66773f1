"""SIGKILL at random moments over the whole line: plain reruns end as if nothing had happened."""

from __future__ import annotations

import os
import random
import signal

import after
import pytest
from line import STEPS, Line

KILLS = int(os.environ.get("LORALINE_KILLS", "200"))
SEED = int(os.environ.get("LORALINE_KILLS_SEED", "1"))


@pytest.mark.slow
def test_random_kills_leave_the_line_as_it_was(line: Line) -> None:
    """Each kill is printed, with how long the step had been at work (`pytest -s`)."""
    stage = line.stage
    rng = random.Random(SEED)
    kills = 0
    while kills < KILLS:
        stage.restore("before prepare_data")
        for step in STEPS:
            for _ in range(rng.randint(0, 4)):
                process = stage.start(step, *stage.arguments(step))
                seconds = rng.uniform(0, 1.2 * line.seconds[step])
                if process.wait(seconds) is None:
                    process.kill()
                    assert process.code == -signal.SIGKILL
                    kills += 1
                    print(f"kill {kills}: {step} after {seconds:.2f} s", flush=True)
                else:
                    assert process.code == 0, process.stderr.read_text()
            ended = stage.step(step)
            assert ended.code == 0, ended.stderr
            assert after.whole(stage, step) == line.results[step]
            assert not after.unswept(stage, step)
    print(f"{kills} kills, seed {SEED}: the same digests, manifest, version and aliases")
