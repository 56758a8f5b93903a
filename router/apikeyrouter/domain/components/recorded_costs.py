"""What requests really cost, as applications told it: the total that is booked for each, remembered for a day.

A total grows in steps, each booked once under an id of its own: the request, and what was booked before it. The note
says where a step goes to before it is booked, and that it is over afterwards. It is only ever replaced as it was read:
whoever is first decides how large a step is, and everybody else, who died or not, books that one before their own.
"""

from collections.abc import Awaitable, Callable

from apikeyrouter.domain.components.declared import Declared
from apikeyrouter.domain.interfaces.state_store import StateStore
from apikeyrouter.domain.models.cost_estimate import dollars
from apikeyrouter.domain.models.system_error import InvalidRequestError, StateStoreError

__all__ = ["Book", "RecordedCosts"]

KIND = "recorded-cost"
KEPT_SECONDS = 86_400
LOCAL_MAX = 10_000
"""Requests that are remembered where the store keeps no notes."""
ROUNDS_MAX = 64
"""Looks at a note that others keep replacing. A step takes two, three where others took part in it."""
Book = Callable[[str, int], Awaitable[None]]
"""Book nano-dollars under an idempotency key."""


class RecordedCosts:
    """The totals that were told, on the store; in this process where the store keeps no notes.

    Exact for any number of processes where the store replaces notes in one step, as ours do.
    """

    def __init__(self, store: StateStore) -> None:
        self._store = store
        self._local: dict[str, dict[str, int]] = {}
        self._turns = Declared(store, KIND)

    async def raise_to(self, request_id: str, total: int, *, booked: int | None, book: Book) -> int:
        """Bring what is booked for a request to a total; the nano-dollars that this call's total added.

        `booked`: what its own end has booked already; None: nobody remembers. A repeat of the same total adds nothing,
        nor does a step of another call that is booked besides.

        Raises:
            InvalidRequestError: more than that is booked, or what is booked is not known.
            StateStoreError: others told totals of the same request ROUNDS_MAX times meanwhile.
        """
        async with self._turns.turn():
            if booked is None:
                if await self._read(request_id) == {"booked": total}:
                    return 0
                raise _forgotten(request_id)
            added = 0
            for _ in range(ROUNDS_MAX):
                read = await self._read(request_id)
                known = booked if read is None else read["booked"]
                if read is not None and "booking" in read:
                    await book(f"request\n{request_id}\n{known}", read["booking"] - known)
                    await self._replace(request_id, read, {"booked": read["booking"]})
                elif added or total == known:
                    return added
                elif total < known:
                    raise _lower(request_id, known)
                elif await self._replace(request_id, read, {"booked": known, "booking": total}):
                    added = total - known
            raise StateStoreError(f"totals of {request_id} are being told by too many at once; try again")

    async def _read(self, request_id: str) -> dict[str, int] | None:
        if request_id in self._local:
            return self._local[request_id]
        return await self._store.get_note(KIND, request_id)

    async def _replace(self, request_id: str, read: dict[str, int] | None, note: dict[str, int]) -> bool:
        """Whether nobody was faster."""
        if request_id not in self._local:
            try:
                return await self._store.replace_note(KIND, request_id, read, note, seconds=KEPT_SECONDS)
            except NotImplementedError:
                if len(self._local) >= LOCAL_MAX:
                    self._local.clear()
        self._local[request_id] = note
        return True


def _lower(request_id: str, known: int) -> InvalidRequestError:
    return InvalidRequestError(
        f"is less than the {dollars(known)} dollars that are booked for {request_id};"
        " what is booked is never lowered, raise the limits of its budgets instead",
        field="actual_cost",
    )


def _forgotten(request_id: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"the store remembers no request {request_id}, or none any longer, or not yet: what it booked is not known."
        " Book what it cost more by update_spending; of one that no router served, say whose it was (`team=`, …)",
        field="request_id",
    )
