"""What requests cost in all processes on the store: counted here, added up there."""

from apikeyrouter.domain.interfaces.state_store import StateStore

__all__ = ["Spending"]

KIND = "spending"
NANOUSD, UNPRICED = "nanousd", "unpriced_requests"


class Spending:
    """Nano-dollars, and requests whose price is unknown, since the store was made.

    A store that keeps no counts knows of this process alone.
    """

    def __init__(self, store: StateStore) -> None:
        self._store = store
        self.begin_anew()

    def begin_anew(self) -> None:
        """Forget what was counted here: another process tells it."""
        self.nanousd = self.unpriced_requests = 0
        self._told_nanousd = self._told_unpriced = 0

    async def flush(self) -> None:
        """Tell the store what is new. What it did not take is told the next time."""
        nanousd, unpriced = self.nanousd - self._told_nanousd, self.unpriced_requests - self._told_unpriced
        if not nanousd and not unpriced:
            return
        self._told_nanousd += nanousd
        self._told_unpriced += unpriced
        try:
            await self._store.add_counts(KIND, {NANOUSD: nanousd, UNPRICED: unpriced})
        except BaseException:
            self._told_nanousd -= nanousd
            self._told_unpriced -= unpriced
            raise

    async def total(self) -> tuple[int, int]:
        """Nano-dollars and requests without a price, of the whole fleet."""
        await self.flush()
        kept = await self._store.get_counts(KIND, [NANOUSD, UNPRICED])
        return (
            max(self.nanousd, kept.get(NANOUSD, 0) + self.nanousd - self._told_nanousd),
            max(self.unpriced_requests, kept.get(UNPRICED, 0) + self.unpriced_requests - self._told_unpriced),
        )
