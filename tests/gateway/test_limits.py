from __future__ import annotations

import asyncio
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import aiohttp
import httpx
import pytest

from gateway import keys
from gateway.errors import Problem
from gateway.exchange import Exchange
from gateway.limits import Admission
from gateway.metrics import Metrics
from gateway.settings import Settings
from tests.gateway.conftest import ask_chat


def test_a_key_may_ask_so_often(start, stub) -> None:
    """In a day: just after a window begins, a request of the one before counts a little less."""
    with start(rate="3/day") as gateway:
        answers = [ask_chat(gateway) for _ in range(5)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429]
    assert answers[3].json()["error"]["code"] == "rate"
    assert 1 <= int(answers[3].headers["retry-after"]) <= 86_400
    assert len(stub.requests) == 3


def test_each_key_has_limits_of_its_own(start, stub, tmp_path) -> None:
    alice, first = keys.new_key("alice")
    bob, second = keys.new_key("bob")
    entries = [first.model_dump(exclude_none=True) | {"rate": "1/day"}]
    entries.append(second.model_dump(exclude_none=True))
    (tmp_path / "keys.json").write_text(json.dumps(entries))
    with start(api_keys_file=tmp_path / "keys.json") as gateway:
        statuses = [
            ask_chat(gateway, headers={"Authorization": f"Bearer {key}"}).status_code
            for key in (alice, alice, bob, bob)
        ]
    assert statuses == [200, 429, 200, 200]


@pytest.mark.parametrize("stream", [False, True])
def test_tokens_that_were_used_count(start, stub, stream) -> None:
    with start(tokens_per_minute=15) as gateway:
        codes = [ask_chat(gateway, stream=stream).status_code for _ in range(3)]
    # Ten tokens an answer: the second is begun within the limit, the third is not.
    assert codes == [200, 200, 429]


def test_a_key_may_have_so_many_requests_running(start, stub) -> None:
    stub.delay = 0.5
    with start(streams_per_key=2) as gateway, ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: ask_chat(gateway), range(4)))
        assert sorted(answer.status_code for answer in answers) == [200, 200, 429, 429]
        assert not gateway.gateway.admission.of_caller


def test_ten_times_the_load_is_refused_and_the_admitted_keep_their_latency(start, stub) -> None:
    # So long that all requests are there before the first answer ends.
    stub.delay = 0.5
    with start(max_running=4, max_waiting=2, max_wait_s=10, rate="9999/second") as gateway:
        began = time.perf_counter()
        assert ask_chat(gateway).status_code == 200
        alone = time.perf_counter() - began

        result = asyncio.run(ask_at_once(gateway.url, 40))
    admitted = [seconds for status, seconds, _ in result if status == 200]
    refused = [each for each in result if each[0] == 429]
    assert len(admitted) + len(refused) == 40
    assert len(admitted) == 6
    assert all(int(after or 0) >= 1 for _, _, after in refused)
    assert stub.most_running == 4
    # Two of them waited for one answer before theirs.
    assert max(admitted) < 2 * alone + 2


def test_a_place_is_free_again_however_a_request_ends(start, stub, png) -> None:
    with start(max_running=1, max_waiting=0, upstream_stall_s=1) as gateway:
        for fault in ("reset", "status 500", "garbage", "stall", "cut"):
            stub.fault = fault
            ask_chat(gateway, stream=True)
            gateway.client.post("/predict", files={"files": ("x", png)})
        stub.fault = ""
        assert ask_chat(gateway).status_code == 200


def test_whoever_waits_too_long_is_refused() -> None:
    async def main() -> None:
        admission = Admission(Settings(max_running=1, max_waiting=1, max_wait_s=0.05), Metrics())
        async with admission.slot(Exchange()):
            began = time.perf_counter()
            exchange = Exchange()
            with pytest.raises(Problem) as refused:
                async with admission.slot(exchange):
                    pass
            assert refused.value.status == 429
            assert 0.04 < time.perf_counter() - began < 5
            assert exchange.queue_s > 0.04
        async with admission.slot(Exchange()):
            pass
        assert admission.waiting == 0

    asyncio.run(main())


def test_a_waiting_request_whose_client_leaves_takes_no_place() -> None:
    async def main() -> None:
        admission = Admission(Settings(max_running=1, max_waiting=5, max_wait_s=5), Metrics())

        async def enter() -> None:
            async with admission.slot(Exchange()):
                pass

        async with admission.slot(Exchange()):
            waiting = [asyncio.create_task(enter()) for _ in range(3)]
            await asyncio.sleep(0)
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
        await asyncio.wait_for(enter(), 1)
        assert admission.waiting == 0

    asyncio.run(main())


def test_uploads_are_bounded_too(start, stub, png) -> None:
    with start(max_uploads=1, client_stall_s=1) as gateway:
        gone = threading.Event()

        def slow():
            yield b"--x\r\n"
            gone.wait(5)

        headers = {"content-type": "multipart/form-data; boundary=x"}
        with ThreadPoolExecutor(1) as pool:
            slowly = pool.submit(
                lambda: httpx.post(f"{gateway.url}/predict", content=slow(), headers=headers)
            )
            deadline = time.monotonic() + 5
            while gateway.gateway.admission.uploads and time.monotonic() < deadline:
                time.sleep(0.01)
            refused = gateway.client.post("/predict", files={"files": ("x.png", png)})
            assert (refused.status_code, refused.json()["code"]) == (429, "uploads")
            gone.set()
            slowly.result()
        assert gateway.client.post("/predict", files={"files": ("x.png", png)}).status_code == 200


async def ask_at_once(url: str, count: int) -> list[tuple[int, float, str | None]]:
    """Status, seconds and Retry-After of so many requests at a time."""
    body = {"model": "base", "messages": [{"role": "user", "content": "x"}]}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def ask() -> tuple[int, float, str | None]:
            began = time.perf_counter()
            async with session.post(f"{url}/v1/chat/completions", json=body) as answer:
                await answer.read()
            seconds = time.perf_counter() - began
            return answer.status, seconds, answer.headers.get("Retry-After")

        return await asyncio.gather(*(ask() for _ in range(count)))
