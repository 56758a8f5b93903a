"""Names that stand for models: aliases and equivalents, of the file and made in code, with what each model can do."""

from collections.abc import Mapping

import msgspec

from apikeyrouter.domain.components.catalogue import Catalogue
from apikeyrouter.domain.interfaces.state_store import StateStore
from apikeyrouter.domain.models.system_error import StateStoreError
from apikeyrouter.infrastructure.config.compiled import Target
from apikeyrouter.infrastructure.observability.events import EventLog

KIND = "model_name"
_log = EventLog("apikeyrouter")


class DeclaredModels:
    """Every name that stands for other models. One event loop owns it."""

    def __init__(self, catalogue: Catalogue, store: StateStore) -> None:
        self._catalogue, self._store = catalogue, store
        self._file: Mapping[str, tuple[Target, ...]] = {}
        self._code: dict[str, tuple[Target, ...]] = {}
        self._writing = self._writes = 0

    def take_file(self, names: Mapping[str, tuple[Target, ...]]) -> None:
        """The names of a file. One made in code goes before one of the file."""
        self._file = names
        self._index()

    async def declare(self, name: str, targets: tuple[Target, ...]) -> None:
        """Add or change a name; without targets, forget it. In force here at once, elsewhere within a second."""
        self._writing += 1
        if targets:
            self._code[name] = targets
        else:
            self._code.pop(name, None)
        self._index()
        try:
            if targets:
                await self._store.save_document(KIND, name, {"targets": msgspec.to_builtins(targets)})
            else:
                await self._store.delete_document(KIND, name)
        except NotImplementedError as exc:
            _log.warning("model_name.not_shared", name=name, error=str(exc))
        finally:
            self._writing -= 1
            self._writes += 1

    async def refresh(self) -> bool:
        """Take over what other processes have made, changed and forgotten; whether there was anything."""
        seen = self._writes
        told = await self._store.list_documents(KIND)
        if self._writing or seen != self._writes or not self._shares():
            return False  # out of date: the notice of our own write brings the next
        try:
            found = {
                name: msgspec.convert(document.get("targets"), tuple[Target, ...], strict=False)
                for name, document in told.items()
            }
        except msgspec.ValidationError as exc:
            raise StateStoreError(f"a shared model name cannot be read: {exc}") from exc
        if found == self._code:
            return False
        self._code = found
        self._index()
        return True

    async def restore(self) -> None:
        """Put what was made in code back into a store that forgot it."""
        if not self._code or not self._shares():
            return
        told = await self._store.list_documents(KIND)
        for name, targets in self._code.items():
            if name not in told:
                await self._store.save_document(KIND, name, {"targets": msgspec.to_builtins(targets)})

    def _shares(self) -> bool:
        """Whether the store keeps documents at all."""
        return type(self._store).save_document is not StateStore.save_document

    def _index(self) -> None:
        named = {**self._file, **self._code}
        self._catalogue.set_aliases(
            {name: tuple((target.provider_id, target.model) for target in targets) for name, targets in named.items()},
            {
                (target.provider_id, target.model): target.capabilities
                for targets in named.values()
                for target in targets
                if target.capabilities is not None
            },
        )
