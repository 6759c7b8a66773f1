"""Limits: how much one caller may ask, and how much all callers may ask at a time."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from limits import RateLimitItem, RateLimitItemPerMinute, parse
from limits.aio.storage import MemoryStorage, Storage
from limits.aio.strategies import FixedWindowRateLimiter, SlidingWindowCounterRateLimiter
from limits.errors import ConfigurationError
from limits.storage import storage_from_string

from gateway.errors import Problem
from gateway.exchange import Exchange
from gateway.keys import Caller
from gateway.logs import log
from gateway.metrics import Metrics
from gateway.settings import Settings
from loraline.errors import UserError

REDIS_S = 1
"""Seconds that Redis may take before a replica counts on its own."""

VIDEOS = 2
"""Videos that are decoded at a time: a decoder may take 2 GiB (gateway.frames)."""


class Rates:
    """Requests and tokens of each caller, in this process or, with Redis, of all replicas.

    Requests are counted in a sliding window, tokens in minutes: what an answer used is known when
    it ended, so a caller is refused once a minute's tokens are used up.
    """

    def __init__(self, settings: Settings) -> None:
        self.fallback = MemoryStorage()
        self.storage = self.fallback if settings.redis_url is None else redis(settings)
        self.requests = {
            each: SlidingWindowCounterRateLimiter(each) for each in (self.storage, self.fallback)
        }
        self.tokens = {each: FixedWindowRateLimiter(each) for each in (self.storage, self.fallback)}
        self.items: dict[str, RateLimitItem] = {}
        self.warned = 0.0

    async def check(self, caller: Caller) -> None:
        """Count one request; a Problem of 429 when it exceeds the rate."""
        try:
            await self.check_in(self.storage, caller)
        except Problem:
            raise
        except Exception as error:
            self.warn(error)
            await self.check_in(self.fallback, caller)

    async def check_in(self, storage: Storage, caller: Caller) -> None:
        if caller.rate not in self.items:
            self.items[caller.rate] = parse(caller.rate)
        item = self.items[caller.rate]
        requests, window = self.requests[storage], self.tokens[storage]
        if not await requests.hit(item, "requests", caller.name):
            reset, _ = await requests.get_window_stats(item, "requests", caller.name)
            raise Problem(
                429,
                "rate",
                f"This key may send {caller.rate.replace('/', ' requests a ')}; wait before "
                "the next one.",
                retry_after=reset - time.time(),
            )
        tokens = RateLimitItemPerMinute(caller.tokens_per_minute)
        if not await window.test(tokens, "tokens", caller.name):
            reset, _ = await window.get_window_stats(tokens, "tokens", caller.name)
            raise Problem(
                429,
                "tokens",
                f"This key has used its {caller.tokens_per_minute:,} tokens of this minute; wait "
                "for the next one.",
                retry_after=reset - time.time(),
            )

    async def charge(self, caller: Caller, used: int) -> None:
        """Count the tokens of an answer that has ended."""
        if not used:
            return
        item = RateLimitItemPerMinute(caller.tokens_per_minute)
        for storage in (self.storage, self.fallback):
            try:
                await self.tokens[storage].hit(item, "tokens", caller.name, cost=used)
                return
            except Exception as error:
                self.warn(error)

    def warn(self, error: Exception) -> None:
        """Log at most once a minute that each replica counts alone for now."""
        if time.monotonic() - self.warned > 60:
            self.warned = time.monotonic()
            log.warning("rates are counted by this replica alone: Redis fails", exc_info=error)


def redis(settings: Settings) -> Storage:
    assert settings.redis_url is not None
    url = settings.redis_url.get_secret_value()
    try:
        storage = storage_from_string(
            f"async+{url}",
            implementation="redispy",
            socket_timeout=REDIS_S,
            socket_connect_timeout=REDIS_S,
        )
    except (ConfigurationError, ValueError) as error:
        raise UserError("GATEWAY_REDIS_URL is no address like redis://host:6379/0") from error
    assert isinstance(storage, Storage)
    return storage


class Admission:
    """Bounds the requests to the servers and the requests that wait; refuses the rest."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self.free = asyncio.Semaphore(settings.max_running)
        self.decoders = asyncio.Semaphore(VIDEOS)
        self.waiting = 0
        self.most_waiting = settings.max_waiting
        self.patience = settings.max_wait_s
        self.of_caller: Counter[str] = Counter()
        self.uploads = settings.max_uploads
        self.metrics = metrics

    @asynccontextmanager
    async def slot(self, exchange: Exchange) -> AsyncIterator[None]:
        """One of the running requests to the servers; a Problem of 429 if none is free in time."""
        await self.enter(exchange)
        self.metrics.running.inc()
        try:
            yield
        finally:
            self.metrics.running.dec()
            self.free.release()

    @asynccontextmanager
    async def video_slot(self) -> AsyncIterator[None]:
        """One of the videos that are decoded; a Problem of 429 if none is free in time."""
        await self.acquire(self.decoders)
        try:
            yield
        finally:
            self.decoders.release()

    @contextmanager
    def caller_slot(self, caller: Caller) -> Iterator[None]:
        """One of the requests that a caller may have running; a Problem of 429 beyond them."""
        if self.of_caller[caller.name] >= caller.streams:
            raise Problem(
                429,
                "streams",
                f"This key has {caller.streams} requests running already; wait until one ends.",
                retry_after=1,
            )
        self.of_caller[caller.name] += 1
        try:
            yield
        finally:
            self.of_caller[caller.name] -= 1
            if not self.of_caller[caller.name]:
                del self.of_caller[caller.name]

    async def acquire(self, places: asyncio.Semaphore) -> None:
        """Acquire one of these places; a Problem of 429 if none is free in time."""
        try:
            async with asyncio.timeout(self.patience):
                await places.acquire()
        except TimeoutError:
            raise self.overload() from None

    async def enter(self, exchange: Exchange) -> None:
        if not self.free.locked():
            await self.free.acquire()
            return
        if self.waiting >= self.most_waiting:
            raise self.overload()
        began = time.perf_counter()
        self.waiting += 1
        self.metrics.waiting.set(self.waiting)
        try:
            await self.acquire(self.free)
        finally:
            self.waiting -= 1
            self.metrics.waiting.set(self.waiting)
            exchange.queue_s += time.perf_counter() - began

    def overload(self) -> Problem:
        return Problem(
            429,
            "overload",
            "Too many requests run and wait already; try again in a moment.",
            retry_after=self.patience / 2,
        )

    @contextmanager
    def upload_slot(self) -> Iterator[None]:
        """One of the uploads that are read at a time; a Problem of 429 beyond them."""
        if self.uploads <= 0:
            raise Problem(
                429, "uploads", "Too many uploads come in at once; try again.", retry_after=2
            )
        self.uploads -= 1
        try:
            yield
        finally:
            self.uploads += 1
