"""Own writes on their way to the store: what is read meanwhile is out of date."""

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["OwnWrites"]


class OwnWrites:
    """Who reads asks `count` before and `stale` after; a write's own notice brings the next reading."""

    def __init__(self) -> None:
        self._under_way = 0
        self.count = 0
        """How many have ended."""

    @contextmanager
    def writing(self) -> Iterator[None]:
        """While one of our own changes is under way."""
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1
            self.count += 1

    def stale(self, count: int) -> bool:
        """Whether something was written since `count` was taken, or is being written."""
        return self._under_way > 0 or count != self.count
