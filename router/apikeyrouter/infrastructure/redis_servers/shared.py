"""One connection that many callers use and one task makes."""

import asyncio
import random
from collections.abc import Awaitable, Callable

from apikeyrouter.domain.models.system_error import LedgerError, LedgerUnavailableError
from apikeyrouter.infrastructure.redis_servers.dialing import Dialled
from apikeyrouter.infrastructure.redis_servers.pipelined import PipelinedConnection

__all__ = ["SharedConnection"]

PAUSE_SECONDS_MIN, PAUSE_SECONDS_MAX = 0.02, 0.5
"""Between two tries to connect, doubling, each a random part shorter."""


class SharedConnection:
    """Keeps a connection. Whoever needs one while there is none waits for the one that is being made, not for ever.

    A try goes on when its callers have given up. After one that failed callers are refused until the next is due.
    """

    def __init__(self, connect: Callable[[], Awaitable[Dialled]]) -> None:
        self._connect = connect
        self.current: PipelinedConnection | None = None
        self._making: asyncio.Task[PipelinedConnection] | None = None
        self._pause, self._next_at = 0.0, 0.0
        self._failure: LedgerError | None = None

    async def get(self, within_s: float, *, at_once: bool = False) -> PipelinedConnection:
        """The connection, or the next one. `at_once`: not waiting until a try is due.

        Raises:
            LedgerUnavailableError: there is none within that time. Nothing was sent.
            LedgerConfigError: the server is not one that we use.
        """
        if self.current is not None and not self.current.closed:
            return self.current
        if self._making is None or self._making.done():
            loop = asyncio.get_running_loop()
            if loop.time() < self._next_at and not at_once and self._failure is not None:
                raise type(self._failure)(str(self._failure))
            self._making = loop.create_task(self._make(), name="apikeyrouter.redis")
            self._making.add_done_callback(_noted)
        making = self._making
        done, _ = await asyncio.wait((making,), timeout=within_s)
        if not done or making.cancelled():
            raise LedgerUnavailableError("Redis: there is no connection yet")
        return making.result()

    def retire(self) -> None:
        """Use another one from now on; the one before closes when what was sent is answered."""
        if self.current is not None:
            self.current.retire()
        self.current = None

    def close(self) -> None:
        """Close it; calls under way end with LedgerUnavailableError."""
        if self.current is not None:
            self.current.close()
        if self._making is not None:
            self._making.cancel()

    async def _make(self) -> PipelinedConnection:
        try:
            dialled = await self._connect()
        except LedgerError as exc:
            self._failure = exc
            self._pause = min(max(2 * self._pause, PAUSE_SECONDS_MIN), PAUSE_SECONDS_MAX)
            pause = self._pause * random.uniform(0.5, 1.0)  # noqa: S311 (spreads workers)
            self._next_at = asyncio.get_running_loop().time() + pause
            raise
        self._pause = self._next_at = 0.0
        self.current = dialled.connection
        return dialled.connection


def _noted(task: asyncio.Task[PipelinedConnection]) -> None:
    """Its error is told to whoever asks next, not to the loop."""
    if not task.cancelled():
        task.exception()
