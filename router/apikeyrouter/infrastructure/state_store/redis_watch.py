"""Hearing of changes: pub/sub, with the version as the truth behind it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any

from apikeyrouter.domain.interfaces.state_store import Change
from apikeyrouter.domain.models.system_error import StateStoreError
from apikeyrouter.infrastructure.cancellation import stop_if_cancelled

if TYPE_CHECKING:
    from redis.asyncio import Redis

__all__ = ["Watermark", "watch_changes"]

POLL_SECONDS = 0.5
"""How often the version is looked at; a lost notice is made good after that long."""
AHEAD_MAX = 10_000
"""How many notices may be ahead of a missing one before it is given up at the next look."""


class Watermark:
    """Up to which version every notice was heard, however the notices were ordered on their way."""

    def __init__(self, seen: int) -> None:
        self.seen = seen
        self._ahead: set[int] = set()

    def heard(self, version: int) -> None:
        """A notice came."""
        if len(self._ahead) < AHEAD_MAX:
            self._ahead.add(version)
        while self.seen + 1 in self._ahead:
            self.seen += 1
            self._ahead.discard(self.seen)

    def caught_up(self, version: int) -> bool:
        """Whether nothing is missing up to the store's `version`; from here on nothing is, either way.

        A version that went back (the server forgot, or was emptied) counts as missing.
        """
        complete = version == self.seen
        self.seen = version
        self._ahead.clear()
        return complete


async def watch_changes(
    client: "Callable[[], Redis]", channel: str, version: Callable[[], Awaitable[int]]
) -> AsyncIterator[Change]:
    """Yield every change; those whose notices were lost as one Change without kind and id. Never ends by itself.

    An outage of the server ends nothing: after it the version tells whether something was missed.
    Errors: StateStoreError when the server cannot be reached at the start.
    """
    from redis.exceptions import RedisError

    mark = Watermark(await version())
    while True:
        stop_if_cancelled()
        try:
            async for change in _listen(client(), channel, version, mark):
                yield change
        except (StateStoreError, OSError, RedisError):
            await asyncio.sleep(POLL_SECONDS)
        with contextlib.suppress(StateStoreError):  # a server without notices, or out of reach: ask it
            if not mark.caught_up(now := await version()):
                yield Change(version=now)


async def _listen(
    client: "Redis", channel: str, version: Callable[[], Awaitable[int]], mark: Watermark
) -> AsyncIterator[Change]:
    loop = asyncio.get_running_loop()
    async with client.pubsub(ignore_subscribe_messages=True) as subscription:
        await subscription.subscribe(channel)
        look_at = loop.time()
        while True:
            stop_if_cancelled()
            if loop.time() >= look_at:
                look_at = loop.time() + POLL_SECONDS
                if not mark.caught_up(now := await version()):
                    yield Change(version=now)
            message = await subscription.get_message(timeout=max(0.0, look_at - loop.time()))
            change = _notice(message) if message else None
            if change is not None and change.version > mark.seen:
                mark.heard(change.version)
                yield change


def _notice(message: dict[str, Any]) -> Change | None:
    number, _, rest = str(message.get("data")).partition(":")
    kind, _, changed_id = rest.partition(":")
    return Change(version=int(number), kind=kind, id=changed_id) if number.isdigit() else None
