"""The wait queue: where asked for, a request that is denied for want of room waits for it instead, within bounds.

Nobody polls. Whose turn it is asks the ledger at the instant that its denial named, and when this process has booked
the end of another request; all others wait for their turn.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Hashable
from typing import TypeVar

from apikeyrouter.domain.components.wait_lines import Place, WaitLines, Who
from apikeyrouter.domain.models.accounting import RetryKind
from apikeyrouter.domain.models.call import Call, Facts
from apikeyrouter.domain.models.system_error import NoEligibleKeysError

__all__ = ["WaitQueue"]

PAUSE_SECONDS_MIN, PAUSE_SECONDS_MAX = 0.01, 0.25
"""Between two asks where a denial names no exact instant, doubled each time: other processes may have made room."""
OWN = "c:"
"""What the lanes of clients' own limits begin with: who waits for those stands in nobody's way."""
T = TypeVar("T")


class _Denied:
    """The latest word on a line: the denial, and when what it said is due (`perf_counter`)."""

    __slots__ = ("at", "due", "error", "exact")

    def __init__(self, error: NoEligibleKeysError) -> None:
        self.error, self.at = error, time.perf_counter()
        self.due = self.at + (error.retry_after_us or 0) / 1e6
        binding = error.binding
        self.exact = binding is None or binding.retry_kind is not RetryKind.ESTIMATED

    def hopeless(self, until: float) -> bool:
        """Whether there will be no room before `until`."""
        return self.error.retry_after_us is None or (self.exact and self.due > until)

    def now(self) -> NoEligibleKeysError:
        """The denial as of now."""
        return self.error.later(int((time.perf_counter() - self.at) * 1e6))


class WaitQueue:
    """Those that wait in this process. One event loop owns it."""

    def __init__(self) -> None:
        self.lines = WaitLines()
        self._told: dict[Hashable, _Denied] = {}

    @property
    def length(self) -> int:
        """How many wait."""
        return self.lines.length

    @property
    def longest_seconds(self) -> float:
        """How long the one has waited that has waited longest; 0: nobody waits."""
        now = time.perf_counter()
        return max((now - place.since for place in self.lines.all()), default=0.0)

    def begin_anew(self) -> None:
        """Who waited belongs to a loop that has ended, or to a parent process."""
        self.lines, self._told = WaitLines(self.lines.length_max), {}

    def denial(self, key: Hashable, call: Call) -> NoEligibleKeysError | None:
        """What a newcomer is told where somebody waits who goes before it; None: it may ask."""
        for line in (OWN + (call.client or ""), key):
            told = self._told.get(line)
            if told is not None and self.lines.goes_before(line, _who(call)):
                return told.now()
        return None

    def passed(self, key: Hashable, call: Call) -> None:
        """A newcomer was served while others wait."""
        self.lines.passed(key, _who(call))

    async def stand(
        self, key: Hashable, call: Call, facts: Facts, ask: Callable[[], Awaitable[T]], denied: NoEligibleKeysError,
        until: float,
    ) -> T:  # fmt: skip
        """What `ask` gives once there is room. It is asked when it is this call's turn; `until`: `perf_counter()`.

        Raises:
            NoEligibleKeysError: there is no room by then, or there are too many that wait; `denied` is the first one.
            Whatever else `ask` raises.
        """
        told = _Denied(denied)
        if told.hopeless(until):
            raise denied
        own = OWN + (call.client or "")
        line = own if _is_own(denied) else key
        place = self.lines.join(line, _who(call))
        if place is None:
            raise denied
        self._told[line] = told
        place.not_before = told.due
        pause, began, served = PAUSE_SECONDS_MIN, time.perf_counter(), False
        place.since = began
        try:
            while True:
                await self._turn(place, until, told)
                place.stirred = False
                try:
                    got = await ask()
                    served = True
                    return got
                except NoEligibleKeysError as exc:
                    told = _Denied(exc)
                    if told.hopeless(until):
                        raise
                wanted = own if _is_own(told.error) else key
                self._told[wanted] = told
                now, stirred = time.perf_counter(), place.stirred
                if wanted != place.line:
                    place = self._move(place, wanted)
                if stirred:
                    place.not_before = 0.0
                elif told.exact and told.due > now:
                    place.not_before, pause = told.due, PAUSE_SECONDS_MIN
                else:
                    place.not_before, pause = max(told.due, now + pause), min(pause * 2, PAUSE_SECONDS_MAX)
        finally:
            facts.waited_us += int((time.perf_counter() - began) * 1e6)
            self._leave(place, served=served)

    def stir(self) -> None:
        """There may be room: whose turn it is asks."""
        if self.lines.length:
            for place in self.lines.firsts():
                place.stirred, place.not_before = True, 0.0
                _wake(place)

    def end(self) -> None:
        """Nobody waits any longer: each gets its denial."""
        for place in self.lines.all():
            place.pushed_out = True
            _wake(place)

    async def _turn(self, place: Place, until: float, own: _Denied) -> None:
        """Until it is this place's turn to ask. Raises the denial of its line when that does not come in time."""
        loop = asyncio.get_running_loop()
        while True:
            now, told = time.perf_counter(), self._told.get(place.line, own)
            first = self.lines.first(place.line) is place
            if place.pushed_out or now >= until or (not first and told.hopeless(until)):
                raise told.now()
            if first and now >= place.not_before:
                return
            woken = loop.create_future()
            place.wake = lambda woken=woken: woken.done() or woken.set_result(None)
            at = min(until, place.not_before) if first else until
            timer = loop.call_later(at - now, place.wake)
            try:
                await woken
            finally:
                timer.cancel()
                place.wake = None

    def _move(self, place: Place, line: Hashable) -> Place:
        """What stands in its way is another thing now."""
        moved = self.lines.move(place, line)
        self._call_next(place.line)
        return moved

    def _leave(self, place: Place, *, served: bool) -> None:
        line = place.line
        self.lines.leave(place, served=served)
        self._call_next(line)

    def _call_next(self, line: Hashable) -> None:
        """Whoever is first in a line now may ask at once: what was in the way of the one before may not be in its."""
        first = self.lines.first(line)
        if first is None:
            self._told.pop(line, None)
        elif first.wake is not None:
            first.not_before = 0.0
            _wake(first)


def _who(call: Call) -> Who:
    return Who(call.principal, call.priority, call.weight)


def _wake(place: Place) -> None:
    if place.wake is not None:
        place.wake()


def _is_own(denied: NoEligibleKeysError) -> bool:
    return denied.binding is not None and denied.binding.where.startswith(OWN)
