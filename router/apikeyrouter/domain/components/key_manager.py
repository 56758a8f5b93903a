"""Registers keys and keeps their states. Material is sealed before it is stored and opened only into memory."""

import contextlib
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Protocol

from apikeyrouter.domain.components.catalogue import Catalogue, Key, key_price_name
from apikeyrouter.domain.components.key_identity import check_material, derive_key_id
from apikeyrouter.domain.components.key_states import due_transition, move
from apikeyrouter.domain.interfaces.state_store import StateQuery, StateStore
from apikeyrouter.domain.models.api_key import APIKey, KeyMaterial, KeyRouting, KeyState, StateTransition
from apikeyrouter.domain.models.system_error import EncryptionError, InvalidRequestError, KeyRegistrationError

__all__ = ["KeyManager", "KeyRegistrationError", "Lanes", "Vault"]


class Vault(Protocol):
    """Seals and opens key material."""

    def encrypt(self, material: str, *, key_id: str) -> str:
        """Ciphertext bound to the key's id."""
        ...

    def decrypt(self, ciphertext: str, *, key_id: str) -> str:
        """The material again."""
        ...


Announce = Callable[[StateTransition], None]
Report = Callable[[str, Exception], None]
ALIASES = "key_alias"
"""Documents: the id that material would derive → the key that has it, or had it before it was rotated."""
MARKER = ("key_marker", "present")
"""A document that says: the store has not been emptied since somebody registered a key."""


class Lanes(Protocol):
    """Puts what a key declares into the ledger."""

    def check_key(self, key: Key, routing: KeyRouting) -> None:
        """Raises InvalidRequestError for limits that are wrong."""
        ...

    async def declare_key(self, key: Key, routing: KeyRouting) -> None:
        """Put the lanes that a key needs into the ledger."""
        ...

    def forget_key(self, key_id: str) -> None:
        """The key is gone."""
        ...


class KeyManager:
    """The keys of this deployment. What one process registers, the others learn through the store."""

    def __init__(
        self,
        store: StateStore,
        catalogue: Catalogue,
        vault: Callable[[], Vault],
        *,
        lanes: Lanes,
        announce: Announce,
        report: Report,
        cooldown_seconds: float,
    ) -> None:
        self._store, self._catalogue, self._vault = store, catalogue, vault
        self._lanes, self._announce, self._report = lanes, announce, report
        self._cooldown_seconds = cooldown_seconds
        self._marked = False
        self._unreadable: set[str] = set()

    async def register_key(
        self, key_material: str, provider_id: str, metadata: dict[str, Any] | None = None, *, key_id: str | None = None
    ) -> APIKey:
        """Register a key. Idempotent: the same material and provider give the same key; metadata is updated.

        Raises:
            KeyRegistrationError: the material cannot be a key, the provider is not registered, the metadata is
                wrong, or there is no master key to seal it with.
        """
        material = check_material(key_material)
        if provider_id not in self._catalogue.providers:
            raise KeyRegistrationError(
                f"provider {provider_id!r} is not registered; call register_provider({provider_id!r}, …) first"
            )
        metadata = dict(metadata or {})
        try:
            routing = KeyRouting.parse(metadata)
        except InvalidRequestError as exc:
            raise KeyRegistrationError(f"metadata.{exc.field}: {exc.reason}") from exc
        id_, retired = await self._id_of(material, provider_id, key_id)
        known = await self._store.get_key(id_)
        if known is not None and retired:  # an old material of a key that was rotated: it is that key
            material = self._vault().decrypt(known.encrypted_material, key_id=id_)
        key = known or APIKey(id=id_, provider_id=provider_id)
        transition: StateTransition | None = None
        if key.state is KeyState.Invalid:
            key, transition = move(key, KeyState.Available, now=_now(), reason="registered again")
        sealed = self._vault().encrypt(material, key_id=id_)
        key = key.model_copy(update={"metadata": metadata, "updated_at": _now(), "encrypted_material": sealed})
        self._check(key, material, routing)
        await self._store.save_key(key)
        if transition is not None:
            await self._store.save_state_transition(transition)
        await self._mark()
        await self._adopt(key, material, routing)
        return key

    async def _id_of(self, material: str, provider_id: str, key_id: str | None) -> tuple[str, bool]:
        """The id of the key with this material, and whether it has been rotated to another since."""
        derived = derive_key_id(material, provider_id=provider_id)
        if key_id is not None:
            if key_id != derived:
                await self._alias(derived, key_id, retired=False)
            return key_id, False
        alias = await self._store.get_document(ALIASES, derived)
        if alias is None or await self._store.get_key(str(alias["key_id"])) is None:
            return derived, False
        return str(alias["key_id"]), bool(alias["retired"])

    async def _alias(self, derived: str, key_id: str, *, retired: bool) -> None:
        with contextlib.suppress(NotImplementedError):  # a user's own store may keep no documents
            await self._store.save_document(ALIASES, derived, {"key_id": key_id, "retired": retired})

    def _check(self, key: APIKey, material: str, routing: KeyRouting) -> None:
        try:
            self._lanes.check_key(_routed(key, material, routing), routing)
        except InvalidRequestError as exc:
            raise KeyRegistrationError(f"metadata.{exc.field or 'limits'}: {exc.reason}") from exc

    async def get_key(self, key_id: str) -> APIKey | None:
        """A key, or None."""
        return await self._store.get_key(key_id)

    async def list_keys(self, provider_id: str | None = None) -> list[APIKey]:
        """Every key, or those of a provider, oldest first."""
        found: list[APIKey] = await self._store.query_state(StateQuery("APIKey", provider_id=provider_id))
        return found

    async def update_key_state(
        self,
        key_id: str,
        new_state: KeyState | str,
        reason: str = "",
        *,
        actor: str = "operator",
        for_seconds: float | None = None,
    ) -> StateTransition:
        """Change a key's state, with an entry in the audit trail. A throttled key comes back after the cooldown.

        Raises:
            InvalidRequestError: the key is unknown, or the change is not legal.
        """
        key = await self._store.get_key(key_id)
        if key is None:
            raise InvalidRequestError(f"no key {key_id!r}", field="key_id")
        state = new_state if isinstance(new_state, KeyState) else KeyState.lookup(new_state)
        if state is None:
            raise InvalidRequestError(f"must be one of {', '.join(KeyState)}", field="state")
        if state is KeyState.Throttled and for_seconds is None:
            for_seconds = self._cooldown_seconds
        changed, transition = move(key, state, now=_now(), reason=reason, actor=actor, for_seconds=for_seconds)
        await self._store.save_key(changed)
        await self._store.save_state_transition(transition)
        self._set_state(changed)
        self._announce(transition)
        return transition

    async def revoke_key(self, key_id: str) -> None:
        """Forget a key. Requests under way with it end as they do; no new one is routed to it."""
        self._drop(key_id)
        if not await self._store.delete_key(key_id):
            raise InvalidRequestError(f"no key {key_id!r}", field="key_id")

    async def rotate_key(self, old_key_id: str, new_key_material: str) -> APIKey:
        """Give a key new material under its old id; requests under way finish with the old."""
        key = await self._store.get_key(old_key_id)
        if key is None:
            raise InvalidRequestError(f"no key {old_key_id!r}", field="key_id")
        material = check_material(new_key_material)
        old = self._vault().decrypt(key.encrypted_material, key_id=key.id)
        updates = {"encrypted_material": self._vault().encrypt(material, key_id=key.id), "updated_at": _now()}
        rotated = key.model_copy(update=updates)
        if key.state is KeyState.Invalid:
            rotated, transition = move(rotated, KeyState.Available, now=_now(), reason="rotated")
            await self._store.save_state_transition(transition)
        await self._store.save_key(rotated)
        await self._alias(derive_key_id(old, provider_id=key.provider_id), key.id, retired=True)
        await self._alias(derive_key_id(material, provider_id=key.provider_id), key.id, retired=False)
        await self._adopt(rotated, material, rotated.routing)
        return rotated

    async def refresh(self) -> None:
        """Take over what the store has: keys of other processes, changed states, revoked keys, returns that are due."""
        await self.restore_if_emptied()
        before = list(self._catalogue.keys)
        found = {key.id: key for key in await self.list_keys()}
        if any(key_id not in found for key_id in before) and await self.restore_if_emptied():
            return  # it was emptied while we read; nothing of ours is gone
        for key_id in before:
            if key_id not in found:
                self._drop(key_id)
        for key in found.values():
            await self._take_over(key)

    def is_due(self) -> bool:
        """Whether a key's time in its state is over, so that `refresh` should be called."""
        now = _now()
        return any(key.state_until is not None and key.state_until <= now for key in self._catalogue.keys.values())

    async def restore_if_emptied(self) -> bool:
        """Whether the store lost the marker, and so was emptied: what this process knows is put back, not dropped."""
        present = await self._store.get_document(*MARKER) is not None
        if present or not self._marked:
            self._marked = present
            return False
        for key in list(self._catalogue.keys.values()):
            material = str.__str__(key.material)
            sealed = self._vault().encrypt(material, key_id=key.id)
            await self._store.save_key(
                APIKey(
                    id=key.id, provider_id=key.provider_id, metadata=dict(key.metadata), state=key.state,
                    state_reason=key.state_reason, state_until=key.state_until, encrypted_material=sealed,
                )
            )  # fmt: skip
        await self._mark()
        return True

    async def _mark(self) -> None:
        if not self._marked or await self._store.get_document(*MARKER) is None:
            with contextlib.suppress(NotImplementedError):
                await self._store.save_document(*MARKER, {"since": _now().isoformat()})
                self._marked = True

    async def _take_over(self, key: APIKey) -> None:
        due = due_transition(key, now=_now())
        if due is not None:
            key, transition = due
            await self._store.save_key(key)
            await self._store.save_state_transition(transition)
            self._announce(transition)
        known = self._catalogue.keys.get(key.id)
        if known is not None and (known.state is not key.state or known.state_until != key.state_until):
            self._set_state(key)
        if known is not None and known.updated_at == key.updated_at:
            return
        if key.provider_id in self._catalogue.providers:
            await self._adopt_stored(key)

    async def _adopt_stored(self, key: APIKey) -> None:
        """A key that cannot be read here (another master key, another version) must not hide the others."""
        try:
            material = self._vault().decrypt(key.encrypted_material, key_id=key.id)
            await self._adopt(key, material, key.routing)
        except (EncryptionError, InvalidRequestError) as exc:
            if key.id not in self._unreadable:
                self._unreadable.add(key.id)
                self._report(key.id, exc)

    async def _adopt(self, key: APIKey, material: str, routing: KeyRouting) -> None:
        made = _routed(key, material, routing)
        if routing.cost_per_1k is not None:
            per_mtok = routing.cost_per_1k * 1000
            self._catalogue.prices.add(key_price_name(key.id), "*", input=per_mtok, output=per_mtok)
        await self._lanes.declare_key(made, routing)
        self._catalogue.put_key(made)

    def _drop(self, key_id: str) -> None:
        self._catalogue.drop_key(key_id)
        self._lanes.forget_key(key_id)

    def _set_state(self, key: APIKey) -> None:
        known = self._catalogue.keys.get(key.id)
        if known is not None:
            known.state, known.state_reason, known.state_until = key.state, key.state_reason, key.state_until
            self._catalogue.changed()


def _routed(key: APIKey, material: str, routing: KeyRouting) -> Key:
    return Key(
        id=key.id, provider_id=key.provider_id,
        material=KeyMaterial(material, key_id=key.id, metadata=key.metadata),
        quota_group=routing.quota_group or key.id, models=routing.models, weight=routing.weight,
        quality=0.5 if routing.quality is None else routing.quality, state=key.state, state_reason=key.state_reason,
        state_until=key.state_until, cost_per_1k=routing.cost_per_1k, metadata=key.metadata, updated_at=key.updated_at,
    )  # fmt: skip


def _now() -> datetime:
    return datetime.now(UTC)
