"""Which calls the open reservations of this process belong to. Asked from time to time; requests pay nothing for it."""

from collections.abc import Iterator
from heapq import merge

import msgspec

from apikeyrouter.domain.components.reservation_ids import made_at_ms
from apikeyrouter.serving.bookkeeping import OpenHold
from apikeyrouter.serving.endings import Attempt
from apikeyrouter.serving.spread_books import AnyBooks
from apikeyrouter.serving.streams import Stream

__all__ = ["OpenCall", "open_calls"]


class OpenCall(msgspec.Struct, kw_only=True, gc=False):
    """What a reservation is held for. `attempt`: 1 is the call's first. `rid` is hexadecimal."""

    rid: str
    request_id: str
    model: str
    client: str | None
    attempt: int
    stream: bool


def open_calls(books: AnyBooks, *, before_ms: int, most: int) -> Iterator[OpenCall]:
    """Calls whose reservations were made before then (Unix milliseconds), the oldest first, at most so many."""
    held = merge(*(cell.open.items() for cell in books.cells), key=lambda item: made_at_ms(item[0]))
    for rid, hold in held:
        if most <= 0 or made_at_ms(rid) >= before_ms:
            return
        attempt = _holder(hold)
        if attempt is not None:
            most -= 1
            call, facts = attempt.call, attempt.facts
            yield OpenCall(
                rid=rid.hex(), request_id=call.request_id, model=call.model, client=call.client,
                attempt=len(facts.attempts), stream=call.stream,
            )  # fmt: skip


def _holder(hold: OpenHold) -> Attempt | None:
    """Who ends the call when its lease is lost is who holds it: an attempt, or the stream that came of it."""
    whose = getattr(hold.abort, "__self__", None)
    whose = whose.attempt if isinstance(whose, Stream) else whose
    return whose if isinstance(whose, Attempt) else None
