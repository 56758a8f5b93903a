"""`x-ratelimit-*`: what is left of a client's own limits, as of at most half a second ago."""

import asyncio
import contextlib
import time
from collections.abc import Sequence

import structlog

from apikeyrouter.domain.models.accounting import LimitState
from apikeyrouter.domain.models.system_error import ApiKeyRouterError
from apikeyrouter.infrastructure.cancellation import end_task
from apikeyrouter.infrastructure.surface.requests import Caller
from apikeyrouter.router import ApiKeyRouter
from apikeyrouter_proxy.lanes import unused_limits

__all__ = ["ClientLimits", "Header"]

READ_SECONDS = 0.5
IDLE_SECONDS = 30.0
"""A client that asked nothing for so long is read again when it does."""
SHOWN = {"rpm": b"requests", "tpm": b"tokens", "concurrency": b"concurrency"}
Header = tuple[bytes, bytes]
_log = structlog.get_logger("apikeyrouter")


class _Seen:
    """One client's lane as it was read, and what this worker served since."""

    __slots__ = ("asked_at", "limits", "now_us", "served")

    def __init__(self, limits: tuple[LimitState, ...], now_us: int) -> None:
        self.limits, self.now_us = limits, now_us
        self.served = 0
        self.asked_at = time.monotonic()


class ClientLimits:
    """Reads the lanes of those clients that ask, some at a time, beside their requests."""

    def __init__(self, router: ApiKeyRouter) -> None:
        self._ledger = router.ledger
        self._config_of = router.lane_config
        self._seen: dict[str, _Seen] = {}
        self._task: asyncio.Task[None] | None = None

    async def of_refusal(self, caller: Caller | None) -> Sequence[Header]:
        """The headers of an answer to a request that nothing is held for."""
        return await self.headers(caller, served=0) if caller is not None and caller.lanes else ()

    async def headers(self, caller: Caller, *, served: int = 1) -> Sequence[Header]:
        """The headers of an answer to a client with limits; none while the store is away. `served`: requests that are
        about to be, which nobody has counted yet."""
        lane_id = caller.lanes[0]
        seen = self._seen.get(lane_id)
        if seen is None:
            with contextlib.suppress(ApiKeyRouterError):
                await self._read([lane_id])
            seen = self._seen.get(lane_id)
            if seen is None:
                return ()
            if self._task is None or self._task.done():
                self._task = asyncio.get_running_loop().create_task(self._run(), name="apikeyrouter.client_limits")
        seen.served += served
        seen.asked_at = time.monotonic()
        return _headers(seen)

    async def close(self) -> None:
        """Stop reading."""
        await end_task(self._task)
        self._task = None

    async def _run(self) -> None:
        """Until nobody asks any more."""
        while self._seen:
            await asyncio.sleep(READ_SECONDS)
            idle = time.monotonic() - IDLE_SECONDS
            self._seen = {lane_id: seen for lane_id, seen in self._seen.items() if seen.asked_at > idle}
            try:
                await self._read(list(self._seen))
            except ApiKeyRouterError as exc:
                _log.warning("client_limits.unknown", error=str(exc))
                self._seen.clear()

    async def _read(self, lane_ids: list[str]) -> None:
        found = {lane.id: lane for lane in await self._ledger.lanes(lane_ids)} if lane_ids else {}
        for lane_id in lane_ids:
            before = self._seen.get(lane_id)
            limits = found[lane_id].limits if lane_id in found else unused_limits(self._config_of(lane_id))
            self._seen[lane_id] = made = _Seen(limits, self._ledger.stamp.now_us)
            made.asked_at = made.asked_at if before is None else before.asked_at


def _headers(seen: _Seen) -> list[Header]:
    found: list[Header] = []
    for limit in seen.limits:
        name = SHOWN.get(limit.name)
        if name is None:
            continue
        used = limit.used + (seen.served if name == b"requests" else 0)
        found.append((b"x-ratelimit-limit-" + name, b"%d" % limit.capacity))
        found.append((b"x-ratelimit-remaining-" + name, b"%d" % max(0, limit.capacity - used)))
        if limit.reset_at_us:
            found.append((b"x-ratelimit-reset-" + name, _duration(limit.reset_at_us - seen.now_us)))
    return found


def _duration(us: int) -> bytes:
    """As OpenAI writes it: `120ms`, `7s`."""
    ms = max(0, us) // 1000
    return b"%dms" % ms if ms < 1000 else b"%ds" % -(-ms // 1000)
