"""The stored keys, opened into the catalogue of this process. What one process changes, the others take over here."""

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Protocol

from apikeyrouter.domain.components.catalogue import Catalogue, Key, key_price_name
from apikeyrouter.domain.components.due_times import DueTimes
from apikeyrouter.domain.components.key_states import due_transition, noted
from apikeyrouter.domain.components.quota_groups import Conflict, group_of, merges
from apikeyrouter.domain.components.quotas import due, next_due
from apikeyrouter.domain.components.unserved import Unread
from apikeyrouter.domain.interfaces.state_store import KEYS_PAGE, StateQuery, StateStore, StoredKeys
from apikeyrouter.domain.models.api_key import APIKey, KeyChange, KeyMaterial, KeyRouting, StateTransition
from apikeyrouter.domain.models.system_error import LedgerConfigError, LedgerError, StateStoreError

__all__ = ["KeyRing", "Lanes", "Vault"]

Announce = Callable[[StateTransition], None]
Report = Callable[[str, Exception], None]
MARKER = ("key_marker", "present")
"""A document that says: the store has not been emptied since somebody registered a key."""


class Vault(Protocol):
    """Seals and opens key material."""

    def encrypt(self, material: str, *, key_id: str) -> str:
        """Ciphertext bound to the key's id."""
        ...

    def decrypt(self, ciphertext: str, *, key_id: str) -> str:
        """The material again."""
        ...

    def is_current(self, ciphertext: str) -> bool:
        """Whether it is sealed as `encrypt` would seal it now."""
        ...


class Lanes(Protocol):
    """Puts what a key declares into the ledger, and reads there what the fleet did with it."""

    def check_key(self, key: Key, routing: KeyRouting) -> None:
        """Raises InvalidRequestError for limits that are wrong."""
        ...

    async def declare_keys(self, keys: Sequence[tuple[Key, KeyRouting]]) -> None:
        """Put the lanes that keys need into the ledger."""
        ...

    def forget_key(self, key_id: str) -> None:
        """The key is gone."""
        ...

    async def retire_keys(self, key_ids: Sequence[str]) -> None:
        """Make every process look at its keys before it decides again."""
        ...

    async def uses(self, key_ids: Sequence[str]) -> Mapping[str, tuple[int, datetime | None]]:
        """How many requests the fleet made with each key until now, and when it made the last."""
        ...


class KeyRing:
    """Keeps the catalogue in step with the store. One change at a time: what was revoked meanwhile never comes back."""

    def __init__(
        self,
        store: StateStore,
        catalogue: Catalogue,
        vault: Callable[[], Vault],
        *,
        lanes: Lanes,
        announce: Announce,
        report: Report,
        report_conflict: Callable[[Conflict], None],
    ) -> None:
        self._report_conflict = report_conflict
        self._conflicts: set[Conflict] = set()
        self._store, self._catalogue, self._vault = store, catalogue, vault
        self._lanes, self._announce, self._report = lanes, announce, report
        self._marked = False
        self._members: dict[str, set[str]] = {}
        """Keys by organisation, where that is known."""
        self.seen: dict[str, int] = {}
        """The marks of the stored keys that were taken over as they are."""
        self._looked_at = 0
        """The store's version before all keys were looked at last; 0: they were not."""
        self.unopened: dict[str, APIKey] = {}
        """Stored keys that this process cannot route with: of other providers, or sealed under other master keys."""
        self._times = DueTimes()
        """Of each key, when its time in its state, or the first window of its quotas, is over."""
        self.turn = asyncio.Lock()
        """Held while a key is written and taken over, or all keys are read: never one within the other."""

    def begin_anew(self) -> None:
        """Another event loop runs now: nobody is in the middle of a change."""
        self.turn = asyncio.Lock()

    async def adopt(self, key: APIKey, material: str, routing: KeyRouting) -> None:
        """Route with this key from now on, as it is stored."""
        await self.adopt_all([(key, material, routing)])

    async def adopt_all(self, keys: Sequence[tuple[APIKey, str, KeyRouting]]) -> None:
        """Route with these keys from now on, as they are stored."""
        if not keys:
            return
        prices = self._catalogue.prices
        for key, _, routing in keys:
            if routing.cost_per_1k is not None:
                per_mtok = routing.cost_per_1k * 1000
                prices.add(key_price_name(key.id), "*", input=per_mtok, output=per_mtok)
        made = [routed(key, material, routing) for key, material, routing in keys]
        await self._lanes.declare_keys([(key, routing) for key, (_, _, routing) in zip(made, keys, strict=True)])
        self._catalogue.put_keys(made)
        for one, (stored, _, _) in zip(made, keys, strict=True):
            self._opens(one.id)
            self._note_time(one)
            self._note_organization(stored)

    def drop(self, key_id: str) -> None:
        """Route with this key no longer."""
        known = self._catalogue.keys.get(key_id)
        if known is not None:
            self._members.get(known.organization, set()).discard(key_id)
        self._times.set(key_id, None)
        self._opens(key_id)
        self.seen.pop(key_id, None)
        self._catalogue.drop_key(key_id)
        self._lanes.forget_key(key_id)

    def set_state(self, key: APIKey) -> None:
        """Take over the state of a key that is known here."""
        known = self._catalogue.keys.get(key.id)
        if known is not None:
            known.state, known.state_reason, known.state_until = key.state, key.state_reason, key.state_until
            self._note_time(known)
            self._catalogue.state_changed(key.id)

    def _note_time(self, key: Key) -> None:
        times = (key.state_until, next_due(key.quotas))
        self._times.set(key.id, min((at for at in times if at is not None), default=None))

    async def mark(self) -> None:
        """Note in the store that it has keys, so that emptying it can be told from revoking them all."""
        if not self._marked or await self._store.get_document(*MARKER) is None:
            with contextlib.suppress(NotImplementedError):  # a user's own store may keep no documents
                await self._store.save_document(*MARKER, {"since": _now().isoformat()})
                self._marked = True

    async def refresh(self) -> None:
        """Take over what the store has: keys of other processes, changed states, revoked keys, returns that are due.

        Costs by what has changed: of what has not, no more is looked at than its mark.
        """
        async with self.turn:
            restored = await self._restore_if_emptied()
            before = list(self._catalogue.keys)
            due = self._times.due(_now())
            version = await self._store.version()
            if version and version == self._looked_at and not (due or restored or self.unopened):
                return  # nothing at all was written since
            for key_id in due:
                self.seen.pop(key_id, None)
            stored = await self._store.read_keys(self.seen)
            if any(key_id not in stored.marks for key_id in before) and await self._restore_if_emptied():
                return  # it was emptied while we read; nothing of ours is gone
            await self._take_over_all(stored)
            for key_id in (*before, *self.unopened):  # last: there is no moment without a key for who asks meanwhile
                if key_id not in stored.marks:
                    self._forget(key_id)
            self._looked_at = version

    def _forget(self, key_id: str) -> None:
        """A key is not in the store any more."""
        if key_id in self._catalogue.keys:
            self.drop(key_id)
        else:
            self._opens(key_id)

    async def _take_over_all(self, stored: StoredKeys) -> None:
        """Take over what has changed, a page at a time, those of one organisation in one group."""
        changed = await self._merged(stored.changed)
        for start in range(0, len(changed), KEYS_PAGE):
            page = changed[start : start + KEYS_PAGE]
            await self._take_over(page)
            for key in page:
                if key.id in self._catalogue.keys and key.id not in self.unopened and key.id in stored.marks:
                    self.seen[key.id] = stored.marks[key.id]
            await asyncio.sleep(0)

    async def _merged(self, keys: list[APIKey]) -> list[APIKey]:
        """The keys, those of one organisation in one group; with those of before whom that moves."""
        known = {key.id for key in keys}
        organisations = {key.organization for key in keys if key.organization}
        others = sorted({id_ for each in organisations for id_ in self._members.get(each, ())} - known)
        if others:
            keys = keys + await self._store.query_state(StateQuery("APIKey", ids=others))
        moved, conflicts = merges(keys)
        for conflict in conflicts:
            if conflict not in self._conflicts:
                self._conflicts.add(conflict)
                self._report_conflict(conflict)
        return [
            await self._merge(key, moved[key.id]) if key.id in moved else key
            for key in keys
            if key.id in known or key.id in moved
        ]

    async def _merge(self, key: APIKey, group: str) -> APIKey:
        def into(found: APIKey | None) -> KeyChange | None:
            if found is None or found.merged_group == group:
                return None
            entry = noted(found, now=_now(), reason=f"of one organisation with quota group {group}", actor="router")
            changed = found.model_copy(update={"merged_group": group, "updated_at": _now()})
            return KeyChange(key=changed, transitions=(entry,))

        change = await self._store.change_key(key.id, into)
        for transition in change.transitions if change is not None else ():
            self._announce(transition)
        return change.key if change is not None and change.key is not None else key

    async def learn_organization(self, key_id: str, digest: str) -> None:
        """A provider named the organisation of a key: keep that, and meter it with the other keys of it."""

        def named(found: APIKey | None) -> KeyChange | None:
            if found is None or found.organization == digest:
                return None
            news = {"organization": digest, "merged_group": "", "updated_at": _now()}
            return KeyChange(key=found.model_copy(update=news))

        if await self._store.change_key(key_id, named) is not None:
            await self.refresh_keys([key_id])

    async def refresh_keys(self, key_ids: Sequence[str]) -> None:
        """Take over these keys as they are stored; when one is missing, all are looked at."""
        async with self.turn:
            stored = await self._store.read_keys(self.seen, key_ids)
            await self._take_over_all(stored)
        if any(key_id in self._catalogue.keys and key_id not in stored.marks for key_id in key_ids):
            await self.refresh()

    def is_due(self) -> bool:
        """Whether a key's time in its state, or a window of its quotas, is over, so that `refresh` should be called."""
        return self._times.any(_now())

    async def restore_if_emptied(self) -> bool:
        """Whether the store lost the marker, and so was emptied: what this process knows is put back, not dropped."""
        async with self.turn:
            return await self._restore_if_emptied()

    async def _restore_if_emptied(self) -> bool:
        present = await self._store.get_document(*MARKER) is not None
        if present or not self._marked:
            self._marked = present
            return False
        for key in list(self._catalogue.keys.values()):
            sealed = self._vault().encrypt(str.__str__(key.material), key_id=key.id)
            await self._store.save_key(
                APIKey(
                    id=key.id, provider_id=key.provider_id, metadata=dict(key.metadata), state=key.state,
                    state_reason=key.state_reason, state_until=key.state_until, encrypted_material=sealed,
                    generation=key.generation, quotas=key.quotas, organization=key.organization,
                )
            )  # fmt: skip
        await self.mark()
        return True

    async def _take_over(self, keys: Sequence[APIKey]) -> None:
        """Take over keys as they are stored."""
        opened: list[tuple[APIKey, str, KeyRouting]] = []
        for stored in keys:
            if stored.unreadable:
                self._set_aside(stored, StateStoreError(stored.unreadable))
                continue
            key = stored if _changed_by_time(stored) is None else await self._let_time_pass(stored)
            known = self._catalogue.keys.get(key.id)
            if known is not None and (known.state is not key.state or known.state_until != key.state_until):
                self.set_state(key)
            if key.provider_id not in self._catalogue.providers:
                self._cannot_open(key, "")
            elif known is not None and _is_as(known, key):
                self._opens(key.id)
                self._note_organization(key)
            elif (found := await self._opened(key)) is not None:
                opened.append(found)
        for key in await self._adopt_those_that_can(opened):
            if not self._vault().is_current(key.encrypted_material):
                await self.reseal(key.id)

    async def _adopt_those_that_can(self, opened: Sequence[tuple[APIKey, str, KeyRouting]]) -> list[APIKey]:
        """Route with these, all at once, or one by one where that fails: one must not stop the others."""
        try:
            await self.adopt_all(opened)
            return [key for key, _, _ in opened]
        except Exception as exc:
            if isinstance(exc, LedgerError | StateStoreError) and not isinstance(exc, LedgerConfigError):
                raise  # nothing is wrong with the keys
            for key, _, _ in opened:
                self._lanes.forget_key(key.id)
            if len(opened) == 1:
                self.drop(opened[0][0].id)
                self._set_aside(opened[0][0], exc)
                return []
        return [key for one in opened for key in await self._adopt_those_that_can([one])]

    def _note_organization(self, key: APIKey) -> None:
        known = self._catalogue.keys.get(key.id)
        if known is not None:
            self._members.get(known.organization, set()).discard(key.id)
            known.organization = key.organization
        if key.organization:
            self._members.setdefault(key.organization, set()).add(key.id)

    async def _let_time_pass(self, key: APIKey) -> APIKey:
        """What is due by time, unless somebody else saw to it."""
        change = await self._store.change_key(
            key.id, lambda stored: None if stored is None else _changed_by_time(stored)
        )
        if change is None or change.key is None:
            return await self._store.get_key(key.id) or key
        for transition in change.transitions:
            self._announce(transition)
        return change.key

    async def _opened(self, key: APIKey) -> tuple[APIKey, str, KeyRouting] | None:
        """A key that cannot be read here (another master key, another version) must not hide the others."""
        try:
            material = self._vault().decrypt(key.encrypted_material, key_id=key.id)
            routing = key.routing
            self._lanes.check_key(routed(key, material, routing), routing)
        except Exception as exc:  # whatever is wrong with it
            self._set_aside(key, exc)
            return None
        return key, material, routing

    def _set_aside(self, key: APIKey, error: Exception) -> None:
        """A stored key cannot be used here: told once, and of no more consequence."""
        known = self._catalogue.keys.get(key.id)
        if known is not None and known.generation != key.generation and not key.unreadable:
            self.drop(key.id)  # what is known of it here was rotated away
        told = self._catalogue.unread.get(key.id)
        self._cannot_open(key, str(error))
        if told != self._catalogue.unread[key.id]:
            self._report(key.id, error)

    def _cannot_open(self, key: APIKey, why: str) -> None:
        """A stored key cannot be routed with here; "": for want of its provider."""
        self.unopened[key.id] = key
        self._catalogue.unread[key.id] = Unread(key.provider_id, why)

    def _opens(self, key_id: str) -> None:
        """A key is routed with, or is no more."""
        self.unopened.pop(key_id, None)
        self._catalogue.unread.pop(key_id, None)

    async def reseal(self, key_id: str) -> bool:
        """Put a stored key under the master key that encrypts now; whether that changed anything.

        Other processes need not look: `updated_at` stays. Errors: EncryptionError when it cannot be opened.
        """
        vault = self._vault()

        def under_the_first(stored: APIKey | None) -> KeyChange | None:
            if stored is None or vault.is_current(stored.encrypted_material):
                return None
            material = vault.decrypt(stored.encrypted_material, key_id=key_id)
            sealed = vault.encrypt(material, key_id=key_id)
            return KeyChange(key=stored.model_copy(update={"encrypted_material": sealed}))

        return await self._store.change_key(key_id, under_the_first) is not None


def _is_as(known: Key, key: APIKey) -> bool:
    """Whether a key is stored as it is known here, but for its state and its organisation."""
    return (
        known.generation == key.generation
        and known.provider_id == key.provider_id
        and known.metadata == key.metadata
        and known.quotas == key.quotas
        and known.quota_group == group_of(key)
    )


def _changed_by_time(key: APIKey) -> KeyChange | None:
    """A key whose time in its state is over, or a window of whose quotas has ended; None: nothing is due."""
    now = _now()
    back = due_transition(key, now=now)
    moved, transitions = (key, ()) if back is None else (back[0], (back[1],))
    quotas = due(key.quotas, now) if key.quotas else None
    if quotas is not None:
        moved = moved.model_copy(update={"quotas": quotas, "updated_at": now})
    return None if moved is key else KeyChange(key=moved, transitions=transitions)


def routed(key: APIKey, material: str, routing: KeyRouting) -> Key:
    """A stored key as routing sees it."""
    return Key(
        id=key.id, provider_id=key.provider_id,
        material=KeyMaterial(material, key_id=key.id, metadata=key.metadata),
        quota_group=group_of(key), models=routing.models, weight=routing.weight,
        quality=routing.quality, state=key.state, state_reason=key.state_reason,
        state_until=key.state_until, cost_per_1k=routing.cost_per_1k, metadata=key.metadata,
        generation=key.generation, team=routing.team, quotas=key.quotas, organization=key.organization,
    )  # fmt: skip


def _now() -> datetime:
    return datetime.now(UTC)
