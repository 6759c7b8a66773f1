"""What the machines beside the first one of a training get, and fetch for themselves.

Machines share no folder. The first process of the training says in the launcher's store which
checkpoint all go on from; the first process of every other machine then fetches that checkpoint
and the dataset, and completes the shared folder of its machine. It writes nothing to MLflow.
"""

from __future__ import annotations

import atexit
import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraline.tracking import runs, store
from loraline.training import checkpoint, exchange, launch

if TYPE_CHECKING:
    from mlflow.entities import Run


def let_follow(start: Path | None, run: Run | None) -> None:
    """Tell the other machines which checkpoint of a run all go on from; None begins anew.

    The word is JSON of the run's ID and the checkpoint's name, or null.
    """
    if launch.nodes() > 1:
        word = [run.info.run_id, start.name] if start and run else None
        launch.meeting_place().set(launch.START, json.dumps(word))


def fill(run_id: str) -> None:
    """Complete the shared folder of a machine beside the first, with the data of a run.

    Raises TryAgain where the first machine is gone.
    """
    folder = Path(os.environ[launch.SHARED])
    left = (folder / launch.LEFT).touch
    atexit.register(left)
    word = wait_for_first()
    if word is None:
        left()
        return
    client = store.connect()
    runs.download_dataset(client, runs.upstream_run(client, run_id, "prepare_data"), folder)
    if start := json.loads(word):
        earlier, name = start
        place = folder / checkpoint.FOLDER
        place.mkdir()
        runs.download(client, earlier, f"{checkpoint.FOLDER}/{name}", place)
    launch.let_follow(folder)


def wait_for_first() -> Any:
    """What the first process says of a checkpoint; None if it has left without a training."""
    try:
        place = launch.meeting_place()
        while not place.check([launch.START]):
            if place.check([launch.LEFT]):
                return None
            time.sleep(0.2)
        return place.get(launch.START)
    except RuntimeError as error:
        raise exchange.left() from error
