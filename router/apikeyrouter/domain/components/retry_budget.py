"""The retry budget: retries stay a bounded share of requests, so that a failing provider never gets more load."""

from collections import deque

RETRY_SHARE = 0.2
"""Retries per request, over the window."""
RETRIES_FLOOR = 100
"""Retries that a window always allows, so that little traffic may retry freely: ten a second."""
WINDOW_SECONDS = 10.0
MARK_SECONDS = 0.25
"""How finely the window slides."""


class RetryBudget:
    """Counts what this process does: every process keeps to its own share, and so the fleet does. Pure.

    `requests` is the number of first attempts so far, told by the caller; times are seconds of a clock that only
    advances.
    """

    def __init__(self, *, share: float = RETRY_SHARE, floor: int = RETRIES_FLOOR) -> None:
        self.share, self.floor = share, floor
        self.retries = 0
        """Retries so far."""
        self.refused = 0
        """Retries that the budget did not allow, so far."""
        self._marks: deque[tuple[float, int, int]] = deque([(float("-inf"), 0, 0)])

    def note(self, requests: int, now: float) -> None:
        """Slide the window. To be called a few times a second, also while nothing fails."""
        if now - self._marks[-1][0] >= MARK_SECONDS:
            self._marks.append((now, requests, self.retries))
        while len(self._marks) > 1 and self._marks[1][0] <= now - WINDOW_SECONDS:
            self._marks.popleft()

    def allows(self, requests: int, now: float) -> bool:
        """Whether the window has room for one more retry."""
        self.note(requests, now)
        _, requests_before, retries_before = self._marks[0]
        within = self.retries - retries_before
        return within < max(self.floor, self.share * (requests - requests_before))

    def spend(self) -> None:
        """A retry is made."""
        self.retries += 1
