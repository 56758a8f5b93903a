"""Entities in Redis or Valkey, shared by every process of a namespace. The keys are described in docs/redis-keys.md."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, TypeVar, cast

from apikeyrouter.domain.components.explaining import decision_of
from apikeyrouter.domain.interfaces.state_store import (
    KEY,
    KEYS_PAGE,
    Change,
    KeyDecision,
    StateQuery,
    StateStore,
    StoredKeys,
    keys_notice,
)
from apikeyrouter.domain.models.api_key import APIKey, KeyChange, StateTransition
from apikeyrouter.domain.models.call import Facts
from apikeyrouter.domain.models.edge import EdgeModel
from apikeyrouter.domain.models.policy import Policy
from apikeyrouter.domain.models.quota_state import QuotaState, TimeWindow
from apikeyrouter.domain.models.routing_decision import RoutingDecision
from apikeyrouter.domain.models.system_error import StateStoreError
from apikeyrouter.infrastructure.state_store.caps import Caps
from apikeyrouter.infrastructure.state_store.codec import (
    check_kind,
    check_namespace,
    decode,
    decode_document,
    decode_key,
    encode,
    encode_document,
    quota_name,
    read_facts,
    still_readable,
    write_facts,
)
from apikeyrouter.infrastructure.state_store.noted import BATCH_MAX, Noted
from apikeyrouter.infrastructure.state_store.redis_connection import (
    RedisClients,
    check_redis_url,
    mapped_errors,
    open_client,
    redacted_url,
)
from apikeyrouter.infrastructure.state_store.redis_watch import watch_changes

if TYPE_CHECKING:
    from redis.asyncio import Redis

__all__ = ["RedisStateStore"]

NAMESPACE_DEFAULT = "apikeyrouter"
CHANGE_ROUNDS_MAX = 32
"""Tries to change a key that others keep changing."""
_FIELD, _FACTS = "e", "f"
"""The one field of a stream entry: the entity as JSON, or a decision's facts."""
_CHANGE_KEYS = """
local at, written, late = 2, false, {}
while ARGV[at] do
  local id, text = ARGV[at], ARGV[at + 2]
  local trail = at + 5 + ARGV[at + 3]
  local next_at = trail + ARGV[at + 4]
  if (redis.call('HGET', KEYS[1], id) or '') ~= ARGV[at + 1] then
    late[#late + 1] = id
  else
    written = true
    if text == '' then
      redis.call('HDEL', KEYS[1], id)
      for i = at + 5, trail - 1 do redis.call('HDEL', KEYS[4], ARGV[i]) end
    else
      redis.call('HSET', KEYS[1], id, text)
    end
    for i = trail, next_at - 1 do redis.call('XADD', KEYS[3], 'MAXLEN', ARGV[1], '*', 'e', ARGV[i]) end
  end
  at = next_at
end
return {written and redis.call('INCR', KEYS[2]) or 0, unpack(late)}
"""
"""Writes keys with their audit trails, each if it still is what was read: the new version (0: nothing was written), and
the ids of those that are not what was read.

KEYS keys, version, transitions, quota. ARGV cap of the trail; then for each key: id, text read ('': none), text to
write ('': forget), count of quota fields, count of the trail's entries, those fields, those entries.
"""
_REPLACE_NOTE = """
if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[3])
return 1
"""
"""Writes a note if it still is what was read. KEYS note. ARGV text read ('': none), text to write, seconds to live."""

M = TypeVar("M", bound=EdgeModel)


class RedisStateStore(StateStore):
    """A store that survives and is shared.

    `redis_url`: redis://, rediss://, unix://, redis+sentinel://, redis+cluster://. `namespace` separates deployments
    on one server. Every event loop and every forked process gets connections of its own. Caps that are not given
    follow the router's settings.
    """

    def __init__(
        self,
        redis_url: str = "redis://localhost:6379",
        namespace: str = NAMESPACE_DEFAULT,
        *,
        max_decisions: int | None = None,
        max_transitions: int | None = None,
    ) -> None:
        self.redis_url = check_redis_url(redis_url)
        self.namespace = check_namespace(namespace)
        self.caps = Caps(max_decisions, max_transitions)
        self._prefix = f"{namespace}:e:{{e}}:"
        self._clients = RedisClients(lambda: open_client(redis_url))
        self._noted = Noted[bytes](self.caps, self._add_decisions)

    async def save_key(self, key: APIKey) -> None:
        """Save or update a key, and tell the other processes."""
        await self._put("keys", KEY, {key.id: encode(key)})

    async def get_key(self, key_id: str) -> APIKey | None:
        """A key, or None."""
        return await self._get("keys", key_id, APIKey)

    async def delete_key(self, key_id: str) -> bool:
        """Forget a key and its quota states, and tell the other processes."""
        with self._errors():
            await self._redis.hdel(self._at("quota"), *_quota_fields(key_id))
        return await self._drop("keys", KEY, key_id)

    async def change_key(self, key_id: str, decide: KeyDecision) -> KeyChange | None:
        """Read, decide and write in one step; decided anew while other processes are faster.

        Raises:
            StateStoreError: they were faster CHANGE_ROUNDS_MAX times.
        """
        return (await self.change_keys({key_id: decide})).get(key_id)

    async def change_keys(
        self, decisions: Mapping[str, KeyDecision], marks: dict[str, int] | None = None
    ) -> dict[str, KeyChange]:
        """The same for many, KEYS_PAGE in a step, each step told in one notice."""
        changes: dict[str, KeyChange] = {}
        for page in _pages(list(decisions)):
            left = page
            for _ in range(CHANGE_ROUNDS_MAX):
                left = await self._change(left, decisions, changes, {} if marks is None else marks)
                if not left:
                    break
            else:
                raise StateStoreError(f"key {left[0]} is being changed by too many others at once; try again")
        return changes

    async def _change(
        self, ids: Sequence[str], decisions: Mapping[str, KeyDecision], changes: dict[str, KeyChange],
        marks: dict[str, int],
    ) -> list[str]:  # fmt: skip
        """One try at a page: `changes` and `marks` take in what was changed; the ids that others changed meanwhile."""
        texts = await self._texts(ids)
        decided: dict[str, KeyChange] = {}
        words: list[Any] = [self.caps.transitions]
        written: dict[str, str] = {}
        for key_id in ids:
            read = texts.get(key_id, "")
            change = decisions[key_id](decode_key(read, key_id) if read else None)
            if change is None or (not read and change.key is None):
                continue
            decided[key_id] = still_readable(change)
            written[key_id] = "" if change.key is None else encode(change.key)
            fields = _quota_fields(key_id) if change.key is None else []
            trail = [encode(transition) for transition in change.transitions]
            words += (key_id, read, written[key_id], len(fields), len(trail), *fields, *trail)
        if not decided:
            return []
        names = [self._at(name) for name in ("keys", "version", "transitions", "quota")]
        with self._errors():
            version, *late = await cast("Any", self._redis).eval(_CHANGE_KEYS, len(names), *names, *words)
            done = [key_id for key_id in decided if key_id not in late]
            if done:
                await self._tell(int(version), *keys_notice(done))
        changes.update({key_id: decided[key_id] for key_id in done})
        marks.update({key_id: hash(written[key_id]) for key_id in done if written[key_id]})
        return list(late)

    async def read_keys(self, seen: Mapping[str, int], ids: Sequence[str] | None = None) -> StoredKeys:
        """The keys (of these ids) that are not as they were seen: only those are more than looked at."""
        texts: dict[str, str] = {}
        if ids is None:
            with self._errors():
                texts = cast("dict[str, str]", await self._redis.hgetall(self._at("keys")))
        for page in _pages(ids or ()):
            texts.update(await self._texts(page))
        marks = {key_id: hash(text) for key_id, text in texts.items()}
        changed: list[APIKey] = []
        for page in _pages([key_id for key_id, mark in marks.items() if seen.get(key_id) != mark]):
            changed += [decode_key(texts[key_id], key_id) for key_id in page]
            await asyncio.sleep(0)
        changed.sort(key=lambda key: key.created_at)
        return StoredKeys(marks=marks, changed=changed)

    async def _keys(self, ids: Sequence[str]) -> list[APIKey]:
        """Those of these keys that there are."""
        return [decode_key(text, key_id) for key_id, text in (await self._texts(ids)).items()]

    async def _texts(self, ids: Sequence[str]) -> dict[str, str]:
        """Those of these keys that there are, as they are written."""
        with self._errors():
            texts = cast("list[str | None]", await self._redis.hmget(self._at("keys"), list(ids)))
        return {key_id: text for key_id, text in zip(ids, texts, strict=True) if text is not None}

    async def save_quota_state(self, state: QuotaState) -> None:
        """Save a key's quota state for its window."""
        field = quota_name(state.key_id, state.time_window)
        with self._errors():
            await self._redis.hset(self._at("quota"), field, encode(state))

    async def get_quota_state(self, key_id: str, time_window: TimeWindow | None = None) -> QuotaState | None:
        """A key's quota state: of that window, else the one with the newest `updated_at`."""
        if time_window is not None:
            return await self._get("quota", quota_name(key_id, time_window), QuotaState)
        found = await self._get_many("quota", _quota_fields(key_id), QuotaState)
        return max(found, key=lambda state: state.updated_at, default=None)

    async def save_routing_decision(self, decision: RoutingDecision) -> None:
        """Append a decision; the oldest beyond `max_decisions` go."""
        await self._add_decisions([_FIELD + encode(decision)])

    async def save_routing_decisions(self, decisions: list[RoutingDecision]) -> None:
        """Append many, BATCH_MAX to a round trip."""
        for start in range(0, len(decisions), BATCH_MAX):
            batch = decisions[start : start + BATCH_MAX]
            await self._add_decisions([_FIELD + encode(decision) for decision in batch])

    def note_facts(self, facts: Facts) -> bool:
        """Take the facts of a decision, to be written by the next `flush`; of many, the newest `max_decisions`."""
        self._noted.add(_FACTS.encode() + write_facts(facts))
        return True

    async def recent_facts(self) -> list[Facts]:
        """The facts that were noted, of the last `max_decisions`, by every process."""
        name = self._at("decisions")
        texts = await self._decision_texts()
        return [read_facts(text[1:], where=name) for text in texts if text.startswith(_FACTS)]

    def abandon(self) -> None:
        """Forget what was noted: after a fork it is the parent's."""
        self._noted.clear()

    async def flush(self) -> None:
        """Write the decisions that were noted."""
        await self._noted.flush()

    async def save_state_transition(self, transition: StateTransition) -> None:
        """Append a transition; the oldest beyond `max_transitions` go."""
        await self._append("transitions", [transition], self.caps.transitions)

    async def query_state(self, query: StateQuery) -> list[Any]:
        """Entities that match, oldest first."""
        found: list[Any] = await self._all(query)
        return [entity for entity in found if query.matches(entity)][-query.limit :]

    async def save_document(self, kind: str, document_id: str, document: Mapping[str, Any]) -> None:
        """Save a small JSON document, and tell the other processes."""
        await self.save_documents(kind, {document_id: document})

    async def get_document(self, kind: str, document_id: str) -> dict[str, Any] | None:
        """A document, or None."""
        name = f"docs:{check_kind(kind)}"
        with self._errors():
            text = await self._redis.hget(self._at(name), document_id)
        return None if text is None else decode_document(text, where=self._at(name))

    async def get_documents(self, kind: str, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Those of these documents that there are, by id."""
        name = self._at(f"docs:{check_kind(kind)}")
        found: dict[str, dict[str, Any]] = {}
        for page in _pages(ids):
            with self._errors():
                texts = await self._redis.hmget(name, list(page))
            named = zip(page, texts, strict=True)
            found.update({each: decode_document(text, where=name) for each, text in named if text is not None})
        return found

    async def save_documents(self, kind: str, documents: Mapping[str, Mapping[str, Any]]) -> None:
        """Save documents of a kind, KEYS_PAGE in a step, each step told in one notice without an id."""
        for page in _pages(list(documents)):
            texts = {document_id: encode_document(documents[document_id]) for document_id in page}
            await self._put(f"docs:{check_kind(kind)}", kind, texts)

    async def list_documents(self, kind: str) -> dict[str, dict[str, Any]]:
        """All documents of a kind, by id."""
        name = self._at(f"docs:{check_kind(kind)}")
        with self._errors():
            texts = await self._redis.hgetall(name)
        return {str(document_id): decode_document(text, where=name) for document_id, text in texts.items()}

    async def delete_document(self, kind: str, document_id: str) -> bool:
        """Forget a document, and tell the other processes; whether there was one."""
        return await self._drop(f"docs:{check_kind(kind)}", kind, document_id)

    async def save_note(self, kind: str, note_id: str, note: Mapping[str, Any], *, seconds: int) -> None:
        """Save a small JSON document with a time to live; nobody is told."""
        name = self._at(f"note:{check_kind(kind)}:{note_id}")
        with self._errors():
            await self._redis.set(name, encode_document(note), ex=seconds)

    async def get_note(self, kind: str, note_id: str) -> dict[str, Any] | None:
        """A note, or None."""
        name = self._at(f"note:{check_kind(kind)}:{note_id}")
        with self._errors():
            text = await self._redis.get(name)
        return None if text is None else decode_document(text, where=name)

    async def replace_note(
        self, kind: str, note_id: str, known: Mapping[str, Any] | None, note: Mapping[str, Any], *, seconds: int
    ) -> bool:
        """Save a note if it still is as it was read, in one step."""
        name = self._at(f"note:{check_kind(kind)}:{note_id}")
        given = ("" if known is None else encode_document(known), encode_document(note), seconds)
        with self._errors():
            return bool(await cast("Any", self._redis).eval(_REPLACE_NOTE, 1, name, *given))

    async def add_counts(self, kind: str, counts: Mapping[str, int]) -> None:
        """Add to counters of a kind."""
        name = self._at(f"counts:{check_kind(kind)}")
        with self._errors():
            async with self._redis.pipeline(transaction=False) as pipe:
                for counted, number in counts.items():
                    pipe.hincrby(name, counted, number)
                await pipe.execute()

    async def get_counts(self, kind: str, ids: Sequence[str]) -> dict[str, int]:
        """Those counters that were ever added to."""
        if not ids:
            return {}
        with self._errors():
            found = await self._redis.hmget(self._at(f"counts:{check_kind(kind)}"), list(ids))
        return {name: int(number) for name, number in zip(ids, found, strict=True) if number is not None}

    async def version(self) -> int:
        """How many changes the namespace has seen."""
        with self._errors():
            return int(await self._redis.get(self._at("version")) or 0)

    async def watch(self) -> AsyncIterator[Change]:
        """Changes from now on, of every process. Notices come by pub/sub; the version is polled besides, so that a
        lost notice is made good within a second. Survives an outage of the server. Ends when the generator is closed.
        """
        async for change in watch_changes(self._clients.current, self._at("changes"), self.version):
            yield change

    async def health_check(self) -> bool:
        """True when the server answers and takes commands. Errors: StateStoreUnavailableError, StateStoreError."""
        with self._errors():
            await self._redis.ping()
            await self._redis.hexists(self._at("keys"), "")
        return True

    async def aclose(self) -> None:
        """Close the running loop's connections."""
        await self._clients.aclose()

    def __repr__(self) -> str:
        return f"<RedisStateStore {redacted_url(self.redis_url)} namespace={self.namespace}>"

    @property
    def _redis(self) -> "Redis":
        return self._clients.current()

    def _at(self, name: str) -> str:
        return self._prefix + name

    def _errors(self) -> AbstractContextManager[None]:
        return mapped_errors(self.redis_url)

    async def _put(self, name: str, kind: str, texts: Mapping[str, str]) -> None:
        with self._errors():
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.hset(self._at(name), mapping=cast("Any", texts))
                pipe.incr(self._at("version"))
                _, version = await pipe.execute()
            await self._tell(version, kind, next(iter(texts)) if len(texts) == 1 else "")

    async def _drop(self, name: str, kind: str, entity_id: str) -> bool:
        with self._errors():
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.hdel(self._at(name), entity_id)
                pipe.incr(self._at("version"))
                dropped, version = await pipe.execute()
            await self._tell(version, kind, entity_id)
        return bool(dropped)

    async def _tell(self, version: int, kind: str, entity_id: str) -> None:
        await self._redis.publish(self._at("changes"), f"{version}:{kind}:{entity_id}")

    async def _get(self, name: str, field: str, model: type[M]) -> M | None:
        found = await self._get_many(name, [field], model)
        return found[0] if found else None

    async def _get_many(self, name: str, fields: list[str], model: type[M]) -> list[M]:
        with self._errors():
            texts = await self._redis.hmget(self._at(name), fields)
        return [decode(model, text, where=self._at(name)) for text in texts if text is not None]

    async def _get_all(self, name: str, model: type[M]) -> list[M]:
        with self._errors():
            texts = await self._redis.hvals(self._at(name))
        return [decode(model, text, where=self._at(name)) for text in texts]

    async def _append(self, name: str, entities: "list[Any]", kept: int) -> None:
        """Add to a stream, all in one round trip; it is trimmed once."""
        with self._errors():
            async with self._redis.pipeline(transaction=False) as pipe:
                for entity in entities:
                    pipe.xadd(self._at(name), {_FIELD: encode(entity)})
                pipe.xtrim(self._at(name), maxlen=kept, approximate=False)
                await pipe.execute()

    async def _add_decisions(self, texts: Sequence[str] | Sequence[bytes]) -> None:
        """Add to the list of decisions: one command however many, for there is one for every request."""
        if not texts:
            return
        name = self._at("decisions")
        with self._errors():
            async with self._redis.pipeline(transaction=False) as pipe:
                pipe.rpush(name, *texts)
                pipe.ltrim(name, -self.caps.decisions, -1)
                await pipe.execute()

    async def _stream(self, name: str, model: type[M], kept: int) -> list[M]:
        return [decode(model, fields[_FIELD], where=self._at(name)) for fields in await self._entries(name, kept)]

    async def _decided(self) -> list[RoutingDecision]:
        name = self._at("decisions")
        return [
            decision_of(read_facts(text[1:], where=name))
            if text.startswith(_FACTS)
            else decode(RoutingDecision, text[1:], where=name)
            for text in await self._decision_texts()
        ]

    async def _decision_texts(self) -> list[str]:
        """Decisions as they are kept, those that this process has not written yet included."""
        await self.flush()
        with self._errors():
            texts: Any = await self._redis.lrange(self._at("decisions"), 0, -1)
        return list(texts)

    async def _entries(self, name: str, kept: int) -> list[dict[str, str]]:
        with self._errors():
            entries: Any = await self._redis.xrevrange(self._at(name), count=kept)
        return [fields for _, fields in reversed(entries)]

    async def _all(self, query: StateQuery) -> list[Any]:
        match query.entity_type:
            case "APIKey" if query.ids is not None:
                return await self._keys(list(query.ids)) if query.ids else []
            case "APIKey":
                return (await self.read_keys({})).changed
            case "QuotaState":
                return sorted(await self._get_all("quota", QuotaState), key=lambda state: state.updated_at)
            case "RoutingDecision":
                return await self._decided()
            case "StateTransition":
                kept = self.caps.transitions
                return await self._stream(
                    "transitions", StateTransition, min(kept, query.limit) if query.takes_all else kept
                )
            case "Policy":
                return await self._get_all("docs:policy", Policy)
        raise StateStoreError(f"unknown entity type {query.entity_type}")


def _pages(items: Sequence[str]) -> "list[Sequence[str]]":
    return [items[at : at + KEYS_PAGE] for at in range(0, len(items), KEYS_PAGE)]


def _quota_fields(key_id: str) -> list[str]:
    return [quota_name(key_id, window) for window in (*TimeWindow, None)]
