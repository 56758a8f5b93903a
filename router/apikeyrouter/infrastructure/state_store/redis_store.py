"""Entities in Redis or Valkey, shared by every process of a namespace. The keys are described in docs/redis-keys.md."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, TypeVar, cast

from apikeyrouter.domain.components.explaining import decision_of
from apikeyrouter.domain.interfaces.state_store import Change, KeyDecision, StateQuery, StateStore
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
    encode,
    encode_document,
    quota_name,
    read_facts,
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
_CHANGE_KEY = """
if (redis.call('HGET', KEYS[1], ARGV[1]) or '') ~= ARGV[2] then return 0 end
if ARGV[3] == '' then
  redis.call('HDEL', KEYS[1], ARGV[1])
  for i = 6, 5 + ARGV[5] do redis.call('HDEL', KEYS[4], ARGV[i]) end
else
  redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
end
for i = 6 + ARGV[5], #ARGV do redis.call('XADD', KEYS[3], 'MAXLEN', ARGV[4], '*', 'e', ARGV[i]) end
return redis.call('INCR', KEYS[2])
"""
"""Writes a key with its audit trail if it still is what was read: 0 if it is not, else the new version.

KEYS keys, version, transitions, quota. ARGV id, text read ('': none), text to write ('': forget), cap of the trail,
count of quota fields, those fields, entries of the trail.
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
        await self._put("keys", "key", key.id, encode(key))

    async def get_key(self, key_id: str) -> APIKey | None:
        """A key, or None."""
        return await self._get("keys", key_id, APIKey)

    async def delete_key(self, key_id: str) -> bool:
        """Forget a key and its quota states, and tell the other processes."""
        with self._errors():
            await self._redis.hdel(self._at("quota"), *_quota_fields(key_id))
        return await self._drop("keys", "key", key_id)

    async def change_key(self, key_id: str, decide: KeyDecision) -> KeyChange | None:
        """Read, decide and write in one step; decided anew while other processes are faster.

        Raises:
            StateStoreError: they were faster CHANGE_ROUNDS_MAX times.
        """
        for _ in range(CHANGE_ROUNDS_MAX):
            with self._errors():
                text = cast("str | None", await self._redis.hget(self._at("keys"), key_id))
            change = decide(None if text is None else decode(APIKey, text, where=self._at("keys")))
            if change is None or (text is None and change.key is None):
                return None
            if await self._change(key_id, text or "", change):
                return change
        raise StateStoreError(f"key {key_id} is being changed by too many others at once; try again")

    async def _change(self, key_id: str, read: str, change: KeyChange) -> bool:
        names = [self._at(name) for name in ("keys", "version", "transitions", "quota")]
        fields = _quota_fields(key_id)
        text = "" if change.key is None else encode(change.key)
        trail = [encode(transition) for transition in change.transitions]
        given = (key_id, read, text, self.caps.transitions, len(fields), *fields, *trail)
        with self._errors():
            version = int(await cast("Any", self._redis).eval(_CHANGE_KEY, len(names), *names, *given))
            if version:
                await self._tell(version, "key", key_id)
        return bool(version)

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
        await self._put(f"docs:{check_kind(kind)}", kind, document_id, encode_document(document))

    async def get_document(self, kind: str, document_id: str) -> dict[str, Any] | None:
        """A document, or None."""
        name = f"docs:{check_kind(kind)}"
        with self._errors():
            text = await self._redis.hget(self._at(name), document_id)
        return None if text is None else decode_document(text, where=self._at(name))

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

    async def _put(self, name: str, kind: str, entity_id: str, text: str) -> None:
        with self._errors():
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.hset(self._at(name), entity_id, text)
                pipe.incr(self._at("version"))
                _, version = await pipe.execute()
            await self._tell(version, kind, entity_id)

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
                return await self._get_many("keys", list(query.ids), APIKey) if query.ids else []
            case "APIKey":
                return sorted(await self._get_all("keys", APIKey), key=lambda key: key.created_at)
            case "QuotaState":
                return sorted(await self._get_all("quota", QuotaState), key=lambda state: state.updated_at)
            case "RoutingDecision":
                return await self._decided()
            case "StateTransition":
                return await self._stream("transitions", StateTransition, self.caps.transitions)
            case "Policy":
                return await self._get_all("docs:policy", Policy)
        raise StateStoreError(f"unknown entity type {query.entity_type}")


def _quota_fields(key_id: str) -> list[str]:
    return [quota_name(key_id, window) for window in (*TimeWindow, None)]
