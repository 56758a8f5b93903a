"""Whether the store answers: a breaker on the store itself, one a process.

While it is open every call fails at once, and one task looks, again and again, whether the store is back.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable

from apikeyrouter.domain.models.system_error import LedgerAwayError, LedgerUnavailableError
from apikeyrouter.infrastructure.observability.events import EventLog

MISSES_MAX = 3
"""Calls in a row that were not answered, until the store counts as away."""
PROBE_SECONDS, PROBE_SECONDS_MAX = 0.1, 1.0
"""How long it waits before it looks again: longer each time, and never the same in two processes."""
_log = EventLog("apikeyrouter")


class StoreGate:
    """Open to calls until the store is away; then shut until a probe was answered. One event loop uses it.

    `probe` asks the store something cheap, on a connection of its own making if there is none.
    """

    def __init__(self, probe: Callable[[], Awaitable[object]]) -> None:
        self._probe = probe
        self._task: asyncio.Task[None] | None = None
        self._since = 0.0
        self.away = False
        """Whether calls are refused without being sent."""
        self.misses = 0
        """Calls in a row that were not answered."""
        self.times_away = 0
        """How often the store went away."""
        self.on_change: Callable[[bool, float, str], None] | None = None
        """Called when the store went away (True, 0, why), and when it is back (False, how many seconds it was, "")."""

    @property
    def away_seconds(self) -> float:
        """How long the store has been away now; 0 while it is not."""
        return time.monotonic() - self._since if self.away else 0.0

    def refusal(self) -> LedgerAwayError:
        """Why a call is not sent."""
        return LedgerAwayError(f"Redis has not answered for {self.away_seconds:.1f} s; this process looks for it")

    def missed(self, why: LedgerUnavailableError) -> None:
        """A call was not answered."""
        self.misses += 1
        if self.misses >= MISSES_MAX and not self.away:
            self.away = True
            self.times_away += 1
            self._since = time.monotonic()
            self._task = asyncio.get_running_loop().create_task(self._look(), name="apikeyrouter.store_gate")
            self._tell(0.0, str(why))

    def answered(self) -> None:
        """A call was answered: whatever was missed before does not count."""
        self.misses = 0
        if self.away:
            seconds = self.away_seconds
            self.away = False
            self._tell(seconds, "")

    def begin_anew(self) -> object:
        """Nothing is known yet of a store that is asked from another loop. What is left behind."""
        left, self._task = self._task, None
        self.away, self.misses = False, 0
        return left

    async def close(self) -> None:
        """Look no longer."""
        task = self._task
        self.begin_anew()
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    async def _look(self) -> None:
        pause = PROBE_SECONDS
        while self.away:
            await asyncio.sleep(random.uniform(0.5, 1.0) * pause)  # noqa: S311 (spreads workers)
            try:
                await self._probe()
            except LedgerUnavailableError:
                pause = min(pause * 2, PROBE_SECONDS_MAX)
            except Exception as exc:
                _log.error("store.probe_failed", error=repr(exc))
                pause = PROBE_SECONDS_MAX
            else:
                self.answered()

    def _tell(self, seconds: float, why: str) -> None:
        if self.on_change is not None:
            self.on_change(self.away, seconds, why)
