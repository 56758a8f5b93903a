"""Time as the library reads it. The ledger has its own clock (law 3); this one is for everything else."""

import asyncio
import time
from datetime import UTC, datetime, timedelta
from typing import Protocol

__all__ = ["Clock", "ManualClock", "SystemClock"]


class Clock(Protocol):
    """Where a component gets the time, so that tests can move it."""

    def now(self) -> datetime:
        """The wall clock, aware UTC. May step."""
        ...

    def monotonic_us(self) -> int:
        """Microseconds from an arbitrary origin; never goes backwards."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Return after `seconds` of this clock."""
        ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> datetime:
        """Now, aware UTC."""
        return datetime.now(UTC)

    def monotonic_us(self) -> int:
        """Microseconds of the monotonic clock."""
        return time.monotonic_ns() // 1000

    async def sleep(self, seconds: float) -> None:
        """`asyncio.sleep`."""
        await asyncio.sleep(seconds)


class ManualClock:
    """A clock that stands still until it is advanced. Sleepers wake when their time has come."""

    def __init__(self, now: datetime = datetime(2026, 1, 1, tzinfo=UTC)) -> None:
        self._now = now
        self._monotonic_us = 0
        self._sleepers: list[tuple[int, asyncio.Future[None]]] = []

    def now(self) -> datetime:
        """The time it was set to."""
        return self._now

    def monotonic_us(self) -> int:
        """Microseconds it was advanced by in all."""
        return self._monotonic_us

    async def sleep(self, seconds: float) -> None:
        """Wait until the clock was advanced by `seconds`."""
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sleepers.append((self._monotonic_us + round(seconds * 1_000_000), woken))
        self._wake()
        await woken

    def advance(self, seconds: float) -> None:
        """Move the wall clock and the monotonic clock on together. `seconds` ≥ 0."""
        if seconds < 0:
            raise ValueError("a monotonic clock never goes backwards; use step()")
        self._now += timedelta(seconds=seconds)
        self._monotonic_us += round(seconds * 1_000_000)
        self._wake()

    def step(self, seconds: float) -> None:
        """Step the wall clock alone, forwards or backwards, as a correction would."""
        self._now += timedelta(seconds=seconds)

    def _wake(self) -> None:
        due = [entry for entry in self._sleepers if entry[0] <= self._monotonic_us]
        self._sleepers = [entry for entry in self._sleepers if entry[0] > self._monotonic_us]
        for _, woken in due:
            if not woken.done():
                woken.set_result(None)
