"""Counters that all processes on the store add up: counted here, told to the others a few times a second."""

from collections.abc import Iterable, Sequence

from apikeyrouter.domain.interfaces.state_store import StateStore

__all__ = ["SharedCounts"]


class SharedCounts:
    """The counters of one kind, by name. A store that keeps no counts knows of this process alone."""

    def __init__(self, store: StateStore, kind: str) -> None:
        self._store, self._kind = store, kind
        self._new: dict[str, int] = {}
        self._own: dict[str, int] = {}

    def add(self, name: str, number: int = 1) -> None:
        """Count something."""
        self._new[name] = self._new.get(name, 0) + number
        self._own[name] = self._own.get(name, 0) + number

    def abandon(self) -> None:
        """After a fork: what was counted is the parent's to tell."""
        self._new.clear()
        self._own.clear()

    async def flush(self) -> None:
        """Add what was counted here to what the fleet counted; nothing is lost when the store cannot be reached."""
        counted, self._new = self._new, {}
        if counted:
            try:
                await self._store.add_counts(self._kind, counted)
            except BaseException:
                for name, number in counted.items():
                    self._new[name] = self._new.get(name, 0) + number
                raise

    async def totals(self, names: Sequence[str]) -> dict[str, int]:
        """What the fleet has counted until now; of the others' as far as they have told it. Unknown names: 0."""
        kept = await self._store.get_counts(self._kind, names)
        return {name: max(kept.get(name, 0) + self._new.get(name, 0), self._own.get(name, 0)) for name in names}

    async def forget(self, names: Iterable[str]) -> None:
        """Begin at nought again, for everybody."""
        await self.flush()
        wanted = list(names)
        kept = await self._store.get_counts(self._kind, wanted)
        await self._store.add_counts(self._kind, {name: -number for name, number in kept.items() if number})
        for name in wanted:
            self._own.pop(name, None)
