"""Facts of decisions that are noted beside requests, to be written together."""

from collections import deque
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from apikeyrouter.infrastructure.state_store.caps import Caps

__all__ = ["BATCH_MAX", "Noted"]

BATCH_MAX = 128
"""How many are written in one round trip: so few that requests under way do not feel a batch being packed."""
T = TypeVar("T")


class Noted(Generic[T]):
    """What waits to be written: of many, the newest `max_decisions`."""

    def __init__(self, caps: Caps, write: Callable[[list[T]], Awaitable[None]]) -> None:
        self._caps, self._write = caps, write
        self._waiting: deque[T] = deque()

    def add(self, noted: T) -> None:
        """Take one more. Never waits."""
        self._waiting.append(noted)
        if len(self._waiting) > self._caps.decisions:
            self._waiting.popleft()

    def clear(self) -> None:
        """Forget what waits."""
        self._waiting.clear()

    async def flush(self) -> None:
        """Write what waits. What could not be written waits on."""
        while self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), BATCH_MAX))]
            try:
                await self._write(batch)
            except BaseException:
                self._waiting.extendleft(reversed(batch))
                raise
