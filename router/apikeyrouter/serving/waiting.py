"""The wait queue: where asked for, a request that is denied for want of room waits for it instead, within bounds.

Nobody polls. Whose turn it is asks the ledger at the instant that its denial named, and when this process has booked
the end of another request; all others wait for their turn. Room that the ledger keeps for somebody who was served less
goes to whose turn it is when nobody comes for it.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Hashable
from typing import TypeVar

from apikeyrouter.domain.components.wait_lines import Place, WaitLines, Who
from apikeyrouter.domain.models.accounting import Reason, RetryKind
from apikeyrouter.domain.models.call import Call, Facts
from apikeyrouter.domain.models.system_error import ConfigurationError, NoEligibleKeysError

__all__ = ["WaitQueue"]

PAUSE_SECONDS_MIN, PAUSE_SECONDS_MAX = 0.01, 0.25
"""Between two asks where a denial names no exact instant, doubled each time: other processes may have made room."""
UNCLAIMED_SECONDS, UNCLAIMED_DENIALS = 0.28, 3
"""Room that the ledger keeps for others is anybody's when it was found so often in a row, over so long, and none of
them took it. Whoever waits for it in another process asks within PAUSE_SECONDS_MAX."""
ANYBODYS_SECONDS = 10.0
"""For so long it stays anybody's: as long as the ledger takes somebody for a claimant that was served."""
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
        self._kept: dict[Hashable, tuple[float, int]] = {}
        """By line, since when there is room that is kept for others (`perf_counter`), and how many denials said so."""
        self._anybodys: dict[Hashable, float] = {}
        """By line, until when it is kept for nobody."""

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
        self.lines, self._told, self._kept, self._anybodys = WaitLines(self.lines.length_max), {}, {}, {}

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
            ConfigurationError: the router was closed meanwhile.
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
        place.not_before = told.due if told.exact else 0.0  # an end that was booked since told nobody
        pause, began, served = PAUSE_SECONDS_MIN, time.perf_counter(), False
        place.since = began
        try:
            while True:
                await self._turn(place, until, told)
                place.stirred, call.ungated = False, self._is_anybodys(key)
                try:
                    got = await ask()
                    self._kept.pop(key, None)
                    served = True
                    return got
                except NoEligibleKeysError as exc:
                    told = _Denied(exc)
                    if told.hopeless(until):
                        raise
                wanted = own if _is_own(told.error) else key
                self._told[wanted] = told
                self._note_kept(key, facts)
                now, stirred = time.perf_counter(), place.stirred
                if wanted != place.line:
                    place = self._move(place, wanted)
                if stirred:
                    place.not_before = 0.0
                elif told.exact and told.due > now:
                    place.not_before, pause = told.due, PAUSE_SECONDS_MIN
                else:
                    place.not_before = min(max(told.due, now + pause), now + PAUSE_SECONDS_MAX)
                    pause = min(pause * 2, PAUSE_SECONDS_MAX)
        finally:
            call.ungated = False
            facts.waited_us += int((time.perf_counter() - began) * 1e6)
            self._leave(place, served=served)

    def stir(self) -> None:
        """There may be room: whose turn it is asks."""
        if self.lines.length:
            for place in self.lines.firsts():
                place.stirred, place.not_before = True, 0.0
                _wake(place)

    def end(self) -> None:
        """The router is closed: nobody waits any longer."""
        for place in self.lines.all():
            place.closed = True
            _wake(place)

    async def _turn(self, place: Place, until: float, own: _Denied) -> None:
        """Until it is this place's turn to ask. Raises the denial of its line when that does not come in time."""
        loop = asyncio.get_running_loop()
        while True:
            if place.closed:
                raise ConfigurationError("the router was closed")
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

    def _note_kept(self, line: Hashable, facts: Facts) -> None:
        """Whether the latest denial found room that is kept for others."""
        if facts.refusal is not None and any(loss.reason is Reason.FAIR_SHARE for loss in facts.refusal.losses):
            since, denials = self._kept.get(line, (time.perf_counter(), 0))
            self._kept[line] = since, denials + 1
        else:
            self._kept.pop(line, None)

    def _is_anybodys(self, line: Hashable) -> bool:
        """Whether what the ledger keeps for others is kept for nobody: none of them has come for it."""
        now = time.perf_counter()
        if self._anybodys.get(line, 0.0) > now:
            return True
        since, denials = self._kept.get(line, (now, 0))
        if denials < UNCLAIMED_DENIALS or now < since + UNCLAIMED_SECONDS:
            return False
        self._anybodys = {other: until for other, until in self._anybodys.items() if until > now}
        self._anybodys[line] = now + ANYBODYS_SECONDS
        return True

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
            self._kept.pop(line, None)
        else:
            first.stirred, first.not_before = True, 0.0
            _wake(first)


def _who(call: Call) -> Who:
    return Who(call.principal, call.priority, call.weight)


def _wake(place: Place) -> None:
    if place.wake is not None:
        place.wake()


def _is_own(denied: NoEligibleKeysError) -> bool:
    return denied.binding is not None and denied.binding.where.startswith(OWN)
