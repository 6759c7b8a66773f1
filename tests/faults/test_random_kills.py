"""SIGKILL at random moments over the whole line: plain reruns end as if nothing had happened.

LORALINE_KILLS=13 LORALINE_KILLS_SEED=7 makes a part of the kills; parts may run at once.
"""

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
    """Each kill is recorded once its step was repeated, with how long the step had been at work."""
    rng = random.Random(SEED)
    kills = 0
    while kills < KILLS:
        line.stage.restore("before prepare_data")
        for step in STEPS:
            most = min(4, KILLS - kills)
            moments = [killed(line, step, rng) for _ in range(rng.randint(0, most))]
            after_seconds = [seconds for seconds in moments if seconds is not None]
            ended = line.stage.step(step)
            assert ended.code == 0, ended.stderr
            same = after.whole(line.stage, step) == line.results[step]
            unswept = sorted(after.unswept(line.stage, step))
            for seconds in after_seconds:
                kills += 1
                after.record(
                    kill=kills, seed=SEED, step=step, seconds=seconds, same=same, unswept=unswept
                )
            assert same
            assert not unswept


def killed(line: Line, step: str, rng: random.Random) -> float | None:
    """After how many seconds a step was killed; None if it had ended before."""
    process = line.stage.start(step, *line.stage.arguments(step))
    seconds = rng.uniform(0, 1.2 * line.seconds[step])
    if process.wait(seconds) is None:
        process.kill()
    assert process.code in (0, -signal.SIGKILL), process.stderr.read_text()
    return None if process.code == 0 else round(seconds, 2)
