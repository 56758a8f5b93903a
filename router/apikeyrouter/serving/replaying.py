"""What the ledger has booked lately: to be told again, should it prove to have forgotten (law 9)."""

import time
from collections import deque
from typing import Generic, TypeVar

__all__ = ["REPLAY_MAX", "REPLAY_SECONDS", "Replay"]

REPLAY_SECONDS = 10.0
"""So old may a write be that the next server lacks: a primary that hears from no replica is to stop before."""
REPLAY_MAX = 512
"""Kept at most by one process, half a MB; at higher rates than this in REPLAY_SECONDS, less is told again."""
_T = TypeVar("_T")


class Replay(Generic[_T]):
    """Keeps what was booked for REPLAY_SECONDS. Until it leaves, the ledger has to remember it, too: so that what is
    told again counts once.
    """

    def __init__(self) -> None:
        self._kept: deque[tuple[float, _T]] = deque()

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def beyond(self) -> int:
        """How many more are kept than have to be."""
        return len(self._kept) - REPLAY_MAX

    def keep(self, booked: _T) -> None:
        """This was booked now."""
        self._kept.append((time.perf_counter(), booked))

    def leaving(self) -> list[_T]:
        """What need not be kept any longer, the oldest first."""
        gone: list[_T] = []
        until = time.perf_counter() - REPLAY_SECONDS
        while self._kept and (self._kept[0][0] <= until or len(self._kept) > REPLAY_MAX):
            gone.append(self._kept.popleft()[1])
        return gone

    def take(self) -> list[_T]:
        """Everything, the oldest first; nothing is kept any longer."""
        taken = [booked for _, booked in self._kept]
        self._kept.clear()
        return taken
