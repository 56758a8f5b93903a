"""Registers keys and keeps their states. Material is sealed before it is stored and opened only into memory."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, Protocol

from apikeyrouter.domain.components.catalogue import Catalogue, Key, key_price_name
from apikeyrouter.domain.components.key_identity import check_material, derive_key_id
from apikeyrouter.domain.components.key_states import due_transition, move
from apikeyrouter.domain.interfaces.state_store import StateQuery, StateStore
from apikeyrouter.domain.models.api_key import APIKey, KeyMaterial, KeyRouting, KeyState, StateTransition
from apikeyrouter.domain.models.system_error import InvalidRequestError, KeyRegistrationError

__all__ = ["KeyManager", "KeyRegistrationError", "Vault"]


class Vault(Protocol):
    """Seals and opens key material."""

    def encrypt(self, material: str, *, key_id: str) -> str:
        """Ciphertext bound to the key's id."""
        ...

    def decrypt(self, ciphertext: str, *, key_id: str) -> str:
        """The material again."""
        ...


Announce = Callable[[StateTransition], None]
Declare = Callable[[Key, KeyRouting], Awaitable[None]]
"""Puts the lanes that a key needs into the ledger."""


class KeyManager:
    """The keys of this deployment. What one process registers, the others learn through the store."""

    def __init__(
        self,
        store: StateStore,
        catalogue: Catalogue,
        vault: Callable[[], Vault],
        *,
        declare: Declare,
        announce: Announce,
        cooldown_seconds: float,
    ) -> None:
        self._store, self._catalogue, self._vault = store, catalogue, vault
        self._declare, self._announce = declare, announce
        self._cooldown_seconds = cooldown_seconds

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
        id_ = key_id or derive_key_id(material, provider_id=provider_id)
        known = await self._store.get_key(id_)
        if known is not None:
            key = known.model_copy(update={"metadata": metadata, "updated_at": _now()})
            if key.state is KeyState.Invalid:
                key, transition = move(key, KeyState.Available, now=_now(), reason="registered again")
                await self._store.save_state_transition(transition)
        else:
            key = APIKey(id=id_, provider_id=provider_id, metadata=metadata)
        sealed = self._vault().encrypt(material, key_id=id_)
        key = key.model_copy(update={"encrypted_material": sealed})
        await self._adopt(key, material, routing)
        await self._store.save_key(key)
        return key

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
        self._set_state(key_id, state)
        self._announce(transition)
        return transition

    async def revoke_key(self, key_id: str) -> None:
        """Forget a key. Requests under way with it end as they do; no new one is routed to it."""
        self._catalogue.drop_key(key_id)
        if not await self._store.delete_key(key_id):
            raise InvalidRequestError(f"no key {key_id!r}", field="key_id")

    async def rotate_key(self, old_key_id: str, new_key_material: str) -> APIKey:
        """Give a key new material under its old id; requests under way finish with the old."""
        key = await self._store.get_key(old_key_id)
        if key is None:
            raise InvalidRequestError(f"no key {old_key_id!r}", field="key_id")
        material = check_material(new_key_material)
        updates = {"encrypted_material": self._vault().encrypt(material, key_id=key.id), "updated_at": _now()}
        rotated = key.model_copy(update=updates)
        if key.state is KeyState.Invalid:
            rotated, transition = move(rotated, KeyState.Available, now=_now(), reason="rotated")
            await self._store.save_state_transition(transition)
        await self._adopt(rotated, material, rotated.routing)
        await self._store.save_key(rotated)
        return rotated

    async def refresh(self) -> None:
        """Take over what the store has: keys of other processes, changed states, revoked keys, returns that are due."""
        found = {key.id: key for key in await self.list_keys()}
        for key_id in [key_id for key_id in self._catalogue.keys if key_id not in found]:
            self._catalogue.drop_key(key_id)
        for key in found.values():
            await self._take_over(key)

    async def _take_over(self, key: APIKey) -> None:
        due = due_transition(key, now=_now())
        if due is not None:
            key, transition = due
            await self._store.save_key(key)
            await self._store.save_state_transition(transition)
            self._announce(transition)
        known = self._catalogue.keys.get(key.id)
        if known is not None and known.state is not key.state:
            self._set_state(key.id, key.state)
        if known is not None and known.updated_at == key.updated_at:
            return
        if key.provider_id in self._catalogue.providers:
            material = self._vault().decrypt(key.encrypted_material, key_id=key.id)
            await self._adopt(key, material, key.routing)

    async def _adopt(self, key: APIKey, material: str, routing: KeyRouting) -> None:
        made = Key(
            id=key.id, provider_id=key.provider_id,
            material=KeyMaterial(material, key_id=key.id, metadata=key.metadata),
            quota_group=routing.quota_group or key.id, models=routing.models, weight=routing.weight, state=key.state,
            cost_per_1k=routing.cost_per_1k, metadata=key.metadata, updated_at=key.updated_at,
        )  # fmt: skip
        if routing.cost_per_1k is not None:
            per_mtok = routing.cost_per_1k * 1000
            self._catalogue.prices.add(key_price_name(key.id), "*", input=per_mtok, output=per_mtok)
        await self._declare(made, routing)
        self._catalogue.put_key(made)

    def _set_state(self, key_id: str, state: KeyState) -> None:
        known = self._catalogue.keys.get(key_id)
        if known is not None:
            known.state = state
            self._catalogue.changed()


def _now() -> datetime:
    return datetime.now(UTC)
