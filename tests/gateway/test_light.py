"""The gateway's image has no model libraries: tasks, parsers and overlays import none."""

import contextlib
import gc
import logging
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import uvicorn

from gateway import logs, server
from gateway.settings import Settings


@pytest.mark.parametrize("module", ["gateway.tasks", "gateway.parsing", "gateway.overlay"])
def test_a_module_imports_no_model_library(module: str) -> None:
    program = (
        f"import sys, {module}\n"
        "heavy = {'torch', 'transformers', 'mlflow', 'numpy', 'pyarrow', 'scipy'}\n"
        "print(*sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == ""


def test_the_collector_leaves_what_was_loaded_alone(
    settings_for: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A walk through all of it takes 45 ms, in which no stream goes on; and what running streams
    hold is not walked through at each request."""
    usual, states = gc.get_threshold(), []
    monkeypatch.setattr(
        uvicorn.Server,
        "run",
        lambda _, sockets: states.append((gc.get_freeze_count(), gc.get_threshold()[0])),
    )
    monkeypatch.setattr(logs, "set_up", lambda _: logging.getLogger())
    try:
        server.run(settings_for(port=0))
    finally:
        gc.unfreeze()
        gc.set_threshold(*usual)
    frozen, young = states[0]
    assert frozen > 10_000
    assert young > usual[0]


def test_no_thread_is_asked_for_an_address_in_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread waits for a processor, and with it each new connection to a server."""
    answers = []
    known = server.Loop.getaddrinfo

    async def at_once(*args: Any, **more: Any) -> list[Any]:
        with pytest.raises(StopIteration) as answer:
            known(*args, **more).send(None)
        answers.append(answer.value.value)
        return await known(*args, **more)

    monkeypatch.setattr(server.Loop, "getaddrinfo", at_once)
    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        socket.socket() as client,
        contextlib.closing(server.Loop()) as loop,
    ):
        client.setblocking(False)
        address = listening.getsockname()
        loop.run_until_complete(loop.sock_connect(client, address))
    assert [result[4] for (result,) in answers] == [address]
