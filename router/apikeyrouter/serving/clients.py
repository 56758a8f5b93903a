"""Clients in force: those of the file, and those that were made while running; in the catalogue, the ledger, the store.

A client's own limits are put into the ledger before anybody is held in them, then the client is kept as a document, so
that every process on the store knows it within a second.
"""

from collections.abc import Callable, Mapping

from apikeyrouter.domain.components.catalogue import Catalogue
from apikeyrouter.domain.components.client_rules import CLIENT, client_lane, client_policy
from apikeyrouter.domain.components.declared import Declared
from apikeyrouter.domain.components.entries import ClientTerms
from apikeyrouter.domain.interfaces.state_store import StateStore
from apikeyrouter.domain.models.accounting import LaneConfig
from apikeyrouter.domain.models.client import Client
from apikeyrouter.domain.models.policy import Policy
from apikeyrouter.domain.models.system_error import InvalidRequestError, StateStoreError
from apikeyrouter.infrastructure.ledger.ledger import ScriptLedger

KIND = "client"


class DeclaredClients:
    """Every client that was made while running, and the lanes of the file's. One event loop owns it."""

    def __init__(self, catalogue: Catalogue, ledger: ScriptLedger, store: StateStore) -> None:
        self._catalogue, self._ledger, self._store = catalogue, ledger, store
        self._file: Mapping[str, ClientTerms] = {}
        self._made: dict[str, Client] = {}
        self._declared = Declared(store, KIND)
        self.on_changed: list[Callable[[], None]] = []
        """Called after a change, of this process or another."""

    @property
    def made(self) -> Mapping[str, Client]:
        """Those that were made while running, by name."""
        return self._made

    def take_file(self, terms: Mapping[str, ClientTerms]) -> None:
        """What a file says of its clients."""
        self._file = terms
        self._index()

    def lane(self, lane_id: str) -> LaneConfig | None:
        """The lane of one that was made while running; None where it is nobody's."""
        client = self._made.get(lane_id.removeprefix(CLIENT)) if lane_id.startswith(CLIENT) else None
        return None if client is None else _lane(client)

    def policies(self) -> list[Policy]:
        """Those that keep clients to their providers."""
        found = sorted(self._made.items())
        return [client_policy(name, client.providers) for name, client in found if client.providers is not None]

    async def declare(self, client: Client) -> None:
        """Add or change a client; in force here at once, elsewhere within a second."""
        async with self._declared.turn():
            await self._ledger.put(lanes=[_lane(client)])
            await self._store.save_document(KIND, client.name, client.model_dump(mode="json"))
            await self._declared.mark()
            self._made = {**self._made, client.name: client}
            self._index()

    async def withdraw(self, name: str) -> bool:
        """Forget a client; whether there was one. Requests under way end as they do."""
        async with self._declared.turn():
            found = await self._store.delete_document(KIND, name)
            known = name in self._made
            self._made = {other: client for other, client in self._made.items() if other != name}
            self._index()
            if (found or known) and name not in self._file:
                await self._ledger.put(lanes=[LaneConfig(id=f"{CLIENT}{name}")])
            return found or known

    async def refresh(self) -> bool:
        """Take over what other processes have made, changed and forgotten; whether there was anything."""
        async with self._declared.turn():
            told = await self._store.list_documents(KIND)
            if not told and (not self._made or await self._declared.was_emptied()):
                return False
            try:
                found = {name: Client.parse(_known_fields(document)) for name, document in told.items()}
            except InvalidRequestError as exc:
                raise StateStoreError(f"a shared client cannot be read: {exc}") from exc
            if found == self._made:
                return False
            self._made = found
            self._index()
            return True

    async def restore(self) -> None:
        """Put every client back into a ledger and a store that forgot them."""
        async with self._declared.turn():
            await self._ledger.put(lanes=[_lane(client) for client in self._made.values()])
            if self._made and await self._declared.was_emptied():
                for name, client in self._made.items():
                    await self._store.save_document(KIND, name, client.model_dump(mode="json"))
                await self._declared.mark()

    def _index(self) -> None:
        self._catalogue.clients = {**{name: _terms(client) for name, client in self._made.items()}, **self._file}
        for told in self.on_changed:
            told()


def _terms(client: Client) -> ClientTerms:
    lane = _lane(client)
    return ClientTerms((lane.id,) if lane.limits else (), client.share)


def _lane(client: Client) -> LaneConfig:
    return client_lane(client.name, rpm=client.rpm, tpm=client.tpm, concurrency=client.concurrency)


def _known_fields(document: Mapping[str, object]) -> dict[str, object]:
    """What another version added is left out, so that versions can be mixed."""
    return {name: value for name, value in document.items() if name in Client.model_fields}
