"""Registers keys and keeps their states. Material is sealed before it is stored and opened only into memory.

What is changed here is one step in the store, with its entry in the audit trail; `key_ring.py` makes every process
take it over.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from apikeyrouter.domain.components.arguments import checking
from apikeyrouter.domain.components.catalogue import Catalogue
from apikeyrouter.domain.components.key_identity import check_material, derive_key_id
from apikeyrouter.domain.components.key_probing import ask, verdict_of
from apikeyrouter.domain.components.key_registration import KeyRegistration, NewKey, Registered, edited, opened
from apikeyrouter.domain.components.key_ring import Announce, KeyRing, Lanes, Report, Vault, routed
from apikeyrouter.domain.components.key_states import move, move_along, noted
from apikeyrouter.domain.components.key_tally import KeyTally
from apikeyrouter.domain.components.policy_checks import evaluated
from apikeyrouter.domain.components.quota_groups import Conflict
from apikeyrouter.domain.interfaces.state_store import KeyDecision, StateQuery, StateStore
from apikeyrouter.domain.models.api_key import (
    APIKey,
    KeyChange,
    KeyMaterial,
    KeyProbe,
    KeyState,
    StateTransition,
)
from apikeyrouter.domain.models.policy import Policy, PolicyScope
from apikeyrouter.domain.models.quota_state import Quota
from apikeyrouter.domain.models.system_error import (
    EncryptionError,
    InvalidRequestError,
    KeyRegistrationError,
)

__all__ = ["KeyManager", "KeyRegistrationError", "Lanes", "NewKey", "Registered", "Vault"]

OPERATOR = "operator"
Permits = Callable[[APIKey], bool]


@checking(
    "get_key", "list_keys", "get_eligible_keys", "get_transitions", "update_key_state", "disable_key", "enable_key",
    "probe_key", "edit_quotas", "rotate_key", "revoke_key", "revoke_keys", "register_keys", "import_keys",
)  # fmt: skip
class KeyManager:
    """The keys of this deployment. What one process does with them, the others know within a second.

    Everywhere: `actor` is who asks, for the audit trail; an unknown key is an InvalidRequestError; a store that cannot
    be reached is a StateStoreUnavailableError, and then nothing was changed.
    """

    def __init__(
        self,
        store: StateStore,
        catalogue: Catalogue,
        vault: Callable[[], Vault],
        *,
        lanes: Lanes,
        announce: Announce,
        report: Report,
        report_conflict: Callable[[Conflict], None] = lambda conflict: None,
        cooldown_seconds: float,
    ) -> None:
        self._store, self._catalogue, self._vault = store, catalogue, vault
        self._lanes, self._announce = lanes, announce
        self.cooldown_seconds = cooldown_seconds
        self._ring = KeyRing(
            store, catalogue, vault, lanes=lanes, announce=announce, report=report, report_conflict=report_conflict
        )
        self.learn_organization = self._ring.learn_organization
        self._registration = KeyRegistration(store, catalogue, vault, self._ring, lanes=lanes, announce=announce)
        self.says_nothing_new = self._registration.says_nothing_new
        self._tally = KeyTally(store, lanes)
        self.tally, self.flush_tally, self.abandon_tally = self._tally.count, self._tally.flush, self._tally.abandon
        self.latest_failures = self._tally.latest
        self._counted, self._all_counted = self._tally.told, self._tally.all_told
        self.refresh, self.refresh_keys, self.unopened = (
            self._ring.refresh,
            self._ring.refresh_keys,
            self._ring.unopened,
        )
        self.is_due, self.restore_if_emptied = self._ring.is_due, self._ring.restore_if_emptied

    # --- registering ---------------------------------------------------------------------------------------------

    def begin_anew(self) -> None:
        """Another event loop runs now: forget who was in the middle of a change."""
        self._ring.begin_anew()

    async def register_key(
        self,
        key_material: str,
        provider_id: str,
        metadata: dict[str, Any] | None = None,
        *,
        key_id: str | None = None,
        actor: str = OPERATOR,
    ) -> APIKey:
        """Register a key. Idempotent: the same material and provider give the same key, in every process, for ever.

        `metadata` replaces what the key had; None leaves it. A key that was invalid is available again. With `key_id`
        the key has that id, and other material than it had rotates it.

        Raises:
            KeyRegistrationError: the material cannot be a key, the provider is not registered, the metadata is
                wrong, or there is no master key to seal it with.
        """
        told = NewKey(material=key_material, provider_id=provider_id, metadata=metadata, key_id=key_id)
        (found,) = await self.register_keys([told], actor=actor)
        if isinstance(found, KeyRegistrationError):
            raise found
        return found

    async def register_keys(
        self, keys: Sequence[NewKey], *, actor: str = OPERATOR
    ) -> list[APIKey | KeyRegistrationError]:
        """`register_key` for each of many, a page at a time: the key, or what is wrong with it, in their order.

        One that is refused keeps nothing else back. The same key named twice is registered twice, in that order. What
        was done when the store goes away stays; the same again completes it.

        Raises:
            EncryptionError: there is no master key to seal them with; nothing was registered.
        """
        if not keys:
            return []
        found = await self.import_keys(keys, actor=actor)
        counted = iter(await self._all_counted([one.key for one in found if one.key is not None]))
        return [next(counted) if one.error is None else one.error for one in found]

    async def import_keys(
        self, keys: Sequence[NewKey], *, actor: str = OPERATOR, dry_run: bool = False
    ) -> list[Registered]:
        """`register_keys`, and whether each was created, updated, there already as it is told, or refused. The keys are
        without the fleet's counts. `dry_run`: only say so; nothing is written.

        Raises:
            EncryptionError: there is no master key to seal them with; nothing was registered.
        """
        self._vault()
        work = self._registration.foresee if dry_run else self._registration.register
        return await work(keys, actor=actor)

    # --- reading -------------------------------------------------------------------------------------------------

    async def get_key(self, key_id: str) -> APIKey | None:
        """A key with the fleet's counts, or None."""
        key = await self._store.get_key(key_id)
        return None if key is None else await self._counted(key)

    async def list_keys(self, provider_id: str | None = None) -> list[APIKey]:
        """Every key with the fleet's counts, or those of a provider, oldest first."""
        found: list[APIKey] = await self._store.query_state(StateQuery("APIKey", provider_id=provider_id))
        return await self._all_counted(found)

    async def get_eligible_keys(
        self, provider_id: str | None = None, policy: Policy | Mapping[str, Any] | Permits | None = None
    ) -> list[APIKey]:
        """Keys that requests may be routed to by their state, and that the policy permits; oldest first.

        `policy`: one as it is declared, taken to be in force for whom it is about; or a function of a key. Errors:
        InvalidRequestError for a policy that is not valid.
        """
        permits = self._permission(policy)
        return [key for key in await self.list_keys(provider_id) if key.state.eligible and permits(key)]

    def _permission(self, policy: Policy | Mapping[str, Any] | Permits | None) -> Permits:
        if policy is None:
            return lambda key: True
        if not isinstance(policy, Policy | Mapping):
            return policy
        declared = Policy.parse(policy)
        about = {PolicyScope.Team: "team", PolicyScope.Client: "client", PolicyScope.Model: "model"}.get(declared.scope)
        whose = {about: declared.scope_id} if about is not None else {}
        now = time.time()
        return lambda key: evaluated(declared, {"key_id": key.id, **whose}, self._catalogue, now).allowed

    async def get_transitions(self, key_id: str | None = None, *, limit: int = 1000) -> list[StateTransition]:
        """The newest entries of the audit trail, oldest first: who changed what, when and why."""
        found: list[StateTransition] = await self._store.query_state(
            StateQuery("StateTransition", key_id=key_id, limit=limit)
        )
        return found

    # --- states --------------------------------------------------------------------------------------------------

    async def update_key_state(
        self,
        key_id: str,
        new_state: KeyState | str,
        reason: str = "",
        *,
        actor: str = OPERATOR,
        for_seconds: float | None = None,
        generation: int | None = None,
    ) -> StateTransition:
        """Change a key's state, with an entry in the audit trail.

        A throttled key comes back after `for_seconds`, or the default cooldown. `generation`: what was learned about
        that material only; a key that was rotated since stays as it is.

        Raises:
            InvalidRequestError: the key is unknown, the change is not legal, or the key was rotated since.
        """
        state = _state(new_state)
        if state is KeyState.Throttled and for_seconds is None:
            for_seconds = self.cooldown_seconds

        def to_state(key: APIKey) -> KeyChange:
            if generation is not None and key.generation != generation:
                raise InvalidRequestError(f"key {key_id} was rotated since; that speaks for its old material")
            moved, entry = move(key, state, now=_now(), reason=reason, actor=actor, for_seconds=for_seconds)
            return KeyChange(key=moved, transitions=(entry,))

        return (await self._changed(key_id, to_state)).transitions[-1]

    async def disable_key(self, key_id: str, reason: str = "", *, actor: str = OPERATOR) -> APIKey:
        """Switch a key off until `enable_key`. Requests under way with it end as they do."""
        await self.update_key_state(key_id, KeyState.Disabled, reason, actor=actor)
        return await self._known(key_id)

    async def enable_key(self, key_id: str, reason: str = "", *, actor: str = OPERATOR) -> APIKey:
        """Make a key available, whatever state it is in: an operator's word counts. One audit entry a step."""

        def available(key: APIKey) -> KeyChange:
            return move_along(key, KeyState.Available, now=_now(), reason=reason, actor=actor)

        await self._changed(key_id, available)
        return await self._known(key_id)

    async def probe_key(self, key_id: str, *, actor: str = OPERATOR) -> KeyProbe:
        """Ask the provider's free endpoint whether the key works, and act on the answer. Costs nothing.

        It works: an invalid key is available again. It is refused: the key is invalid. No answer, or a key that an
        operator disabled: nothing changes. Quota is not spoken of: an exhausted key stays so.

        Raises:
            InvalidRequestError: the key is unknown, its provider is not registered here, or it was revoked or rotated
                meanwhile; nothing was changed.
            EncryptionError: it cannot be opened here.
        """
        key = await self._stored(key_id)
        provider = self._catalogue.providers.get(key.provider_id)
        if provider is None:
            raise InvalidRequestError(f"provider {key.provider_id!r} of key {key_id} is not registered here")
        text = self._vault().decrypt(key.encrypted_material, key_id=key_id)
        started = time.perf_counter()
        works, message = await ask(provider.adapter, KeyMaterial(text, key_id=key_id, metadata=key.metadata))
        latency_ms = int((time.perf_counter() - started) * 1000)
        state = key.state
        verdict = verdict_of(key.state, works)
        if verdict is not None:
            entry = await self.update_key_state(
                key_id, verdict, message, actor=actor, generation=key.generation
            )  # an unknown key by now is an error: never a word about a deleted one
            state = entry.to_state or state
        return KeyProbe(
            key_id=key_id, works=works, state=state, checked_at=_now(), latency_ms=latency_ms, message=message
        )

    async def edit_quotas(
        self, key_id: str, edit: Callable[[tuple[Quota, ...]], tuple[Quota, ...]], reason: str, *, actor: str = OPERATOR
    ) -> APIKey:
        """Change a key's own quotas; they are in force when this returns, and within a second everywhere.

        Raises:
            InvalidRequestError: the key is unknown, or has more limits than one lane can count.
        """

        def counting_otherwise(key: APIKey) -> KeyChange | None:
            changed = edited(key, {"quotas": edit(key.quotas)})
            if changed.quotas == key.quotas:
                return None
            self._lanes.check_key(routed(changed, "", changed.routing), changed.routing)
            return KeyChange(key=changed, transitions=(noted(key, now=_now(), reason=reason, actor=actor),))

        change = await self._store.change_key(key_id, _if_known(key_id, counting_otherwise))
        self._tell(change)
        await self._ring.refresh_keys([key_id])
        return await self._stored(key_id)

    # --- material ------------------------------------------------------------------------------------------------

    async def rotate_key(self, old_key_id: str, new_key_material: str, *, actor: str = OPERATOR) -> APIKey:
        """Give a key new material under its old id; requests under way finish with the old.

        The material that it has already changes nothing.

        Raises:
            InvalidRequestError: the key is unknown, or another key has that material.
            KeyRegistrationError: the material cannot be a key, or there is no master key to seal it with.
        """
        material = check_material(new_key_material)
        key = await self._stored(old_key_id)
        derived = derive_key_id(material, provider_id=key.provider_id)
        taken, retired = await self._registration.id_of(material, key.provider_id)
        if taken != old_key_id and not retired and await self._store.get_key(taken) is not None:
            raise InvalidRequestError(f"that material is key {taken}; revoke it first", field="key_material")
        vault, old = self._vault(), ""

        def rotate(stored: APIKey) -> KeyChange | None:
            nonlocal old
            old = opened(vault, stored) or ""  # what cannot be opened any more can still be replaced
            if old == material:
                return None
            sealed = vault.encrypt(material, key_id=old_key_id)
            rotated = edited(stored, {"encrypted_material": sealed, "generation": stored.generation + 1})
            entries = [noted(rotated, now=rotated.updated_at, reason="rotated", actor=actor)]
            if rotated.state is KeyState.Invalid:
                rotated, entry = move(rotated, KeyState.Available, now=_now(), reason="rotated", actor=actor)
                entries.append(entry)
            return KeyChange(key=rotated, transitions=tuple(entries))

        async with self._ring.turn:
            change = await self._store.change_key(old_key_id, _if_known(old_key_id, rotate))
            if change is None or change.key is None:
                return await self._known(old_key_id)
            if old:
                before = derive_key_id(old, provider_id=key.provider_id)
                await self._registration.save_alias(before, old_key_id, retired=True)
            await self._registration.save_alias(derived, old_key_id, retired=False)
            await self._ring.adopt(change.key, material, change.key.routing)
        self._tell(change)
        return await self._counted(change.key)

    async def revoke_key(self, key_id: str, reason: str = "", *, actor: str = OPERATOR) -> None:
        """Forget a key. Requests under way with it end as they do; no process routes a new one to it."""
        if not await self.revoke_keys([key_id], reason, actor=actor):
            raise InvalidRequestError(f"no key {key_id!r}", field="key_id")

    async def revoke_keys(self, key_ids: Sequence[str], reason: str = "", *, actor: str = OPERATOR) -> list[str]:
        """`revoke_key` for each of many; those that there were."""
        return await self._registration.revoke(key_ids, reason, actor=actor)

    async def reencrypt(self) -> int:
        """Put every stored key under the first master key; how many that changed. After it the others may go.

        Raises:
            EncryptionError: a key is sealed under a master key that is not configured here; it names the key. What
                could be opened was resealed.
        """
        done, failed = 0, None
        keys: list[APIKey] = await self._store.query_state(StateQuery("APIKey"))
        for key in keys:
            try:
                done += await self._ring.reseal(key.id)
            except EncryptionError as exc:
                failed = exc
        if failed is not None:
            raise failed
        return done

    # --- the rim -------------------------------------------------------------------------------------------------

    async def _changed(self, key_id: str, change: Callable[[APIKey], KeyChange]) -> KeyChange:
        """Change a stored key's state, here at once and elsewhere within a second."""
        made = await self._store.change_key(key_id, _if_known(key_id, change))
        assert made is not None
        if made.key is not None:
            self._ring.set_state(made.key)
        self._tell(made)
        return made

    def _tell(self, change: KeyChange | None) -> None:
        for transition in change.transitions if change is not None else ():
            self._announce(transition)

    async def _stored(self, key_id: str) -> APIKey:
        return _known_as(key_id, await self._store.get_key(key_id))

    async def _known(self, key_id: str) -> APIKey:
        return await self._counted(await self._stored(key_id))


def _known_as(key_id: str, key: APIKey | None) -> APIKey:
    if key is None:
        raise InvalidRequestError(f"no key {key_id!r}", field="key_id")
    return key


def _if_known(key_id: str, change: Callable[[APIKey], KeyChange | None]) -> KeyDecision:
    return lambda stored: change(_known_as(key_id, stored))


def _state(told: KeyState | str) -> KeyState:
    state = told if isinstance(told, KeyState) else KeyState.lookup(told) if isinstance(told, str) else None
    if state is None:
        raise InvalidRequestError(f"must be one of {', '.join(KeyState)}", field="state")
    return state


def _now() -> datetime:
    return datetime.now(UTC)
