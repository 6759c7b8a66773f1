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


def announce_start(start: Path | None, run: Run | None) -> None:
    """Tell the other machines which checkpoint of a run all resume from; None begins anew.

    The message is JSON: the run's ID and the checkpoint's name, or null.
    """
    if launch.nodes() > 1:
        message = [run.info.run_id, start.name] if start and run else None
        launch.meeting_place().set(launch.START, json.dumps(message))


def fill(run_id: str) -> None:
    """Complete the shared folder of a machine beside the first, with the data of a run.

    Raises TryAgain where the first machine is gone.
    """
    folder = Path(os.environ[launch.SHARED])
    announce_exit = (folder / launch.LEFT).touch
    atexit.register(announce_exit)
    message = wait_for_first()
    if message is None:
        announce_exit()
        return
    client = store.connect()
    runs.download_dataset(client, runs.upstream_run(client, run_id, "prepare_data"), folder)
    if start := json.loads(message):
        earlier, name = start
        place = folder / checkpoint.FOLDER
        place.mkdir()
        runs.download(client, earlier, f"{checkpoint.FOLDER}/{name}", place)
    launch.announce_ready(folder)


def wait_for_first() -> Any:
    """The message of `announce_start`; None if the first process has left without training."""
    try:
        store_of_launcher = launch.meeting_place()
        while not store_of_launcher.check([launch.START]):
            if store_of_launcher.check([launch.LEFT]):
                return None
            time.sleep(0.2)
        return store_of_launcher.get(launch.START)
    except RuntimeError as error:
        raise exchange.peer_has_left() from error
