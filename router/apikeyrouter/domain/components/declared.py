"""What is declared in code and kept in the store: one writer or reader at a time, and no belief in an emptied store."""

import asyncio
import contextlib

from apikeyrouter.domain.interfaces.state_store import StateStore

__all__ = ["Declared"]


class Declared:
    """The rim of one kind of documents.

    Its owner may be closed in one event loop and opened in another, so that the lock is that of the running one. The
    marker is a document that stays when the last one of the kind is deleted: where it is missing, the store was
    emptied, and what is known here was not deleted by anybody.
    """

    def __init__(self, store: StateStore, kind: str) -> None:
        self._store, self._marker = store, (f"{kind}_marker", "present")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = asyncio.Lock()
        self._marked = False

    def turn(self) -> asyncio.Lock:
        """`async with declared.turn():` around what reads or writes."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop, self._lock = loop, asyncio.Lock()
        return self._lock

    async def mark(self) -> None:
        """Something was saved."""
        if not self._marked:
            with contextlib.suppress(NotImplementedError):  # a user's own store may keep no documents
                await self._store.save_document(*self._marker, {})
                self._marked = True

    async def was_emptied(self) -> bool:
        """Whether the store lost the marker: to be asked where nothing is found of what is known here."""
        lost = await self._store.get_document(*self._marker) is None
        self._marked = not lost
        return lost
