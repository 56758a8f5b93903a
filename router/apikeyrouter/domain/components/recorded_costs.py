"""What requests really cost, as applications told it: the total that is booked for each, remembered for a day.

A total grows in steps, each booked once under an id of its own. A step is noted before it is booked and afterwards, so
that what a crash left in between is booked by whoever tells the next total. Two processes that tell different totals of
one request in the same moment book one of the steps, and may both note it as theirs.
"""

from collections.abc import Awaitable, Callable

from apikeyrouter.domain.components.declared import Declared
from apikeyrouter.domain.interfaces.state_store import StateStore
from apikeyrouter.domain.models.cost_estimate import dollars
from apikeyrouter.domain.models.system_error import InvalidRequestError

__all__ = ["Book", "RecordedCosts"]

KIND = "recorded-cost"
KEPT_SECONDS = 86_400
LOCAL_MAX = 10_000
"""Requests that are remembered where the store keeps no notes."""
STEPS_MAX = 8
"""What one call does at most: the step that was left by others, its own, and what came between."""
Book = Callable[[str, int], Awaitable[bool]]
"""Book nano-dollars under an idempotency key; whether this call did it."""


class RecordedCosts:
    """The totals that were told, on the store; in this process where the store keeps no notes."""

    def __init__(self, store: StateStore) -> None:
        self._store = store
        self._local: dict[str, dict[str, int]] = {}
        self._turns = Declared(store, KIND)

    async def raise_to(self, request_id: str, total: int, *, booked: int, book: Book) -> int:
        """Bring what is booked for a request to a total; the nano-dollars that this call booked.

        `booked`: what its own end has booked already. A repeat of the same total books nothing.

        Raises:
            InvalidRequestError: more than that is booked.
        """
        async with self._turns.turn():
            done = 0
            for _ in range(STEPS_MAX):
                note = await self._read(request_id) or {"booked": booked}
                known, aim = note["booked"], note.get("booking", total)
                if total < known:
                    raise InvalidRequestError(
                        f"is less than the {dollars(known)} dollars that are booked for {request_id};"
                        " what is booked is never lowered, raise the limits of its budgets instead",
                        field="actual_cost",
                    )
                if aim == known:
                    break
                await self._write(request_id, {"booked": known, "booking": aim})
                key = f"request\n{request_id}" if known == booked else f"request\n{request_id}\n{known}"
                done += (aim - known) if await book(key, aim - known) else 0
                await self._write(request_id, {"booked": aim})
            return done

    async def _read(self, request_id: str) -> dict[str, int] | None:
        if request_id in self._local:
            return self._local[request_id]
        return await self._store.get_note(KIND, request_id)

    async def _write(self, request_id: str, note: dict[str, int]) -> None:
        try:
            await self._store.save_note(KIND, request_id, note, seconds=KEPT_SECONDS)
        except NotImplementedError:
            if len(self._local) >= LOCAL_MAX:
                self._local.clear()
            self._local[request_id] = note
