"""What DAGs, steps, retries and suspended tasks need of the run that they belong to."""

from __future__ import annotations

from abc import ABC, abstractmethod

from runner.answers import Answers
from runner.containers import Stop
from runner.frames import Frame, Invocation
from runner.language import Values
from runner.nodes import Node
from runner.programs import Programs
from runner.record import Record


class Controller(Record, ABC):
    """A run that can run templates."""

    stop: Stop
    programs: Programs
    answers: Answers
    only: str
    """The only task of the entrypoint that runs; empty if all run."""

    jobs: set[str]
    """Names of the Jobs that the run has made."""

    interrupted: bool
    waits_for: list[str]
    """Questions that nobody has answered."""

    @abstractmethod
    async def call(
        self,
        name: str,
        display: str,
        template_name: str,
        arguments: Values,
        frame: Frame,
        folder: str,
        parents: list[str],
    ) -> Node | None:
        """Run a template as the node `name`; None if it has not ended."""

    @abstractmethod
    async def run_once(self, node: Node, invocation: Invocation) -> bool:
        """Run a template's container, DAG, steps or wait once; returns whether it ended."""
