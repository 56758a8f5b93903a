"""The entity store port: keys, quota states, decisions, transitions, policies and small documents. No counting."""

import json
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from apikeyrouter.domain.models.api_key import APIKey, KeyChange, KeyState, StateTransition
from apikeyrouter.domain.models.call import Facts
from apikeyrouter.domain.models.policy import Policy
from apikeyrouter.domain.models.quota_state import QuotaState, TimeWindow
from apikeyrouter.domain.models.routing_decision import RoutingDecision
from apikeyrouter.domain.models.system_error import InvalidRequestError

__all__ = [
    "ENTITY_TYPES", "KEY", "KEYS", "KEYS_PAGE", "Change", "KeyDecision", "StateQuery", "StateStore", "StoredKeys",
    "keys_notice",
]  # fmt: skip

ENTITY_TYPES = ("APIKey", "QuotaState", "RoutingDecision", "StateTransition", "Policy")
"""What `query_state` finds."""
KEY, KEYS = "key", "keys"
"""Kinds of notices: one key has changed, or several."""
KEYS_PAGE = 128
"""Keys that are read or changed in one round trip; what else there is to do gets its turn between two."""
QUERY_LIMIT_MAX = 100_000
"""Most entities one query returns."""
KeyDecision = Callable[[APIKey | None], KeyChange | None]
"""From the key that is stored (None: none is) to what becomes of it (None: nothing changes). Pure: it may be asked
again, when another process was faster."""


def _one_or_many(value: str | tuple[str, ...] | list[str] | None) -> tuple[str, ...] | None:
    return (value,) if isinstance(value, str) else None if value is None else tuple(value)


@dataclass(frozen=True, slots=True, init=False)
class StateQuery:
    """Filters, all of which must hold; what is None filters nothing.

    `entity_type` in any case, with or without underscores. `ids`: of the entity itself; `key_ids`, `provider_ids`: what
    it speaks of. `state`: a key's state, a transition's new state or a quota's capacity state. `since` ≤ time < `until`
    (aware). `limit`: the newest so many; results come oldest first.
    """

    entity_type: str
    ids: tuple[str, ...] | None
    key_ids: tuple[str, ...] | None
    provider_ids: tuple[str, ...] | None
    state: str | None
    since: datetime | None
    until: datetime | None
    limit: int

    def __init__(
        self,
        entity_type: str,
        *,
        ids: str | tuple[str, ...] | list[str] | None = None,
        key_id: str | tuple[str, ...] | list[str] | None = None,
        provider_id: str | tuple[str, ...] | list[str] | None = None,
        state: KeyState | str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        limit: int = QUERY_LIMIT_MAX,
    ) -> None:
        if isinstance(limit, bool) or not 1 <= limit <= QUERY_LIMIT_MAX:
            raise InvalidRequestError(f"must be between 1 and {QUERY_LIMIT_MAX}", field="limit")
        put = object.__setattr__
        put(self, "entity_type", _entity_type(entity_type))
        put(self, "ids", _one_or_many(ids))
        put(self, "key_ids", _one_or_many(key_id))
        put(self, "provider_ids", _one_or_many(provider_id))
        put(self, "state", None if state is None else str(state).casefold())
        put(self, "since", _aware(since, "since"))
        put(self, "until", _aware(until, "until"))
        put(self, "limit", limit)

    @property
    def takes_all(self) -> bool:
        """Whether nothing is filtered: only the newest `limit` are asked for."""
        told = (self.ids, self.key_ids, self.provider_ids, self.state, self.since, self.until)
        return all(each is None for each in told)

    def matches(self, entity: object) -> bool:
        """Whether one entity (of the right type) passes the filters."""
        facts = _Facts.of(entity)
        return (
            (self.ids is None or facts.id in self.ids)
            and (self.key_ids is None or facts.key_id in self.key_ids)
            and (self.provider_ids is None or facts.provider_id in self.provider_ids)
            and (self.state is None or facts.state == self.state)
            and (self.since is None or (facts.at is not None and facts.at >= self.since))
            and (self.until is None or (facts.at is not None and facts.at < self.until))
        )


def _entity_type(name: str) -> str:
    folded = name.replace("_", "").casefold()
    found = next((known for known in ENTITY_TYPES if known.casefold() == folded), None)
    if found is None:
        raise InvalidRequestError(f"must be one of {', '.join(ENTITY_TYPES)}", field="entity_type")
    return found


def _aware(moment: datetime | None, field: str) -> datetime | None:
    if moment is not None and moment.tzinfo is None:
        raise InvalidRequestError("must have a time zone", field=field)
    return moment


@dataclass(frozen=True, slots=True, kw_only=True)
class _Facts:
    """What the filters ask of an entity."""

    id: str
    key_id: str | None = None
    provider_id: str | None = None
    state: str | None = None
    at: datetime | None = None

    @classmethod
    def of(cls, entity: object) -> "_Facts":
        match entity:
            case APIKey():
                return cls(
                    id=entity.id, key_id=entity.id, provider_id=entity.provider_id,
                    state=entity.state.value, at=entity.created_at,
                )  # fmt: skip
            case QuotaState():
                return cls(
                    id=entity.key_id, key_id=entity.key_id, state=entity.capacity_state.value, at=entity.updated_at
                )
            case RoutingDecision():
                return cls(
                    id=entity.id, key_id=entity.selected_key_id,
                    provider_id=entity.selected_provider_id, at=entity.timestamp,
                )  # fmt: skip
            case StateTransition():
                state = None if entity.to_state is None else entity.to_state.value
                return cls(id=entity.entity_id, key_id=entity.entity_id, state=state, at=entity.timestamp)
            case Policy():
                return cls(id=entity.id)
        raise TypeError(f"a state store does not hold {type(entity).__name__}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Something was written by somebody. `version` grows with every write; `kind` and `id` are "" when only the
    version is known, and then anything may have changed. Of several keys (`KEYS`), `id` has all ids as a JSON list."""

    version: int
    kind: str = ""
    id: str = ""

    @property
    def key_ids(self) -> list[str]:
        """The keys that have changed, where the notice is of keys."""
        return [self.id] if self.kind == KEY else json.loads(self.id) if self.kind == KEYS else []


def keys_notice(key_ids: Sequence[str]) -> tuple[str, str]:
    """Kind and id of the notice that these keys have changed."""
    return (KEY, key_ids[0]) if len(key_ids) == 1 else (KEYS, json.dumps(list(key_ids)))


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredKeys:
    """What keys there are. `marks`, by id: the same mark means the same key as when it was read before. `changed`:
    those whose mark is another than whoever asked has seen, oldest first."""

    marks: Mapping[str, int]
    changed: list[APIKey]


class StateStore(ABC):
    """Keeps entities. The documented methods are abstract; the rest has defaults that a user's own store may keep.

    Errors of every method: StateStoreUnavailableError when the backend cannot be reached. Saving replaces what had
    the same id; the last writer wins. Decisions and transitions are capped: the oldest go first.
    """

    @abstractmethod
    async def save_key(self, key: APIKey) -> None:
        """Save or update a key, its ciphertext included."""

    @abstractmethod
    async def get_key(self, key_id: str) -> APIKey | None:
        """A key, or None."""

    @abstractmethod
    async def save_quota_state(self, state: QuotaState) -> None:
        """Save a key's quota state for its time window."""

    @abstractmethod
    async def get_quota_state(self, key_id: str, time_window: TimeWindow | None = None) -> QuotaState | None:
        """A key's quota state: of that window, else the one saved last."""

    @abstractmethod
    async def save_routing_decision(self, decision: RoutingDecision) -> None:
        """Append a decision."""

    @abstractmethod
    async def save_state_transition(self, transition: StateTransition) -> None:
        """Append a transition."""

    @abstractmethod
    async def query_state(self, query: StateQuery) -> list[Any]:
        """Entities that match, oldest first."""

    async def delete_key(self, key_id: str) -> bool:
        """Forget a key and its quota states; whether there was one. Default: refused."""
        raise NotImplementedError(f"{type(self).__name__} cannot delete keys")

    async def change_key(self, key_id: str, decide: KeyDecision) -> KeyChange | None:
        """Read a key, decide, and write what was decided with its audit trail: in one step, whoever else writes.

        Returns what was decided, None when nothing was to change. What `decide` raises is passed on; then nothing was
        written. Default: one step after the other, which is enough for a store of one process.
        """
        change = decide(await self.get_key(key_id))
        if change is None:
            return None
        if change.key is None:
            await self.delete_key(key_id)
        else:
            await self.save_key(change.key)
        for transition in change.transitions:
            await self.save_state_transition(transition)
        return change

    async def change_keys(
        self, decisions: Mapping[str, KeyDecision], marks: dict[str, int] | None = None
    ) -> dict[str, KeyChange]:
        """`change_key` for many, by id; what was changed. Each is changed in one step, all together are not.

        `marks`: takes in those of what was written (as `read_keys` tells them). Default: one by one.
        """
        changes: dict[str, KeyChange] = {}
        for key_id, decide in decisions.items():
            change = await self.change_key(key_id, decide)
            if change is not None:
                changes[key_id] = change
        return changes

    async def read_keys(self, seen: Mapping[str, int], ids: Sequence[str] | None = None) -> StoredKeys:
        """The keys (of these ids) that are not as they were seen. Default: all are read and compared."""
        found = await self.query_state(StateQuery("APIKey", ids=None if ids is None else tuple(ids)))
        marks = {key.id: hash(key.model_dump_json()) for key in found}
        return StoredKeys(marks=marks, changed=[key for key in found if seen.get(key.id) != marks[key.id]])

    async def save_routing_decisions(self, decisions: list[RoutingDecision]) -> None:
        """Append many. Default: one by one."""
        for decision in decisions:
            await self.save_routing_decision(decision)

    def note_facts(self, facts: Facts) -> bool:
        """Take the facts of a decision, which becomes one when somebody asks for it; whether this store does that.

        Never waits. Default: False; then decisions are saved by `save_routing_decisions`, in batches.
        """
        return False

    async def recent_facts(self) -> list[Facts] | None:
        """The facts that were noted lately, by every process, oldest first. Default: None, this store tells none."""
        return None

    async def flush(self) -> None:  # noqa: B027 (a default)
        """Write what was noted. Default: there is nothing."""

    def abandon(self) -> None:  # noqa: B027 (a default)
        """Forget what was noted: after a fork it is the parent's. Default: there is nothing."""

    async def save_policy(self, policy: Policy) -> None:
        """Save or update a policy. Default: as a document."""
        await self.save_document("policy", policy.id, policy.model_dump(mode="json"))

    async def get_policy(self, policy_id: str) -> Policy | None:
        """A policy, or None. Default: from the documents."""
        found = await self.get_document("policy", policy_id)
        return None if found is None else Policy.parse(found)

    async def delete_policy(self, policy_id: str) -> bool:
        """Forget a policy; whether there was one."""
        return await self.delete_document("policy", policy_id)

    async def save_document(self, kind: str, document_id: str, document: Mapping[str, Any]) -> None:
        """Save a small JSON document, e.g. a learned token ratio. Default: refused."""
        raise NotImplementedError(f"{type(self).__name__} keeps no documents")

    async def get_document(self, kind: str, document_id: str) -> dict[str, Any] | None:
        """A document, or None. Default: None."""
        return None

    async def get_documents(self, kind: str, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Those of these documents that there are, by id. Default: one by one."""
        found = {document_id: await self.get_document(kind, document_id) for document_id in ids}
        return {document_id: document for document_id, document in found.items() if document is not None}

    async def save_documents(self, kind: str, documents: Mapping[str, Mapping[str, Any]]) -> None:
        """Save many documents of a kind. Default: one by one."""
        for document_id, document in documents.items():
            await self.save_document(kind, document_id, document)

    async def list_documents(self, kind: str) -> dict[str, dict[str, Any]]:
        """All documents of a kind, by id. Default: none."""
        return {}

    async def delete_document(self, kind: str, document_id: str) -> bool:
        """Forget a document; whether there was one. Default: False."""
        return False

    async def save_note(self, kind: str, note_id: str, note: Mapping[str, Any], *, seconds: int) -> None:
        """Save a small JSON document that goes by itself after so many seconds; nobody is told. Default: refused."""
        raise NotImplementedError(f"{type(self).__name__} keeps no notes")

    async def get_note(self, kind: str, note_id: str) -> dict[str, Any] | None:
        """A note, or None. Default: None."""
        return None

    async def replace_note(
        self, kind: str, note_id: str, known: Mapping[str, Any] | None, note: Mapping[str, Any], *, seconds: int
    ) -> bool:
        """Save a note if the one that is kept still is `known`, as it was read (None: there is none); whether it was.

        Default: it is read and saved in two steps, between which another process may save its own.
        """
        if await self.get_note(kind, note_id) != known:
            return False
        await self.save_note(kind, note_id, note, seconds=seconds)
        return True

    async def add_counts(self, kind: str, counts: Mapping[str, int]) -> None:  # noqa: B027 (a default)
        """Add to counters of a kind, e.g. failures by key id. Default: not kept."""

    async def get_counts(self, kind: str, ids: Sequence[str]) -> dict[str, int]:
        """Those counters that were ever added to. Default: none."""
        return {}

    async def version(self) -> int:
        """A number that grows with every change of a key, policy or document. Default: 0."""
        return 0

    async def watch(self) -> AsyncIterator[Change]:
        """Changes from now on, this process's own included, within a second. Default: none, ends at once."""
        nothing: tuple[Change, ...] = ()
        for change in nothing:
            yield change

    async def health_check(self) -> bool:
        """True when the backend answers. Errors: StateStoreUnavailableError saying what to do."""
        return True

    async def aclose(self) -> None:  # noqa: B027 (a default)
        """Let go of connections. The store may be used again; it connects anew."""
