"""The answers that suspended tasks wait for, from the command line or the terminal."""

from __future__ import annotations

import asyncio
import sys

from runner.containers import Stop
from runner.language import Values


class Answers:
    """Answers by `task.output`, or by `task` for a suspend task without outputs."""

    def __init__(self, answers: Values, stop: Stop) -> None:
        self.answers, self.stop = answers, stop
        self.terminal = asyncio.Lock()

    async def find(self, name: str, accepted: list[str], default: str | None) -> str | None:
        """The answer to a question; None if it is missing or not accepted."""
        answer = self.answers.get(name)
        if answer is None and sys.stdin.isatty():
            async with self.terminal:
                answer = await self.typed(name.replace(".", ": "), accepted, default or "")
        return None if accepted and answer not in accepted else answer

    async def typed(self, question: str, accepted: list[str], default: str) -> str | None:
        """Ask at the terminal until a line is accepted; None if the run was stopped."""
        loop = asyncio.get_running_loop()
        choices = f" ({', '.join(accepted)})" if accepted else ""
        preset = f" [{default}]" if default else ""
        readable, stopped = asyncio.Event(), asyncio.ensure_future(self.stop.event.wait())
        loop.add_reader(sys.stdin, readable.set)
        try:
            while not self.stop.event.is_set():
                print(f"{question}{choices}{preset}? ", end="", file=sys.stderr, flush=True)
                readable.clear()
                line = asyncio.ensure_future(readable.wait())
                await asyncio.wait({line, stopped}, return_when=asyncio.FIRST_COMPLETED)
                line.cancel()
                if self.stop.event.is_set() or not (words := sys.stdin.readline()):
                    return None
                answer = words.strip() or default
                if not accepted or answer in accepted:
                    return answer
            return None
        finally:
            loop.remove_reader(sys.stdin)
            stopped.cancel()
