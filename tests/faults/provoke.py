"""How each fault of the table is brought about: a function that runs the step and meets it."""

from __future__ import annotations

import signal
from collections.abc import Callable

from cells import Cell
from stage import Ended, Stage

Provoke = Callable[[Stage, Cell], Ended]


def signalled(number: int) -> Provoke:
    def run(stage: Stage, cell: Cell) -> Ended:
        return stage.step(
            cell.step, faults=[("stopped", {"number": number, "moment": cell.moment})]
        )

    return run


def served(action: str) -> Provoke:
    """Over MLflow's server, which does something else with one request."""

    def run(stage: Stage, cell: Cell) -> Ended:
        path, _, number = cell.moment.partition(" ")
        server = stage.server()
        try:
            server.misbehave(action=action, path=path, number=int(number), method="")
            ended = stage.step(cell.step, environment={"MLFLOW_TRACKING_URI": server.address})
            assert action == "kill for good" or not server.control.exists(), "no such request"
            return ended
        finally:
            server.stop()

    return run


FAULTS: dict[str, Provoke] = {
    "SIGKILL": signalled(signal.SIGKILL),
    "SIGTERM": signalled(signal.SIGTERM),
    "Ctrl-C": signalled(signal.SIGINT),
    "answer lost": served("lost"),
    "answer 500 once": served("500"),
    "answer 429 once": served("429"),
    "connection reset once": served("reset"),
    "server killed and started again": served("kill"),
    "server killed for good": served("kill for good"),
}
