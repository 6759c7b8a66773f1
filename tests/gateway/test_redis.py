"""Replicas that share a Redis count together; without it each goes on by itself."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from contextlib import suppress

import pytest
from ports import free_port

from tests.gateway.conftest import ask_chat

pytestmark = pytest.mark.skipif(
    shutil.which("redis-server") is None, reason="redis-server is not installed"
)


@pytest.fixture
def redis(tmp_path):
    """A real server on loopback; the test may end it."""
    port = free_port()
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    server = subprocess.Popen([*command, "--dir", str(tmp_path)], stdout=subprocess.DEVNULL)
    for _ in range(200):
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            break
        time.sleep(0.02)
    else:
        server.kill()
        raise AssertionError("the server did not start")
    server.url = f"redis://127.0.0.1:{port}/0"
    yield server
    server.kill()
    server.wait()


def test_rates_are_those_of_all_replicas(start, stub, redis) -> None:
    with (
        start(rate="3/day", redis_url=redis.url) as first_gateway,
        start(rate="3/day", redis_url=redis.url) as second_gateway,
    ):
        statuses = [
            ask_chat(door).status_code
            for door in (first_gateway, second_gateway, first_gateway, second_gateway)
        ]
    assert statuses == [200, 200, 200, 429]


def test_tokens_are_those_of_all_replicas(start, stub, redis) -> None:
    with (
        start(tokens_per_minute=15, redis_url=redis.url) as first_gateway,
        start(tokens_per_minute=15, redis_url=redis.url) as second_gateway,
    ):
        statuses = [
            ask_chat(door).status_code for door in (first_gateway, second_gateway, first_gateway)
        ]
    assert statuses == [200, 200, 429]


def test_an_answer_of_one_replica_is_the_others_too(start, stub, redis) -> None:
    with (
        start(cache_mb=1, redis_url=redis.url) as first_gateway,
        start(cache_mb=1, redis_url=redis.url) as second_gateway,
    ):
        first = ask_chat(first_gateway, temperature=0)
        second = ask_chat(second_gateway, temperature=0)
    assert first.content == second.content
    assert len(stub.requests) == 1


def test_without_redis_each_replica_counts_on_its_own(start, stub, redis) -> None:
    with start(rate="2/day", cache_mb=1, redis_url=redis.url) as door:
        assert ask_chat(door, temperature=0).status_code == 200
        redis.kill()
        redis.wait()
        statuses = [ask_chat(door, temperature=0).status_code for _ in range(3)]
    assert statuses == [200, 200, 429]
