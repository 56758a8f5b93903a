"""Registers keys and forgets them, one or very many: a page of them is one step in the store and one in the ledger.

Who dies between two pages leaves whole keys behind. Registering the same again completes it.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, TypeVar

from pydantic import TypeAdapter

from apikeyrouter.domain.components.catalogue import Catalogue
from apikeyrouter.domain.components.key_identity import check_material, derive_key_id
from apikeyrouter.domain.components.key_ring import Announce, KeyRing, Lanes, Vault, routed
from apikeyrouter.domain.components.key_states import move, noted
from apikeyrouter.domain.interfaces.state_store import KEYS_PAGE, KeyDecision, StateQuery, StateStore
from apikeyrouter.domain.models.api_key import APIKey, KeyChange, KeyRouting, KeyState, StateTransition
from apikeyrouter.domain.models.request_intent import refuse_non_finite, refuse_unwritable
from apikeyrouter.domain.models.system_error import (
    REGISTER_FIRST,
    EncryptionError,
    InvalidRequestError,
    KeyRegistrationError,
)

__all__ = ["ALIASES", "KeyRegistration", "NewKey", "Registered", "edited", "opened"]

ALIASES = "key_alias"
"""Documents: the id that material would derive → the key that has it, or had it before it was rotated."""
_SEALED = (
    "key {0} is stored, sealed under a master key that is not configured here; configure both master keys "
    "(new,old), or, if that one is lost, revoke key {0} first"
)
_ANYTHING: TypeAdapter[Any] = TypeAdapter(Any)
_T = TypeVar("_T")
Outcome = Literal["created", "updated", "unchanged", "refused"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NewKey:
    """A key to register. `metadata` None leaves what the key had; `key_id` None: the id that the material derives."""

    material: str = field(repr=False)
    provider_id: str
    metadata: dict[str, Any] | None = None
    key_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Registered:
    """What became of one registration: the key as it is now, or (`refused`) what is wrong with it."""

    outcome: Outcome
    key: APIKey | None = None
    error: KeyRegistrationError | None = None


@dataclass(slots=True)
class _Row:
    """One key on its way: what it is told to be, under which id, and what went wrong with it."""

    told: NewKey
    material: str = ""
    id: str = ""
    retired: bool = False
    """Whether its material was replaced by other since, which then stays."""
    outcome: Outcome = "unchanged"
    error: KeyRegistrationError | None = None

    def registered(self, keys: Mapping[str, APIKey]) -> Registered:
        """What became of it."""
        if self.error is not None:
            return Registered(outcome="refused", error=self.error)
        return Registered(outcome=self.outcome, key=keys[self.id])


class KeyRegistration:
    """Puts keys into the store and into this process's ring, a page at a time; other work gets its turn in between."""

    def __init__(
        self,
        store: StateStore,
        catalogue: Catalogue,
        vault: Callable[[], Vault],
        ring: KeyRing,
        *,
        lanes: Lanes,
        announce: Announce,
    ) -> None:
        self._store, self._catalogue, self._vault, self._ring = store, catalogue, vault, ring
        self._lanes, self._announce = lanes, announce

    async def register(self, keys: Sequence[NewKey], *, actor: str) -> list[Registered]:
        """Register each; what became of it, in their order. See `KeyManager.register_keys`."""
        rows = [self._row(told) for told in keys]
        registered: dict[str, APIKey] = {}
        for page in _pages([row for row in rows if row.error is None]):
            await self._find_ids(page)
            left = page
            while left:  # the same key twice is registered twice, in this order
                once: dict[str, _Row] = {}
                for row in left:
                    once.setdefault(row.id, row)
                left = [row for row in left if once[row.id] is not row]
                registered.update(await self._register(once, actor))
        return [row.registered(registered) for row in rows]

    async def foresee(self, keys: Sequence[NewKey], *, actor: str) -> list[Registered]:
        """What `register` would make of these now, one after the other. Nothing is written."""
        rows = [self._row(told) for told in keys]
        foreseen: dict[str, APIKey] = {}
        for page in _pages([row for row in rows if row.error is None]):
            await self._find_ids(page)
            stored = [row.id for row in page if row.id not in foreseen]
            found: list[APIKey] = await self._store.query_state(StateQuery("APIKey", ids=stored)) if stored else []
            known = {key.id: key for key in found} | foreseen
            for row in page:
                change = self._decision(row, actor)(known.get(row.id))
                key = known.get(row.id) if change is None else change.key
                if key is not None:
                    known[row.id] = foreseen[row.id] = key
        return [row.registered(foreseen) for row in rows]

    async def revoke(self, key_ids: Sequence[str], reason: str, *, actor: str) -> list[str]:
        """Forget those of these keys that there are; which that were."""
        why, gone = f"revoked: {reason}" if reason else "revoked", []

        def revoke(key: APIKey | None) -> KeyChange | None:
            if key is None:
                return None
            return KeyChange(key=None, transitions=(noted(key, now=_now(), reason=why, actor=actor, after=False),))

        for page in _pages(key_ids):
            async with self._ring.turn:
                changes = await self._store.change_keys(dict.fromkeys(page, revoke))
                left = [key_id for key_id in page if key_id in changes or key_id in self._catalogue.keys]
                for key_id in left:
                    self._ring.drop(key_id)
                await self._lanes.retire_keys(left)
            gone += list(changes)
            self._tell(changes)
        return gone

    def says_nothing_new(self, told: NewKey) -> bool:
        """Whether registering this would change nothing of a key that is routed with here."""
        known = self._catalogue.keys.get(told.key_id or "")
        return (
            known is not None
            and known.state is not KeyState.Invalid
            and known.provider_id == told.provider_id
            and str.__str__(known.material) == told.material
            and known.metadata == told.metadata
        )

    # --- one page ------------------------------------------------------------------------------------------------

    def _row(self, told: NewKey) -> _Row:
        row = _Row(told)
        try:
            row.material = check_material(told.material)
            if told.key_id is not None and not isinstance(told.key_id, str):
                raise KeyRegistrationError(f"key_id: must be text, not {type(told.key_id).__name__}")
            if not isinstance(told.provider_id, str) or told.provider_id not in self._catalogue.providers:
                raise KeyRegistrationError(f"provider {told.provider_id!r} is not registered; {REGISTER_FIRST}")
            _check_metadata(told.metadata)
        except KeyRegistrationError as exc:
            row.error = exc
        return row

    async def _register(self, rows: Mapping[str, _Row], actor: str) -> dict[str, APIKey]:
        """Register rows with different ids; the keys as they are stored now."""
        decisions = {id_: self._decision(row, actor) for id_, row in rows.items()}
        marks: dict[str, int] = {}
        async with self._ring.turn:
            changes = await self._store.change_keys(decisions, marks)
            keys = {key_id: change.key for key_id, change in changes.items() if change.key is not None}
            unchanged = [id_ for id_, row in rows.items() if id_ not in keys and row.error is None]
            if unchanged:
                found: list[APIKey] = await self._store.query_state(StateQuery("APIKey", ids=unchanged))
                keys.update({key.id: key for key in found})
            await self._ring.mark()
            await self._ring.adopt_all([self._as_stored(keys[id_], row) for id_, row in rows.items() if id_ in keys])
            self._ring.seen.update(marks)
        self._tell(changes)
        for id_, row in rows.items():
            if row.error is None and id_ not in keys:
                row.error = KeyRegistrationError(f"key {id_} was revoked while it was registered; register it again")
        return keys

    def _as_stored(self, key: APIKey, row: _Row) -> tuple[APIKey, str, KeyRouting]:
        material = row.material
        if row.retired:
            material = self._vault().decrypt(key.encrypted_material, key_id=key.id)
        return key, material, key.routing

    def _decision(self, row: _Row, actor: str) -> KeyDecision:
        """What registering makes of what is stored; nothing when it says nothing new, or is refused."""
        decide = self._registration(row, actor)

        def refused(stored: APIKey | None) -> KeyChange | None:
            try:
                change = decide(stored)
            except KeyRegistrationError as exc:
                row.error = exc
                return None
            row.outcome = "unchanged" if change is None else "created" if stored is None else "updated"
            return change

        return refused

    def _registration(self, row: _Row, actor: str) -> KeyDecision:
        vault, told, material = self._vault(), row.told, row.material

        def register(stored: APIKey | None) -> KeyChange | None:
            if stored is not None and stored.unreadable:
                stored = None
            key = stored or APIKey(id=row.id, provider_id=told.provider_id, metadata=dict(told.metadata or {}))
            news: dict[str, Any] = {}
            if told.metadata is not None and told.metadata != key.metadata:
                news["metadata"] = told.metadata
            if told.provider_id != key.provider_id:
                news["provider_id"] = told.provider_id
            rotated = False
            if not row.retired:
                known = opened(vault, key)
                if known is None and key.encrypted_material:
                    raise KeyRegistrationError(_SEALED.format(row.id))
                rotated = known is not None and known != material
                if known != material or not vault.is_current(key.encrypted_material):
                    news["encrypted_material"] = vault.encrypt(material, key_id=row.id)
                if rotated:
                    news["generation"] = key.generation + 1
            key = edited(key, news)
            self._check(key, material)
            if stored is None:
                entry = noted(key, now=key.updated_at, reason="registered", actor=actor, before=False)
                return KeyChange(key=key, transitions=(entry,))
            entries: list[StateTransition] = []
            if rotated:
                entries.append(noted(key, now=key.updated_at, reason="registered with new material", actor=actor))
            if key.state is KeyState.Invalid:
                key, entry = move(key, KeyState.Available, now=_now(), reason="registered again", actor=actor)
                entries.append(entry)
            return KeyChange(key=key, transitions=tuple(entries)) if news or entries else None

        return register

    def _check(self, key: APIKey, material: str) -> None:
        try:
            self._lanes.check_key(routed(key, material, key.routing), key.routing)
        except InvalidRequestError as exc:
            raise KeyRegistrationError(f"metadata.{exc.field or 'limits'}: {exc.reason}") from exc

    def _tell(self, changes: Mapping[str, KeyChange]) -> None:
        for change in changes.values():
            for transition in change.transitions:
                self._announce(transition)

    # --- ids -----------------------------------------------------------------------------------------------------

    async def _find_ids(self, rows: Sequence[_Row]) -> None:
        """Find the ids of these rows, and note the derived ids of those that are told another."""
        derived = [derive_key_id(row.material, provider_id=row.told.provider_id) for row in rows]
        named = {
            id_: row.told.key_id for id_, row in zip(derived, rows, strict=True) if row.told.key_id not in (None, id_)
        }
        aliases = await self._store.get_documents(ALIASES, list(dict.fromkeys(derived)))
        await self._save_aliases({id_: _alias(str(key_id), retired=False) for id_, key_id in named.items()}, aliases)
        known = await self._there_are([str(alias["key_id"]) for alias in aliases.values()])
        for id_, row in zip(derived, rows, strict=True):
            alias = aliases.get(id_)
            if row.told.key_id is not None:
                row.id = row.told.key_id
            elif alias is None or alias["key_id"] not in known:
                row.id = id_
            else:
                row.id, row.retired = str(alias["key_id"]), bool(alias["retired"])

    async def id_of(self, material: str, provider_id: str) -> tuple[str, bool]:
        """The id of the key with this material, and whether it has been rotated to another since."""
        row = _Row(NewKey(material=material, provider_id=provider_id), material)
        await self._find_ids([row])
        return row.id, row.retired

    async def save_alias(self, derived: str, key_id: str, *, retired: bool) -> None:
        """Note whose the material of a derived id is, or was until it was rotated."""
        known = await self._store.get_documents(ALIASES, [derived])
        await self._save_aliases({derived: _alias(key_id, retired=retired)}, known)

    async def _save_aliases(self, told: Mapping[str, dict[str, Any]], known: Mapping[str, dict[str, Any]]) -> None:
        news = {derived: alias for derived, alias in told.items() if known.get(derived) != alias}
        with contextlib.suppress(NotImplementedError):  # a user's own store may keep no documents
            await self._store.save_documents(ALIASES, news)

    async def _there_are(self, key_ids: Sequence[str]) -> set[str]:
        """Those of these keys that there are."""
        if not key_ids:
            return set()
        found: list[APIKey] = await self._store.query_state(StateQuery("APIKey", ids=list(key_ids)))
        return {key.id for key in found}


def _alias(key_id: str, *, retired: bool) -> dict[str, Any]:
    return {"key_id": key_id, "retired": retired}


def _check_metadata(metadata: dict[str, Any] | None) -> None:
    told = metadata or {}
    try:
        KeyRouting.parse(told)
        for name, value in told.items():
            refuse_non_finite(value, name)
        refuse_unwritable(told, "", _ANYTHING.dump_json)
    except InvalidRequestError as exc:
        where = f"metadata.{exc.field}" if exc.field else "metadata"
        raise KeyRegistrationError(f"{where}: {exc.reason}") from exc


def edited(key: APIKey, news: dict[str, Any]) -> APIKey:
    """The key with other fields, as of now; itself when there are none."""
    return key.model_copy(update={**news, "updated_at": _now()}) if news else key


def opened(vault: Vault, key: APIKey) -> str | None:
    """A stored key's material; None when there is none yet, or it cannot be opened here."""
    try:
        return vault.decrypt(key.encrypted_material, key_id=key.id) if key.encrypted_material else None
    except EncryptionError:
        return None


def _pages(items: Sequence[_T]) -> list[Sequence[_T]]:
    return [items[at : at + KEYS_PAGE] for at in range(0, len(items), KEYS_PAGE)]


def _now() -> datetime:
    return datetime.now(UTC)
