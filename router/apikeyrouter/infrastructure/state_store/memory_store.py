"""Entities in this process. Nothing survives it; nothing is shared with another."""

import asyncio
import itertools
import threading
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from apikeyrouter.domain.components.explaining import decision_of
from apikeyrouter.domain.interfaces.state_store import (
    KEY,
    Change,
    KeyDecision,
    StateQuery,
    StateStore,
    StoredKeys,
    keys_notice,
)
from apikeyrouter.domain.models.api_key import APIKey, KeyChange, StateTransition
from apikeyrouter.domain.models.call import Facts
from apikeyrouter.domain.models.policy import Policy
from apikeyrouter.domain.models.quota_state import QuotaState, TimeWindow
from apikeyrouter.domain.models.routing_decision import RoutingDecision
from apikeyrouter.infrastructure.state_store.caps import Caps
from apikeyrouter.infrastructure.state_store.codec import check_kind, decode_document, encode_document

__all__ = ["InMemoryStateStore"]

NOTES_MAX = 100_000
"""How many notes are kept; beyond it the oldest go before their time."""
NOTICES_MAX = 10_000
"""How many notices wait for a slow watcher; beyond it the oldest are dropped and it is told "anything changed"."""


class InMemoryStateStore(StateStore):
    """The default store. Safe to use from several threads and event loops."""

    def __init__(self, *, max_decisions: int | None = None, max_transitions: int | None = None) -> None:
        self.caps = Caps(max_decisions, max_transitions)
        self._lock = threading.RLock()
        self._keys: dict[str, APIKey] = {}
        self._marks: dict[str, int] = {}
        self._changes = itertools.count()
        self._quotas: dict[tuple[str, TimeWindow | None], QuotaState] = {}
        self._decisions: deque[RoutingDecision | Facts] = deque()
        self._facts: deque[Facts] = deque()
        self._transitions: deque[StateTransition] = deque()
        self._documents: dict[str, dict[str, str]] = {}
        self._notes: dict[tuple[str, str], tuple[float, str]] = {}
        self._counts: dict[str, Counter[str]] = {}
        self._version = 0
        self._watchers: set[_Watcher] = set()

    async def save_key(self, key: APIKey) -> None:
        """Save or update a key."""
        with self._lock:
            self._keep(key)
            self._changed(KEY, key.id)

    async def get_key(self, key_id: str) -> APIKey | None:
        """A copy of the key, or None."""
        with self._lock:
            found = self._keys.get(key_id)
        return None if found is None else found.model_copy(deep=True)

    async def delete_key(self, key_id: str) -> bool:
        """Forget a key and its quota states."""
        with self._lock:
            found = self._forget(key_id)
            if found:
                self._changed(KEY, key_id)
            return found

    async def change_key(self, key_id: str, decide: KeyDecision) -> KeyChange | None:
        """Read, decide and write in one step."""
        return (await self.change_keys({key_id: decide})).get(key_id)

    async def change_keys(
        self, decisions: Mapping[str, KeyDecision], marks: dict[str, int] | None = None
    ) -> dict[str, KeyChange]:
        """The same for many, and one notice of all."""
        changes: dict[str, KeyChange] = {}
        with self._lock:
            try:
                for key_id, decide in decisions.items():
                    change = self._change(key_id, decide)
                    if change is not None:
                        changes[key_id] = change
            finally:
                if changes:
                    self._changed(*keys_notice(list(changes)))
            if marks is not None:
                marks.update({key_id: self._marks[key_id] for key_id in changes.keys() & self._marks.keys()})
        return changes

    def _change(self, key_id: str, decide: KeyDecision) -> KeyChange | None:
        found = self._keys.get(key_id)
        change = decide(None if found is None else found.model_copy(deep=True))
        if change is None or (found is None and change.key is None):
            return None
        if change.key is None:
            self._forget(key_id)
        else:
            self._keep(change.key)
        for transition in change.transitions:
            _append(self._transitions, transition, self.caps.transitions)
        return change

    async def read_keys(self, seen: Mapping[str, int], ids: Sequence[str] | None = None) -> StoredKeys:
        """The keys (of these ids) that are not as they were seen."""
        with self._lock:
            wanted = self._marks if ids is None else [key_id for key_id in ids if key_id in self._marks]
            marks = {key_id: self._marks[key_id] for key_id in wanted}
            changed = [self._keys[key_id] for key_id, mark in marks.items() if seen.get(key_id) != mark]
        changed.sort(key=lambda key: key.created_at)
        return StoredKeys(marks=marks, changed=[key.model_copy(deep=True) for key in changed])

    async def save_quota_state(self, state: QuotaState) -> None:
        """Save a key's quota state for its window."""
        with self._lock:
            self._quotas.pop((state.key_id, state.time_window), None)
            self._quotas[state.key_id, state.time_window] = state

    async def get_quota_state(self, key_id: str, time_window: TimeWindow | None = None) -> QuotaState | None:
        """A key's quota state: of that window, else the one saved last."""
        with self._lock:
            if time_window is not None:
                return self._quotas.get((key_id, time_window))
            return next((state for (of, _), state in reversed(self._quotas.items()) if of == key_id), None)

    async def save_routing_decision(self, decision: RoutingDecision) -> None:
        """Append a decision; the oldest beyond `max_decisions` go."""
        with self._lock:
            _append(self._decisions, decision, self.caps.decisions)

    def note_facts(self, facts: Facts) -> bool:
        """Take the facts of a decision; it becomes one when it is asked for."""
        with self._lock:
            _append(self._decisions, facts, self.caps.decisions)
            _append(self._facts, facts, self.caps.decisions)
        return True

    async def recent_facts(self) -> list[Facts]:
        """The facts that were noted, of the last `max_decisions`."""
        with self._lock:
            return list(self._facts)

    async def save_state_transition(self, transition: StateTransition) -> None:
        """Append a transition; the oldest beyond `max_transitions` go."""
        with self._lock:
            _append(self._transitions, transition, self.caps.transitions)

    async def query_state(self, query: StateQuery) -> list[Any]:
        """Entities that match, oldest first."""
        with self._lock:
            found = [entity for entity in self._all(query.entity_type) if query.matches(entity)]
        return [entity.model_copy(deep=True) for entity in found[-query.limit :]]

    async def save_document(self, kind: str, document_id: str, document: Mapping[str, Any]) -> None:
        """Save a small JSON document."""
        text = encode_document(document)
        with self._lock:
            self._documents.setdefault(check_kind(kind), {})[document_id] = text
            self._changed(kind, document_id)

    async def get_document(self, kind: str, document_id: str) -> dict[str, Any] | None:
        """A document, or None."""
        with self._lock:
            text = self._documents.get(check_kind(kind), {}).get(document_id)
        return None if text is None else decode_document(text, where=f"{kind} {document_id}")

    async def list_documents(self, kind: str) -> dict[str, dict[str, Any]]:
        """All documents of a kind, by id."""
        with self._lock:
            texts = dict(self._documents.get(check_kind(kind), {}))
        return {name: decode_document(text, where=f"{kind} {name}") for name, text in texts.items()}

    async def delete_document(self, kind: str, document_id: str) -> bool:
        """Forget a document; whether there was one."""
        with self._lock:
            if self._documents.get(check_kind(kind), {}).pop(document_id, None) is None:
                return False
            self._changed(kind, document_id)
            return True

    async def save_note(self, kind: str, note_id: str, note: Mapping[str, Any], *, seconds: int) -> None:
        """Save a small JSON document for a while; the oldest go when there are too many."""
        with self._lock:
            self._keep_note(kind, note_id, note, seconds)

    async def get_note(self, kind: str, note_id: str) -> dict[str, Any] | None:
        """A note, or None."""
        with self._lock:
            return self._note(kind, note_id)

    async def replace_note(
        self, kind: str, note_id: str, known: Mapping[str, Any] | None, note: Mapping[str, Any], *, seconds: int
    ) -> bool:
        """Save a note if it still is as it was read."""
        with self._lock:
            if self._note(kind, note_id) != known:
                return False
            self._keep_note(kind, note_id, note, seconds)
            return True

    async def add_counts(self, kind: str, counts: Mapping[str, int]) -> None:
        """Add to counters of a kind."""
        with self._lock:
            self._counts.setdefault(check_kind(kind), Counter()).update(counts)

    async def get_counts(self, kind: str, ids: Sequence[str]) -> dict[str, int]:
        """Those counters that were ever added to."""
        with self._lock:
            found = self._counts.get(check_kind(kind), Counter())
            return {name: found[name] for name in ids if name in found}

    async def version(self) -> int:
        """How many changes there were."""
        return self._version

    async def watch(self) -> AsyncIterator[Change]:
        """Changes from now on; ends when the generator is closed."""
        watcher = _Watcher(asyncio.get_running_loop())
        with self._lock:
            self._watchers.add(watcher)
        try:
            while True:
                yield await watcher.notices.get()
        finally:
            with self._lock:
                self._watchers.discard(watcher)

    def _forget(self, key_id: str) -> bool:
        for window in (*TimeWindow, None):
            self._quotas.pop((key_id, window), None)
        self._marks.pop(key_id, None)
        return self._keys.pop(key_id, None) is not None

    def _keep(self, key: APIKey) -> None:
        self._keys[key.id] = key.model_copy(deep=True)
        self._marks[key.id] = next(self._changes)

    def _note(self, kind: str, note_id: str) -> dict[str, Any] | None:
        until, text = self._notes.get((check_kind(kind), note_id), (0.0, ""))
        return decode_document(text, where=f"{kind} {note_id}") if time.monotonic() < until else None

    def _keep_note(self, kind: str, note_id: str, note: Mapping[str, Any], seconds: int) -> None:
        text = encode_document(note)
        self._notes.pop((check_kind(kind), note_id), None)
        self._notes[kind, note_id] = (time.monotonic() + seconds, text)
        if len(self._notes) > NOTES_MAX:
            del self._notes[next(iter(self._notes))]

    def _all(self, entity_type: str) -> list[Any]:
        match entity_type:
            case "APIKey":
                return sorted(self._keys.values(), key=lambda key: key.created_at)
            case "QuotaState":
                return list(self._quotas.values())
            case "RoutingDecision":
                decided = [decision_of(each) if isinstance(each, Facts) else each for each in self._decisions]
                self._decisions = deque(decided)
                return decided
            case "StateTransition":
                return list(self._transitions)
        texts = self._documents.get("policy", {})
        return [Policy.parse(decode_document(text, where=f"policy {name}")) for name, text in texts.items()]

    def _changed(self, kind: str, changed_id: str) -> None:
        self._version += 1
        change = Change(version=self._version, kind=kind, id=changed_id)
        for watcher in tuple(self._watchers):
            if not watcher.tell(change):
                self._watchers.discard(watcher)


def _append(entities: "deque[Any]", entity: object, kept: int) -> None:
    entities.append(entity)
    while len(entities) > kept:
        entities.popleft()


class _Watcher:
    """One `watch()` and the loop that it runs on."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.notices: asyncio.Queue[Change] = asyncio.Queue()

    def tell(self, change: Change) -> bool:
        """Pass a change on, from any thread. False when the watcher's loop is closed."""
        try:
            self._loop.call_soon_threadsafe(self._put, change)
        except RuntimeError:
            return False
        return True

    def _put(self, change: Change) -> None:
        if self.notices.qsize() >= NOTICES_MAX:
            while not self.notices.empty():
                self.notices.get_nowait()
            change = Change(version=change.version)
        self.notices.put_nowait(change)
