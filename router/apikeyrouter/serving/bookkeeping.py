"""Bookkeeping: what every attempt ends with. Settlements leave in batches, off the request's path, and none is lost.

Whatever becomes of a request (answered, failed, disconnected, cancelled), its reservation is handed in here, and stays
in the outbox until the ledger has answered.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from apikeyrouter.domain.interfaces.ledger import Ledger
from apikeyrouter.domain.models.accounting import (
    ReserveRequest,
    Result,
    Settlement,
    State,
    Transition,
)
from apikeyrouter.domain.models.system_error import LedgerError, LedgerUnavailableError
from apikeyrouter.infrastructure.observability.events import EventLog

BATCH_MAX = 64
FLUSH_SECONDS = 0.005
RETRY_SECONDS_MAX = 2.0
ACKNOWLEDGE_MAX = 128
_log = EventLog("apikeyrouter")


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """A reservation that was certainly not billed. `sent`: the provider may have counted request and tokens."""

    rid: bytes
    sent: bool
    failed_lanes: int = 0
    latency_us: int = 0


@dataclass(slots=True, kw_only=True)
class OpenHold:
    """A reservation that this process holds open, as it must be told again if the store forgets."""

    request: ReserveRequest
    index: int
    renew_at: float
    abort: Callable[[], object] | None = None
    """Ends the call when the lease was lost (law 6)."""


class Bookkeeper:
    """Holds this process's open reservations and its outbox. One event loop owns it."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.open: dict[bytes, OpenHold] = {}
        self._outbox: deque[Settlement | Release] = deque()
        self._seen: list[bytes] = []
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._task: asyncio.Task[None] | None = None
        self.settled = 0
        self.unmatched = 0

    def start(self) -> None:
        """Begin flushing."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run(), name="apikeyrouter.bookkeeper")

    def held(self, request: ReserveRequest, index: int) -> OpenHold:
        """Note an admission."""
        hold = OpenHold(request=request, index=index, renew_at=time.perf_counter() + request.lease_us / 3e6)
        self.open[request.rid] = hold
        return hold

    def hand_in(self, end: Settlement | Release) -> None:
        """Note how a reservation ends. Never waits, never raises; a second end of the same rid is ignored."""
        if self.open.pop(end.rid, None) is None:
            return
        self._outbox.append(end)
        self._idle.clear()
        if len(self._outbox) == 1 or len(self._outbox) >= BATCH_MAX:
            self._wake.set()

    @property
    def waiting(self) -> int:
        """Ends that the ledger has not confirmed yet."""
        return len(self._outbox)

    async def flush(self, *, seconds: float) -> bool:
        """Wait until the outbox is empty; whether it is, after at most `seconds`."""
        self._wake.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        return not self._outbox

    async def close(self) -> None:
        """Stop flushing. What waits stays in the outbox."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    async def _run(self) -> None:
        pause = FLUSH_SECONDS
        while True:
            await self._wake.wait()
            if len(self._outbox) < BATCH_MAX:
                await asyncio.sleep(pause)
            self._wake.clear()
            try:
                await self._flush_some()
                pause = FLUSH_SECONDS
            except LedgerUnavailableError:
                pause = min(pause * 2, RETRY_SECONDS_MAX)
            if self._outbox:
                self._wake.set()
            else:
                self._idle.set()

    async def _flush_some(self) -> None:
        batch = [self._outbox[at] for at in range(min(len(self._outbox), BATCH_MAX))]
        if not batch:
            return
        answers = await self._end_all(batch)
        failed: list[Settlement | Release] = []
        for end, answer in zip(batch, answers, strict=True):
            self._outbox.popleft()
            if isinstance(answer, LedgerUnavailableError):
                failed.append(end)
            elif isinstance(answer, BaseException):
                _log.error("settlement.refused", rid=end.rid.hex(), error=str(answer))
            else:
                self._note(end, answer)
        self._outbox.extendleft(reversed(failed))
        if failed:
            raise LedgerUnavailableError(f"{len(failed)} settlements wait for the ledger")
        await self._acknowledge()

    async def _end_all(self, batch: list[Settlement | Release]) -> list[Transition | BaseException]:
        """An answer or an error for each. Settlements go together; one that is refused does not hold up the others."""
        settlements = [end for end in batch if isinstance(end, Settlement)]
        releases = (self._release(end) for end in batch if isinstance(end, Release))
        returning = asyncio.gather(*releases, return_exceptions=True)
        booked = await self._settle_all(settlements)
        answers = {True: iter(booked), False: iter(await returning)}
        return [next(answers[isinstance(end, Settlement)]) for end in batch]

    async def _settle_all(self, settlements: list[Settlement]) -> list[Transition | BaseException]:
        try:
            return list(await self._ledger.settle_many(settlements))
        except LedgerUnavailableError as exc:
            return [exc] * len(settlements)
        except LedgerError:
            one_by_one = (self._ledger.settle(settlement) for settlement in settlements)
            return await asyncio.gather(*one_by_one, return_exceptions=True)

    async def _release(self, end: Release) -> Transition:
        answer = await self._ledger.release(
            end.rid, sent=end.sent, failed_lanes=end.failed_lanes, latency_us=end.latency_us
        )
        if answer.result is Result.CONFLICT and answer.state in (State.SUSPENDED, State.EXPIRED):
            # the lease ran out first; nothing was billed, so nothing may stay charged
            return await self._ledger.settle(Settlement(rid=end.rid, input_tokens=0, output_tokens=0, cost_nanousd=0))
        return answer

    def _note(self, end: Settlement | Release, answer: Transition) -> None:
        self.settled += 1
        if answer.result is Result.UNMATCHED:
            self.unmatched += 1
            _log.error("settlement.unmatched", rid=end.rid.hex())
        else:
            self._seen.append(end.rid)

    async def _acknowledge(self) -> None:
        if len(self._seen) >= ACKNOWLEDGE_MAX or (self._seen and not self._outbox):
            seen, self._seen = self._seen, []
            with contextlib.suppress(LedgerError):  # tombstones then go after a day
                await self._ledger.acknowledge(seen)

    # --- leases --------------------------------------------------------------------------------------------------

    def due(self, now: float) -> Iterable[tuple[bytes, OpenHold]]:
        """Open reservations whose lease should be renewed."""
        return [(rid, hold) for rid, hold in self.open.items() if hold.renew_at <= now]

    async def renew(self) -> None:
        """Renew what is due; abort the calls whose lease is lost."""
        now = time.perf_counter()
        by_lease: dict[int, list[bytes]] = {}
        for rid, hold in self.due(now):
            by_lease.setdefault(hold.request.lease_us, []).append(rid)
        for lease_us, rids in by_lease.items():
            lost = set(await self._ledger.renew(rids, lease_us=lease_us))
            for rid in rids:
                held = self.open.get(rid)
                if held is None:
                    continue
                held.renew_at = now + lease_us / 3e6
                if rid in lost:
                    _log.warning("lease.lost", rid=rid.hex())
                    if held.abort is not None:
                        held.abort()

    async def reassert(self) -> int:
        """Tell the ledger every open reservation again, after it forgot; how many."""
        holds = list(self.open.values())
        for hold in holds:
            await self._ledger.reassert(hold.request, index=hold.index)
        return len(holds)
