"""When each of many things is due, so that asking whether any is costs nothing, however many there are."""

import heapq
from datetime import datetime

__all__ = ["DueTimes"]

_SPARE = 64


class DueTimes:
    """One time for each name that has one. A heap: what was replaced is passed over when it comes to the top."""

    def __init__(self) -> None:
        self._times: dict[str, datetime] = {}
        self._heap: list[tuple[datetime, str]] = []

    def set(self, name: str, at: datetime | None) -> None:
        """It is due then; None: never."""
        if at is None:
            self._times.pop(name, None)
        elif self._times.get(name) != at:
            self._times[name] = at
            heapq.heappush(self._heap, (at, name))
        if len(self._heap) > 2 * len(self._times) + _SPARE:
            self._heap = sorted((due, name) for name, due in self._times.items())

    def any(self, now: datetime) -> bool:
        """Whether something is due by now, and was not set to another time since."""
        heap = self._heap
        while heap and self._times.get(heap[0][1]) != heap[0][0]:
            heapq.heappop(heap)
        return bool(heap) and heap[0][0] <= now

    def due(self, now: datetime) -> list[str]:
        """What is due by now."""
        return [name for name, at in self._times.items() if at <= now] if self.any(now) else []
