"""An Indexed Job as processes of this machine, one for each of its pods.

A pod's name in the DNS is this machine, and each of its ports a free one: pods have addresses of
their own, processes share one.
"""

from __future__ import annotations

import asyncio
import re
import socket
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from runner.containers import LATE, Attempt, Stop, attempt
from runner.language import Object
from runner.manifests import Job
from runner.programs import Programs

PAUSE = 10.0
"""Seconds before a pod that failed is made anew, doubled with each failure, as in Kubernetes."""

LONGEST_PAUSE = 360.0

INDEX = "JOB_COMPLETION_INDEX"


@dataclass(frozen=True)
class End:
    """Why a Job ended: what Kubernetes writes into its conditions."""

    succeeded: bool
    reason: str
    message: str

    def status(self) -> Object:
        words = (
            ("SuccessCriteriaMet", "Complete") if self.succeeded else ("FailureTarget", "Failed")
        )
        condition = {"status": "True", "reason": self.reason, "message": self.message}
        return {"status": {"conditions": [{"type": word, **condition} for word in words]}}


class RunningJob:
    """A Job at work; `stop` is the whole run's, whose end is the Job's."""

    def __init__(self, root: Path, job: Job, folder: Path, stop: Stop, programs: Programs) -> None:
        self.root, self.folder, self.run_stop = root, folder, stop
        self.programs = programs
        self.job = on_this_machine(job)
        self.stop = Stop()
        """Asked when the pods that are left have to end."""
        self.succeeded: set[int] = set()
        self.failures = 0
        self.end: End | None = None

    async def run(self) -> End | None:
        """Run all pods to the Job's end; None if the run was stopped before."""
        pods = [asyncio.ensure_future(self.pod(index)) for index in range(self.job.pods)]
        all_pods: asyncio.Future[Any] = asyncio.gather(*pods)
        stopped: asyncio.Future[Any] = asyncio.ensure_future(self.run_stop.event.wait())
        seconds = None if self.job.seconds == float("inf") else self.job.seconds
        try:
            await asyncio.wait(
                {all_pods, stopped}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED
            )
            if not all_pods.done():
                if not stopped.done():
                    message = "Job was active longer than specified deadline"
                    self.end_with(End(False, "DeadlineExceeded", message))
                self.stop.ask(self.run_stop.why or LATE)
                while not all_pods.done():
                    self.stop.at_once |= self.run_stop.at_once
                    await asyncio.wait({all_pods}, timeout=0.05)
            await all_pods
        finally:
            stopped.cancel()
        return self.end

    async def pod(self, index: int) -> None:
        """Run a pod, and once more as often as the Job's policies say."""
        while not self.stop.requested:
            result = await self.attempt(index)
            if self.stop.requested:
                return
            if result.exit_code == 0:
                self.succeed(index)
                return
            if (pause := self.fail(index, result.exit_code)) is None:
                return
            await self.stop.unless_requested(asyncio.sleep(pause))

    async def attempt(self, index: int) -> Attempt:
        container = self.job.container
        environment = {INDEX: str(index), **container.environment}
        return await attempt(
            self.root,
            replace(container, environment=environment),
            {},
            self.folder / str(index),
            {},
            float("inf"),
            self.stop,
            self.programs,
        )

    def succeed(self, index: int) -> None:
        self.succeeded.add(index)
        if not self.job.needed <= self.succeeded:
            return
        if self.job.succeeded_indexes is None:
            message = "Reached expected number of succeeded pods"
            self.end_with(End(True, "CompletionsReached", message))
        else:
            self.end_with(End(True, "SuccessPolicy", "Matched rules at index 0"))

    def fail(self, index: int, code: int) -> float | None:
        """Seconds until the pod is made anew; None if the Job has failed."""
        rule = next((rule for rule in self.job.rules if rule.applies(code)), None)
        if rule and rule.action == "FailJob":
            message = (
                f"Container main for pod {self.job.name}-{index} failed with exit code {code} "
                f"matching FailJob rule at index {rule.number}"
            )
            self.end_with(End(False, "PodFailurePolicy", message))
            return None
        if not rule or rule.action == "Count":
            self.failures += 1
        if self.failures > self.job.backoff_limit:
            message = "Job has reached the specified backoff limit"
            self.end_with(End(False, "BackoffLimitExceeded", message))
            return None
        return min(PAUSE * 2.0 ** max(self.failures - 1, 0), LONGEST_PAUSE)

    def end_with(self, end: End) -> None:
        self.end = self.end or end
        self.stop.ask(end.message)


def on_this_machine(job: Job) -> Job:
    """A Job whose pods are found on this machine, at free ports."""
    address = re.compile(
        rf"{re.escape(job.name)}-(\d+)\.{re.escape(job.subdomain)}[\w.-]*(?::(\d+))?"
    )
    free: dict[tuple[str, str], int] = {}

    def local(match: re.Match[str]) -> str:
        if match[2] is None:
            return "127.0.0.1"
        return f"127.0.0.1:{free.setdefault((match[1], match[2]), free_port())}"

    def with_local_addresses(text: str) -> str:
        return address.sub(local, text) if job.subdomain else text

    container = job.container
    return replace(
        job,
        container=replace(
            container,
            command=[with_local_addresses(word) for word in container.command],
            environment={
                name: with_local_addresses(text) for name, text in container.environment.items()
            },
        ),
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
