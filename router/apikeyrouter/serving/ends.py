"""How reservations end, and what an end is with as long as the ledger has not confirmed it."""

import time
from collections.abc import Callable

import msgspec
from msgspec import structs

from apikeyrouter.domain.models.accounting import ReserveRequest, Settlement
from apikeyrouter.infrastructure.ledger.outbox_file import Entry

__all__ = ["Cancel", "End", "OpenHold", "Release", "Waiting", "entry_of", "waiting_of"]


class Release(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A reservation that was certainly not billed. `sent`: the provider may have counted request and tokens."""

    rid: bytes
    sent: bool
    failed_lanes: int = 0
    latency_us: int = 0


class Cancel(msgspec.Struct, frozen=True):
    """A reserve of which nobody knows whether it ran. Nothing came of it here."""

    rid: bytes


End = Settlement | Release | Cancel


class OpenHold(msgspec.Struct, kw_only=True, eq=False):
    """A reservation that this process holds open, as it must be told again if the store forgets."""

    request: ReserveRequest
    index: int
    renew_at: float
    abort: Callable[[str], None] | None = None
    """Ends the call, for the reason given: its lease was lost (law 6), or we shut down. It then hands its end in."""
    standby: bool = False
    """It was admitted while the store was away, from this process's share."""
    unheld: bool = False
    """The ledger has not heard of it yet."""
    ended: Callable[[Settlement | Release], None] | None = None
    """It is a part of what the ledger knows, and ends there."""


class Waiting(msgspec.Struct, frozen=True, eq=False):
    """An end in the outbox, and what it ends, in case the store forgets that in between. (None: nothing.)"""

    end: End
    hold: OpenHold | None
    again: bool = False
    """It was booked once, by a server that may have taken that along."""


def entry_of(waiting: Waiting) -> Entry:
    """An end as it is kept on disk."""
    end, hold = waiting.end, waiting.hold
    if hold is None:
        return Entry(kind="cancel", rid=end.rid)
    at = int(time.time() - time.perf_counter() + hold.renew_at)
    candidate = structs.replace(hold.request.candidates[hold.index], words=None)
    request = structs.replace(hold.request, candidates=(candidate,))
    if isinstance(end, Settlement):
        return Entry(kind="settle", rid=end.rid, settlement=end, request=request, unheld=hold.unheld, at=at)
    assert isinstance(end, Release)
    return Entry(
        kind="release", rid=end.rid, sent=end.sent, failed_lanes=end.failed_lanes, latency_us=end.latency_us,
        request=request, unheld=hold.unheld, at=at,
    )  # fmt: skip


def waiting_of(entry: Entry) -> Waiting:
    """An end that a dead process left on disk."""
    if entry.request is None:
        return Waiting(Cancel(entry.rid), None)
    end = entry.settlement or Release(
        rid=entry.rid, sent=entry.sent, failed_lanes=entry.failed_lanes, latency_us=entry.latency_us
    )
    at = time.perf_counter() - max(0.0, time.time() - entry.at)
    return Waiting(end, OpenHold(request=entry.request, index=0, renew_at=at, unheld=entry.unheld))
