"""A training on several machines of a Ray cluster: the same command on each, as a task of Ray.

    python -m loraline.training.on_ray

KubeRay starts it as the entrypoint of a RayJob. The command stands in LORALINE_WORD_00 and so on,
the group in LORALINE_NODES and LORALINE_GPUS. When a machine is lost, or says "try again", all
start again from the last checkpoint.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import click

from loraline.errors import TryAgain, first_line
from loraline.training.group import MEETING

RESTARTS = 3
WORD = "LORALINE_WORD_"


def main() -> None:
    """Train, and exit with the code of the first machine that did not end well."""
    words = [os.environ[name] for name in sorted(os.environ) if name.startswith(WORD)]
    nodes, gpus = int(os.environ["LORALINE_NODES"]), int(os.environ["LORALINE_GPUS"])
    sys.exit(train(words, nodes, gpus))


def train(words: list[str], nodes: int, gpus: int) -> int:
    """The exit code of a training on so many machines, each with so many GPUs."""
    import ray
    from ray.util import placement_group

    ray.init(ignore_reinit_error=True, log_to_driver=True)
    has_gpus = ray.cluster_resources().get("GPU", 0) >= nodes * gpus
    bundle = {"CPU": 1.0, **({"GPU": float(gpus)} if has_gpus else {})}
    places = placement_group([bundle] * nodes, strategy="STRICT_SPREAD")
    code = TryAgain.exit_code
    for _ in range(RESTARTS + 1):
        if not places.wait(MEETING):
            click.echo(f"the Ray cluster has no {nodes} machines with {bundle} each", err=True)
            return TryAgain.exit_code
        code = run_on_all(words, nodes, gpus, places, bundle)
        if code != TryAgain.exit_code:
            return code
    return code


def run_on_all(
    words: list[str], nodes: int, gpus: int, places: Any, bundle: Mapping[str, float]
) -> int:
    """Run the command on all machines at once: 0, or the code of the first that ended otherwise."""
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    def on(node: int, function: Any) -> Any:
        place = PlacementGroupSchedulingStrategy(places, placement_group_bundle_index=node)
        options = {"num_cpus": bundle["CPU"], "num_gpus": bundle.get("GPU", 0), "max_retries": 0}
        return ray.remote(function).options(scheduling_strategy=place, **options)

    try:
        first = ray.get(on(0, free_address).remote())
        group = ["--nodes", str(nodes), "--gpus", str(gpus), "--first-node", first]
        waiting = [
            on(node, run).remote([*words, *group, "--node", str(node)]) for node in range(nodes)
        ]
        leader = waiting[0]
        codes = []
        while waiting:
            (ended,), waiting = ray.wait(waiting, num_returns=1)
            if code := ray.get(ended):
                codes.append(code)
            elif ended == leader:
                return 0
    except RayError as error:
        click.echo(f"a machine was lost: {first_line(error)}", err=True)
        return TryAgain.exit_code
    # A machine that ended because another had left says 75; the other one knows why.
    return next((code for code in codes if code != TryAgain.exit_code), TryAgain.exit_code)


def free_address() -> str:
    """HOST:PORT of this machine at which nobody listens yet."""
    import ray

    with socket.socket() as free:
        free.bind(("", 0))
        return f"{ray.util.get_node_ip_address()}:{free.getsockname()[1]}"


def run(words: list[str]) -> int:
    """Run a command; its exit code, for a death by a signal as shells say it."""
    with subprocess.Popen(words) as process:
        # Ray ends a task of a stopped job with SIGTERM; the training writes a checkpoint then.
        signal.signal(signal.SIGTERM, lambda *_: process.send_signal(signal.SIGTERM))
        code = process.wait()
    return 128 - code if code < 0 else code


if __name__ == "__main__":
    main()
