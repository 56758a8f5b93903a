"""Clients in force: those of the file, and those that were made while running; in the catalogue, the ledger, the store.

A client's own limits are put into the ledger before anybody is held in them, then the client is kept as a document, so
that every process on the store knows it within a second.
"""

from collections.abc import Callable, Mapping

from apikeyrouter.domain.components.catalogue import Catalogue
from apikeyrouter.domain.components.client_rules import CLIENT, client_lane, client_policy
from apikeyrouter.domain.components.entries import ClientTerms
from apikeyrouter.domain.components.shares import Shares
from apikeyrouter.domain.interfaces.state_store import StateStore
from apikeyrouter.domain.models.accounting import LaneConfig
from apikeyrouter.domain.models.client import Client
from apikeyrouter.domain.models.policy import Policy
from apikeyrouter.infrastructure.ledger.spread_ledger import AnyLedger
from apikeyrouter.serving.made import MadeEntities

KIND = "client"


class DeclaredClients:
    """Every client that was made while running, and the lanes of the file's. One event loop owns it."""

    def __init__(self, catalogue: Catalogue, ledger: AnyLedger, store: StateStore) -> None:
        self._catalogue, self._ledger = catalogue, ledger
        self._file: Mapping[str, ClientTerms] = {}
        self._made = MadeEntities(store, KIND, lambda: Client)
        self.on_changed: list[Callable[[], None]] = []
        """Called after a change, of this process or another."""

    @property
    def made(self) -> Mapping[str, Client]:
        """Those that were made while running, by name."""
        return self._made.named

    def take_file(self, terms: Mapping[str, ClientTerms]) -> None:
        """What a file says of its clients."""
        self._file = terms
        self._index()

    def lane(self, lane_id: str) -> LaneConfig | None:
        """The lane of one that was made while running; None where it is nobody's."""
        client = self.made.get(lane_id.removeprefix(CLIENT)) if lane_id.startswith(CLIENT) else None
        return None if client is None else _lane(client)

    def policies(self) -> list[Policy]:
        """Those that keep clients to their providers."""
        found = sorted(self.made.items())
        return [client_policy(name, client.providers) for name, client in found if client.providers is not None]

    async def declare(self, client: Client) -> None:
        """Add or change a client; in force here at once, elsewhere within a second."""
        async with self._made.turn():
            await self._ledger.put(lanes=[_lane(client)])
            await self._made.save(client.name, client)
            self._index()

    async def withdraw(self, name: str) -> bool:
        """Forget a client; whether there was one. Requests under way end as they do."""
        async with self._made.turn():
            found = await self._made.drop(name)
            self._index()
            if found and name not in self._file:
                await self._ledger.put(lanes=[LaneConfig(id=f"{CLIENT}{name}")])
            return found

    async def refresh(self) -> bool:
        """Take over what other processes have made, changed and forgotten; whether there was anything."""
        async with self._made.turn():
            changed = await self._made.refresh()
            if changed:
                self._index()
            return changed

    async def restore(self) -> None:
        """Put every client back into a ledger and a store that forgot them."""
        async with self._made.turn():
            await self._ledger.put(lanes=[_lane(client) for client in self.made.values()])
            await self._made.restore()

    def _index(self) -> None:
        terms = {**{name: _terms(client) for name, client in self.made.items()}, **self._file}
        self._catalogue.clients = terms
        self._catalogue.shares = Shares(own.weight for own in terms.values())
        for told in self.on_changed:
            told()


def _terms(client: Client) -> ClientTerms:
    lane = _lane(client)
    return ClientTerms((lane.id,) if lane.limits else (), client.weight)


def _lane(client: Client) -> LaneConfig:
    return client_lane(client.name, rpm=client.rpm, tpm=client.tpm, concurrency=client.concurrency)
