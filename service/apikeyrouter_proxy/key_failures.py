"""The last failure of each key, of whichever worker saw it: told with each beat that has news, read when asked for."""

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import msgspec

from apikeyrouter.domain.components.key_tally import KeyFailure

if TYPE_CHECKING:
    from redis.asyncio import Redis

__all__ = ["KeyFailures"]

KEPT_SECONDS = 7 * 86_400
"""With nothing new, all of it goes after this."""
ANSWER_SECONDS_MAX = 0.5
"""So long the store is waited for; then this worker's own are all that is known."""
_read = msgspec.json.Decoder(KeyFailure)


class KeyFailures:
    """One hash, a field a key. `own`: this worker's, by key id, the latest last. Without a client there are only those.

    A store that is away is no error: nobody is told until it is back, and nobody else's are found.
    """

    def __init__(self, client: "Redis | None", namespace: str, own: dict[str, KeyFailure]) -> None:
        self._client, self._own = client, own
        self._key = f"{namespace}:m:{{m}}:failures"
        self._told_us = 0

    async def tell(self) -> None:
        """Tell of what failed since the last time. Errors: RedisError, OSError; the next call tells it again."""
        news = list(takewhile(lambda one: one[1].at_us > self._told_us, reversed(self._own.items())))
        if not news or self._client is None:
            return
        told: dict[Any, Any] = {key_id: msgspec.json.encode(failure).decode() for key_id, failure in news}
        await self._client.hset(self._key, mapping=told)
        await self._client.expire(self._key, KEPT_SECONDS)
        self._told_us = news[0][1].at_us

    async def find(self, key_ids: Sequence[str]) -> dict[str, KeyFailure]:
        """The last failure of each of these keys that had one, as far as it was told."""
        found = {key_id: self._own[key_id] for key_id in key_ids if key_id in self._own}
        for key_id, text in zip(key_ids, await self._kept(key_ids), strict=False):
            with contextlib.suppress(msgspec.MsgspecError):  # another version's
                told = None if text is None else _read.decode(text)
                if told is not None and (key_id not in found or told.at_us > found[key_id].at_us):
                    found[key_id] = told
        return found

    async def forget_others(self, known: Mapping[str, object]) -> None:
        """Drop what is kept of keys that there are no more. Errors: RedisError, OSError."""
        if self._client is not None:
            gone = [key_id for key_id in await self._client.hkeys(self._key) if key_id not in known]
            if gone:
                await self._client.hdel(self._key, *gone)

    async def _kept(self, key_ids: Sequence[str]) -> Sequence[str | bytes | None]:
        from redis.exceptions import RedisError

        if self._client is None or not key_ids:
            return []
        with contextlib.suppress(RedisError, OSError, TimeoutError):
            async with asyncio.timeout(ANSWER_SECONDS_MAX):
                return await self._client.hmget(self._key, list(key_ids))
        return []
