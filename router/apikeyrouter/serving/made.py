"""Entities that were made while running: by name, here and as documents of the store, for every process on it."""

from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from apikeyrouter.domain.components.declared import Declared
from apikeyrouter.domain.interfaces.state_store import StateStore
from apikeyrouter.domain.models.edge import EdgeModel
from apikeyrouter.domain.models.system_error import InvalidRequestError, StateStoreError

__all__ = ["MadeEntities"]

M = TypeVar("M", bound=EdgeModel)


class MadeEntities(Generic[M]):
    """Those of one kind. One event loop owns it; its owner holds `turn()` around every call. `find` gives the model,
    when there is something to read."""

    def __init__(self, store: StateStore, kind: str, find: Callable[[], type[M]]) -> None:
        self._store, self._kind, self._find = store, kind, find
        self._declared = Declared(store, kind)
        self.named: Mapping[str, M] = {}

    @property
    def turn(self) -> Callable[[], Any]:
        """`async with made.turn():` around what reads or writes."""
        return self._declared.turn

    async def save(self, name: str, entity: M) -> None:
        """Add or change one; elsewhere it is known within a second."""
        await self._store.save_document(self._kind, name, entity.model_dump(mode="json"))
        await self._declared.mark()
        self.named = {**self.named, name: entity}

    async def drop(self, name: str) -> bool:
        """Forget one; whether there was one."""
        found = await self._store.delete_document(self._kind, name)
        known = name in self.named
        self.named = {other: one for other, one in self.named.items() if other != name}
        return found or known

    async def refresh(self) -> bool:
        """Take over what other processes have made, changed and forgotten; whether there was anything."""
        told = await self._store.list_documents(self._kind)
        if not told and (not self.named or await self._declared.was_emptied()):
            return False
        found = {name: self._read(document) for name, document in told.items()}
        if found == self.named:
            return False
        self.named = found
        return True

    async def restore(self) -> None:
        """Put every one back into a store that forgot them."""
        if self.named and await self._declared.was_emptied():
            for name, entity in self.named.items():
                await self._store.save_document(self._kind, name, entity.model_dump(mode="json"))
            await self._declared.mark()

    def _read(self, document: Mapping[str, Any]) -> M:
        """What another version added is left out, so that versions can be mixed."""
        model = self._find()
        try:
            return model.parse({name: value for name, value in document.items() if name in model.model_fields})
        except InvalidRequestError as exc:
            raise StateStoreError(f"a shared {self._kind} cannot be read: {exc}") from exc
