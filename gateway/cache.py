"""Answers to greedy requests that were asked before, word for word and image for image."""

from __future__ import annotations

import hashlib
from typing import Any

from cachetools import TTLCache

from gateway.limits import REDIS_S
from gateway.logs import log
from gateway.metrics import Metrics
from gateway.served import Model
from gateway.settings import MIB, Settings

REDIS_PREFIX = "loraline:answer:"
LARGEST_SHARE = 0.1
"""Share of the room that one answer may take."""


class Cache:
    """Bounded, in memory or in Redis; off unless it is given room. It keeps answers, not requests:
    a key is a digest of the model's version, the media, the prompt and the parameters."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self.room = int(settings.cache_mb * MIB)
        self.seconds = settings.cache_s
        self.metrics = metrics
        self.memory: TTLCache[str, bytes] = TTLCache(max(1, self.room), self.seconds, getsizeof=len)
        self.redis: Any = None
        if self.room and settings.redis_url:
            from redis.asyncio import Redis

            self.redis = Redis.from_url(
                settings.redis_url.get_secret_value(),
                socket_timeout=REDIS_S,
                socket_connect_timeout=REDIS_S,
            )

    def key(self, model: Model, body: dict[str, Any], content: bytes) -> str | None:
        """The request's key; None when its answer is not to be kept."""
        if not self.room or body.get("temperature") != 0 or body.get("stream"):
            return None
        digest = hashlib.sha256(f"{model.name}\0{model.version}\0".encode())
        digest.update(content)
        return digest.hexdigest()

    async def get(self, key: str | None) -> bytes | None:
        if key is None:
            return None
        kept: bytes | None
        if self.redis is None:
            kept = self.memory.get(key)
        else:
            try:
                kept = await self.redis.get(REDIS_PREFIX + key)
            except Exception as error:
                log.warning("the cache in Redis fails", exc_info=error)
                kept = None
        self.metrics.cache.labels("hit" if kept else "miss").inc()
        return kept

    async def put(self, key: str | None, answer: bytes) -> None:
        if key is None or len(answer) > self.room * LARGEST_SHARE:
            return
        if self.redis is None:
            self.memory[key] = answer
            return
        try:
            await self.redis.set(REDIS_PREFIX + key, answer, ex=self.seconds)
        except Exception as error:
            log.warning("the cache in Redis fails", exc_info=error)

    async def close(self) -> None:
        if self.redis is not None:
            await self.redis.aclose()
