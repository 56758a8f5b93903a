"""Bookkeeping: what every attempt ends with. Settlements leave in batches, off the request's path, and none is lost.

Whatever becomes of a request (answered, failed, disconnected, cancelled), its reservation is handed in here, and stays
in the outbox until the ledger has answered.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from apikeyrouter.domain.interfaces.ledger import Ledger
from apikeyrouter.domain.models.accounting import ReserveRequest, Result, Settlement, State, Transition
from apikeyrouter.domain.models.system_error import LedgerConfigError, LedgerError, LedgerUnavailableError
from apikeyrouter.infrastructure.cancellation import end_task, stop_if_cancelled
from apikeyrouter.infrastructure.observability.events import EventLog
from apikeyrouter.serving.ends import Cancel, End, OpenHold, Release, Waiting, entry_of, waiting_of
from apikeyrouter.serving.few_places import FewPlaces
from apikeyrouter.serving.keeping import SPILL_MAX, Keeper
from apikeyrouter.serving.replaying import Replay

__all__ = ["Bookkeeper", "Cancel", "End", "OpenHold", "Release"]

BATCH_MAX = 64
FLUSH_SECONDS = 0.005
RETRY_SECONDS_MAX = 2.0
ACKNOWLEDGE_MAX = 128
ACKNOWLEDGE_SECONDS = 1.0
BROKEN_TRIES_MAX = 8
"""So often an end is sent whose delivery fails with what is no ledger's error, in some seconds."""
KEEP_SECONDS = 0.05
"""While ends cannot be delivered, what comes is on disk after about so long."""
TOMBSTONE_SECONDS = 23 * 3600
"""So long at least the ledger remembers how a reservation ended, if nobody acknowledged that."""
_OVERTAKEN = (State.SUSPENDED, State.EXPIRED, State.SETTLED)
_log = EventLog("apikeyrouter")


class Bookkeeper:
    """Holds this process's open reservations and its outbox. One event loop owns it."""

    def __init__(self, ledger: Ledger, keeper: Keeper | None = None) -> None:
        self._ledger = ledger
        self.keeper = keeper or Keeper()
        self.open: dict[bytes, OpenHold] = {}
        self._outbox: deque[Waiting] = deque()
        self._booked: Replay[Waiting] = Replay()
        self._remembered = 0
        """How often the ledger had forgotten when everything was told again."""
        self._acknowledge_at = self._failing_since = 0.0
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._rested: asyncio.Future[None] | None = None
        """What more ends are waited for by, before a batch is sent."""
        self.few = FewPlaces()
        """Lanes with so few places that each is told at once when it is free."""
        self._urgent = False
        """Whether what is there is sent without waiting for more."""
        self._handed = 0
        """Ends that were ever put into the outbox."""
        self._waiters: deque[tuple[int, asyncio.Future[None]]] = deque()
        """Who waits until the ledger knows of so many."""
        self._task: asyncio.Task[None] | None = None
        self.settled = self.unmatched = 0
        self.on_booked: Callable[[], None] | None = None
        """Called when ends were booked: what they held is free."""
        self.on_standby_end: Callable[[End], None] | None = None
        """Called with ends of what was admitted from this process's share."""
        self._unheld = 0
        self.cells = (self,)
        """Who keeps the books of each cell."""
        self._broken: dict[bytes, int] = {}
        """How often the delivery of these ends failed with what nobody expected: there are hardly ever any."""

    def start(self) -> None:
        """Begin flushing."""
        if self._task is None:
            self._wake, self._idle = asyncio.Event(), asyncio.Event()
            self._waiters.clear()
            (self._wake if self._outbox else self._idle).set()
            self._task = asyncio.get_running_loop().create_task(self._run(), name="apikeyrouter.bookkeeper")

    def begin_anew(self) -> None:
        """The loop that it ran on has ended, and nobody can end what it still held open: leases will."""
        self._task = None
        if self.open:
            _log.warning("holds.orphaned", count=len(self.open))
        self.open.clear()

    def abandon(self) -> object:
        """What is noted here is a parent process's: begin empty. What was noted, to be kept from its end."""
        noted = (self._task, dict(self.open), deque(self._outbox))
        self._task = None
        self.open.clear()
        self._outbox.clear()
        self.few.begin_anew()
        self._booked.take()
        self.keeper.close()
        self.settled = self.unmatched = 0
        return noted

    def held(self, request: ReserveRequest, index: int) -> OpenHold:
        """Note an admission."""
        hold = OpenHold(request=request, index=index, renew_at=time.perf_counter() + request.lease_us / 3e6)
        self.open[request.rid] = hold
        return hold

    def held_unheard(self, request: ReserveRequest, index: int) -> OpenHold:
        """Note what was admitted from this process's share: the ledger is told when it is there."""
        hold = self.held(request, index)
        hold.standby = hold.unheld = True
        self._unheld += 1
        return hold

    async def tell_unheard(self) -> None:
        """Tell the ledger of what was admitted while it was away, and is open still. Errors: LedgerError."""
        if self._unheld:
            for hold in [hold for hold in self.open.values() if hold.unheld]:
                await self._tell(hold)

    async def _tell(self, hold: OpenHold) -> None:
        await self._ledger.reassert(hold.request, index=hold.index)
        hold.unheld = False
        self._unheld = max(0, self._unheld - 1)

    def hear(
        self, *, booked: Callable[[], None] | None = None, standby: Callable[[End], None] | None = None,
        few: FewPlaces | None = None,
    ) -> None:  # fmt: skip
        """Who is told of ends that were booked, and of ends in this process's share; whose ends wait for no others."""
        if few is not None:
            few.tellers.append(self)
            self.few = few
        self.on_booked = booked or self.on_booked
        self.on_standby_end = standby or self.on_standby_end

    def forget(self, rid: bytes) -> None:
        """Leave it to its lease."""
        self.open.pop(rid, None)

    def hand_in(self, end: Settlement | Release) -> None:
        """Note how a reservation ends. Never waits, never raises; a second end of the same rid is ignored."""
        hold = self.open.pop(end.rid, None)
        if hold is None:
            return
        if hold.ended is not None:
            hold.ended(end)
            return
        if hold.standby and self.on_standby_end is not None:
            self.on_standby_end(end)
        self._put(Waiting(end, hold))

    def cancel(self, rid: bytes) -> None:
        """Have a reserve cancelled of which nobody knows whether it ran. Never waits."""
        self._put(Waiting(Cancel(rid), None))

    def _put(self, waiting: Waiting) -> None:
        self._outbox.append(waiting)
        self._handed += 1
        self._idle.clear()
        if len(self._outbox) == 1 or len(self._outbox) >= BATCH_MAX:
            self._wake.set()
        hold = waiting.hold
        if hold is not None and self.few.gives_back(waiting.end.rid, hold.request.candidates[hold.index].lanes):
            self._hurry()

    def _hurry(self) -> None:
        """Send what is there, and wait for no more."""
        self._urgent = True
        self._wake.set()
        if self._rested is not None and not self._rested.done():
            self._rested.set_result(None)

    @property
    def waiting_seconds(self) -> float:
        """How long ends have waited that could not be delivered; 0: there are none."""
        return time.perf_counter() - self._failing_since if self._failing_since and self._outbox else 0.0

    @property
    def waiting(self) -> int:
        """Ends that the ledger has not confirmed yet."""
        return len(self._outbox)

    async def flush(self, *, seconds: float) -> bool:
        """Wait until the outbox is empty; whether it is, after at most `seconds`."""
        self._hurry()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        return not self._outbox

    async def told(self, *, seconds: float) -> bool:
        """Wait until the ledger knows of what has ended by now, or takes none; whether that came within `seconds`."""
        if not self._outbox:
            return True
        known = asyncio.get_running_loop().create_future()
        self._waiters.append((self._handed, known))
        self._hurry()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await known
        return known.done() and not known.cancelled()

    def _let_go(self, known: int) -> None:
        """Who waits for so many ends need wait no longer: they are told, or the store does not take them now."""
        while self._waiters and self._waiters[0][0] <= known:
            waiter = self._waiters.popleft()[1]
            if not waiter.done():
                waiter.set_result(None)

    async def close(self) -> None:
        """Stop flushing. What waits is kept on disk where there is a directory for it; else leases end it."""
        await end_task(self._task)
        self._task = None
        if self._outbox:
            await self._keep(len(self._outbox))
        await self._acknowledge(self._booked.take())
        self.keeper.close()

    async def take_over(self) -> int:
        """Deliver what dead processes had left on disk; how many ends that is."""
        entries = await self.keeper.take_over()
        for entry in entries:
            self._put(waiting_of(entry))
            self._unheld += entry.unheld
        if entries:
            self._wake.set()
        return len(entries)

    async def _run(self) -> None:
        pause = FLUSH_SECONDS
        while True:
            stop_if_cancelled()
            await self._wake.wait()
            if (len(self._outbox) < BATCH_MAX and not self._urgent) or pause > FLUSH_SECONDS:
                await self._rest(pause)
            self._urgent = False
            self._wake.clear()
            try:
                await self._flush_some()
                pause, self._failing_since = FLUSH_SECONDS, 0.0
            except Exception as exc:
                if not isinstance(exc, LedgerUnavailableError):
                    _log.error("flush.failed", error=repr(exc))
                pause = min(pause * 2, RETRY_SECONDS_MAX)
                self._failing_since = self._failing_since or time.perf_counter()
                self._let_go(self._handed)
            if self._outbox:
                self._wake.set()
            else:
                self._idle.set()

    async def _rest(self, pause: float) -> None:
        """Wait before the next try. After one that failed, what waits is put on disk."""
        if pause == FLUSH_SECONDS:
            await self._for_more()
            return
        until = time.perf_counter() + pause
        while (left := until - time.perf_counter()) > 0:
            if self.keeper.keeps:
                await self._keep(SPILL_MAX)
            await asyncio.sleep(min(left, KEEP_SECONDS))

    async def _for_more(self) -> None:
        """Let more ends come, that go with those that are there, unless one of them is to be told at once."""
        loop = asyncio.get_running_loop()
        rested = self._rested = loop.create_future()
        timer = loop.call_later(FLUSH_SECONDS, self._hurry)
        try:
            await rested
        finally:
            timer.cancel()
            self._rested = None

    async def _keep(self, most: int) -> None:
        """Put on disk what is not there yet."""
        fresh = (waiting for waiting in self._outbox if not self.keeper.has(waiting.end.rid))
        await self.keeper.keep([entry_of(waiting) for waiting in islice(fresh, most)])

    async def _flush_some(self) -> None:
        batch = [self._outbox[at] for at in range(min(len(self._outbox), BATCH_MAX))]
        if not batch:
            return
        known = self._handed - len(self._outbox) + len(batch)
        if self._unheld:
            await self._tell_ended(batch)
        answers = await self._end_all([waiting.end for waiting in batch])
        failed: list[Waiting] = []
        files, done = self.keeper.files, 0
        try:
            for waiting, answer in zip(batch, answers, strict=True):
                if isinstance(answer, BaseException) or answer.result is Result.UNMATCHED:
                    delivered = await self._is_delivered(waiting, answer)
                else:
                    self._note(waiting, answer)
                    delivered = True
                if not delivered:
                    failed.append(waiting)
                elif files:
                    self.keeper.delivered(waiting.end.rid)
                done += 1
        finally:  # whatever happens, what was not delivered stays
            for _ in range(done):
                self.few.told(self._outbox.popleft().end.rid)
            self._outbox.extendleft(reversed(failed))
        if files:
            await self.keeper.clear()
        if self.on_booked is not None:
            self.on_booked()
        if failed:
            raise LedgerUnavailableError(f"{len(failed)} settlements wait for the ledger")
        self._broken.clear()
        self._let_go(known)
        await self.acknowledge()

    async def _is_delivered(self, waiting: Waiting, answer: Transition | BaseException) -> bool:
        """What came of an end that was not simply booked; whether it need not be sent again."""
        if not isinstance(answer, BaseException):
            answer = await self._end_anew(waiting, answer)
        if not isinstance(answer, BaseException):
            self._note(waiting, answer)
        elif isinstance(answer, LedgerError) and not isinstance(answer, LedgerConfigError):
            if isinstance(answer, LedgerUnavailableError):
                return False
            _log.error("settlement.refused", rid=waiting.end.rid.hex(), error=str(answer))
        else:
            return self._is_given_up(waiting.end.rid, answer)
        return True

    def _is_given_up(self, rid: bytes, error: BaseException) -> bool:
        """What broke in a way that nobody expected may not break again, and a store that forgot its budgets is told of
        them soon; but it cannot be tried for ever."""
        tries = self._broken[rid] = self._broken.get(rid, 0) + 1
        if tries < BROKEN_TRIES_MAX:
            _log.error("settlement.broke", rid=rid.hex(), error=repr(error))
            return False
        del self._broken[rid]
        _log.error("settlement.refused", rid=rid.hex(), error=repr(error))
        return True

    async def _tell_ended(self, batch: list[Waiting]) -> None:
        """Before their ends the ledger hears of reservations that it does not know. Errors: LedgerUnavailableError."""
        for waiting in batch:
            hold = waiting.hold
            if hold is not None and hold.unheld and not self._is_too_old(hold):
                try:
                    await self._tell(hold)
                except LedgerUnavailableError:
                    raise
                except LedgerError as exc:
                    _log.error("reassert.refused", rid=waiting.end.rid.hex(), error=str(exc))

    def _is_too_old(self, hold: OpenHold) -> bool:
        """Whether the ledger may have booked it and forgotten that, as it forgets tombstones after a day."""
        return time.perf_counter() - hold.renew_at > TOMBSTONE_SECONDS and not self._ledger.forgotten

    async def _end_all(self, batch: list[End]) -> list[Transition | BaseException]:
        """An answer or an error for each. Settlements go together; one that is refused does not hold up the others."""
        settlements = [end for end in batch if isinstance(end, Settlement)]
        releases = [self._release(end) for end in batch if not isinstance(end, Settlement)]
        together, *others = await asyncio.gather(
            self._ledger.settle_many(settlements), *releases, return_exceptions=True
        )
        if isinstance(together, Exception) and not isinstance(together, LedgerUnavailableError):
            one_by_one = (self._ledger.settle(settlement) for settlement in settlements)
            together = await asyncio.gather(*one_by_one, return_exceptions=True)
        booked: Iterator[Any] = iter(together if isinstance(together, list) else [together] * len(settlements))
        returned: Iterator[Any] = iter(others)
        return [next(booked) if isinstance(end, Settlement) else next(returned) for end in batch]

    async def _end_anew(self, waiting: Waiting, answer: Transition) -> Transition | BaseException:
        """The store does not know the reservation: book it again, then end it.

        Safe, because an end is never sent again once its answer was seen, and what was booked lately has left a
        tombstone: the cell cannot have booked this one. Of what is older nobody knows: it stays listed as unmatched.
        """
        end, hold = waiting.end, waiting.hold
        if hold is None:
            return answer
        if self._is_too_old(hold):
            cost = end.cost_nanousd if isinstance(end, Settlement) else 0
            _log.error("settlement.too_late", rid=end.rid.hex(), cost_nanousd=cost, scopes=hold.request.scopes)
            return answer
        if not hold.unheld:
            _log.warning("settlement.unmatched", rid=end.rid.hex())
            self.unmatched += 1
        try:
            await self._ledger.reassert(hold.request, index=hold.index)
            return (await self._end_all([end]))[0]
        except Exception as exc:
            return exc

    async def _release(self, end: Release | Cancel) -> Transition:
        if isinstance(end, Cancel):
            answer = await self._ledger.cancel(end.rid)
        else:
            answer = await self._ledger.release(
                end.rid, sent=end.sent, failed_lanes=end.failed_lanes, latency_us=end.latency_us
            )
        if answer.result is Result.CONFLICT and answer.state in _OVERTAKEN:
            # the lease ran out first (settled: an earlier try found that); nothing was billed, nothing may stay charged
            return await self._ledger.settle(Settlement(rid=end.rid, input_tokens=0, output_tokens=0, cost_nanousd=0))
        return answer

    def _note(self, waiting: Waiting, answer: Transition) -> None:
        end = waiting.end
        if isinstance(end, Cancel):
            return  # its tombstone stays: the reserve may still be on its way
        self._booked.keep(waiting)
        if waiting.again:
            return
        self.settled += 1
        if answer.result is Result.CONFLICT:
            state = answer.state.name.lower() if answer.state is not None else "unknown"
            _log.error("settlement.refused", rid=end.rid.hex(), error=f"the reservation is {state}")

    async def acknowledge(self) -> None:
        """Let tombstones of what was booked REPLAY_SECONDS ago go, once a second; under load, a page at a time."""
        due = self._booked.beyond >= ACKNOWLEDGE_MAX or time.perf_counter() >= self._acknowledge_at
        if due and self._ledger.forgotten == self._remembered:
            self._acknowledge_at = time.perf_counter() + ACKNOWLEDGE_SECONDS
            await self._acknowledge(self._booked.leaving())

    async def _acknowledge(self, seen: Sequence[Waiting]) -> None:
        """Those that are never acknowledged go after a day. While an end is on disk it may be sent once more, so its
        tombstone has to stay.
        """
        rids = [waiting.end.rid for waiting in seen if not self.keeper.has(waiting.end.rid)]
        if rids:
            with contextlib.suppress(LedgerError):
                await self._ledger.acknowledge(rids)

    def replay(self) -> int:
        """Send again what was booked lately: the ledger has forgotten, and may not know it. How many ends that is."""
        self._remembered = self._ledger.forgotten
        taken = self._booked.take()
        for waiting in taken:
            self._put(Waiting(waiting.end, waiting.hold, again=True))
        if taken:
            self._wake.set()
        return len(taken)

    # --- leases --------------------------------------------------------------------------------------------------

    def due(self, now: float) -> Iterable[tuple[bytes, OpenHold]]:
        """Open reservations whose lease should be renewed."""
        return [
            (rid, hold)
            for rid, hold in self.open.items()
            if hold.renew_at <= now and not hold.unheld and hold.ended is None
        ]

    async def renew(self) -> list[bytes]:
        """Renew what is due, all of it in a call per lease length; what the ledger no longer knows as open."""
        now = time.perf_counter()
        by_lease: dict[int, list[bytes]] = {}
        for rid, hold in self.due(now):
            by_lease.setdefault(hold.request.lease_us, []).append(rid)
        lost: list[bytes] = []
        for lease_us, rids in by_lease.items():
            gone = set(await self._ledger.renew(rids, lease_us=lease_us))
            for rid in rids:
                held = self.open.get(rid)
                if held is None:
                    continue
                if rid in gone:
                    lost.append(rid)
                else:
                    held.renew_at = now + lease_us / 3e6
        return lost

    def give_up(self, rids: Iterable[bytes], why: str) -> None:
        """End these calls; each hands in what it used until now."""
        for rid in list(rids):
            known = self.open.get(rid)
            if known is not None and known.abort is not None:
                known.abort(why)

    async def reassert(self) -> int:
        """Tell the ledger every reservation again that has not ended there, after it forgot; how many.

        Leases may be shorter there than they were: all that are open are due for renewal.
        """
        holds = [hold for hold in self.open.values() if hold.ended is None]
        holds += [waiting.hold for waiting in self._outbox if waiting.hold is not None]
        for at in range(0, len(holds), BATCH_MAX):
            page = holds[at : at + BATCH_MAX]
            told = (self._ledger.reassert(hold.request, index=hold.index) for hold in page)
            for hold, answer in zip(page, await asyncio.gather(*told, return_exceptions=True), strict=True):
                if isinstance(answer, LedgerUnavailableError):
                    raise answer
                if isinstance(answer, BaseException):
                    _log.error("reassert.refused", rid=hold.request.rid.hex(), error=str(answer))
        for hold in self.open.values():
            hold.renew_at = time.perf_counter()
        return len(holds)
