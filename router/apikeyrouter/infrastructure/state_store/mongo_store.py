"""Entities and history in MongoDB. No accounting: that needs scripts, which MongoDB has not; see docs/mongodb.md."""

import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

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
    decode_key,
    encode,
    encode_document,
    quota_name,
    read_facts,
    still_readable,
    write_facts,
)
from apikeyrouter.infrastructure.state_store.loop_clients import LoopClients
from apikeyrouter.infrastructure.state_store.mongo_connection import (
    check_keeps_every_change,
    check_mongodb_url,
    mapped_mongo_errors,
    open_mongo_client,
    redacted_mongodb_url,
)
from apikeyrouter.infrastructure.state_store.mongo_watch import CHANGES_BYTES_MAX, watch_collection
from apikeyrouter.infrastructure.state_store.noted import BATCH_MAX, Noted
from apikeyrouter.infrastructure.state_store.redis_connection import check_redis_url

if TYPE_CHECKING:
    from pymongo.asynchronous.collection import AsyncCollection

    Collection = AsyncCollection[dict[str, Any]]

__all__ = ["MongoStateStore"]

DATABASE_DEFAULT = NAMESPACE_DEFAULT = "apikeyrouter"
CHANGE_ROUNDS_MAX = 32
"""Tries to change a key that others keep changing."""
NOTES_PER_CLEARING = 256
"""After how many notes of a process those that are over are cleared away."""
_GONE = ""
"""The text of a key that was deleted, while its audit trail is on its way."""
COLLECTION_EXISTS = 48

M = TypeVar("M", bound=EdgeModel)


class MongoStateStore(StateStore):
    """A store that survives and is shared, for keys, policies, documents and history.

    `mongodb_url`: mongodb:// or mongodb+srv://. `namespace` separates deployments in one database. `redis_url`: where
    the accounting is; without it, limits and budgets are counted in this process alone. Caps that are not given follow
    the router's settings. A key and its audit trail are one write to one document, so no replica set is needed.
    """

    def __init__(
        self,
        mongodb_url: str = "mongodb://localhost:27017",
        database: str = DATABASE_DEFAULT,
        namespace: str = NAMESPACE_DEFAULT,
        *,
        redis_url: str | None = None,
        max_decisions: int | None = None,
        max_transitions: int | None = None,
    ) -> None:
        self.mongodb_url = check_mongodb_url(mongodb_url)
        self.redis_url = None if redis_url is None else check_redis_url(redis_url)
        self.database = database
        self.namespace = check_namespace(namespace)
        self.caps = Caps(max_decisions, max_transitions)
        self._clients = LoopClients(lambda: open_mongo_client(mongodb_url), lambda client: client.close())
        self._noted = Noted[Facts](self.caps, self._save_facts)
        self._tells = False
        self._notes = 0

    # --- keys

    async def save_key(self, key: APIKey) -> None:
        """Save or update a key, and tell the other processes."""
        with self._errors():
            await self._at("keys").update_one({"_id": key.id}, {"$set": {"e": encode(key)}}, upsert=True)
            await self._tell("key", key.id)

    async def get_key(self, key_id: str) -> APIKey | None:
        """A key, or None."""
        with self._errors():
            found = await self._at("keys").find_one({"_id": key_id})
        return None if found is None or found["e"] == _GONE else decode(APIKey, found["e"], where=f"key {key_id}")

    async def delete_key(self, key_id: str) -> bool:
        """Forget a key and its quota states, and tell the other processes."""
        with self._errors():
            await self._at("quota").delete_many({"key_id": key_id})
            gone = await self._at("keys").delete_one({"_id": key_id, "e": {"$ne": _GONE}})
            if gone.deleted_count:
                await self._tell("key", key_id)
        return bool(gone.deleted_count)

    async def change_key(self, key_id: str, decide: KeyDecision) -> KeyChange | None:
        """Read, decide and write in one step; decided anew while other processes are faster.

        The trail is written with the key, into the same document, and moved to the others from there: by this process,
        or by whoever looks next, should this one die in between.

        Raises:
            StateStoreError: they were faster CHANGE_ROUNDS_MAX times.
        """
        for _ in range(CHANGE_ROUNDS_MAX):
            with self._errors():
                found = await self._at("keys").find_one({"_id": key_id})
                text = _GONE if found is None else found["e"]
                change = decide(None if text == _GONE else decode_key(text, key_id))
                if change is None or (text == _GONE and change.key is None):
                    return None
                if await self._write(key_id, found, still_readable(change)):
                    if change.key is None:
                        await self._at("quota").delete_many({"key_id": key_id})
                    await self._move_trail(key_id)
                    await self._tell("key", key_id)
                    return change
        raise StateStoreError(f"key {key_id} is being changed by too many others at once; try again")

    async def _write(self, key_id: str, found: Mapping[str, Any] | None, change: KeyChange) -> bool:
        """Write a key with its trail if it still is what was read."""
        from pymongo.errors import DuplicateKeyError

        text = _GONE if change.key is None else encode(change.key)
        trail = [{"id": uuid.uuid4().hex, "e": encode(transition)} for transition in change.transitions]
        if found is None:
            try:
                await self._at("keys").insert_one({"_id": key_id, "e": text, "trail": trail})
            except DuplicateKeyError:
                return False
            return True
        update = {"$set": {"e": text}, "$push": {"trail": {"$each": trail}}}
        done = await self._at("keys").update_one({"_id": key_id, "e": found["e"]}, update)
        return bool(done.matched_count)

    async def _move_trail(self, key_id: str) -> None:
        """Move a key's waiting transitions to the others. Twice the same: nothing."""
        keys, transitions = self._at("keys"), self._at("transitions")
        found = await keys.find_one({"_id": key_id}, {"trail": 1, "e": 1})
        waiting = (found or {}).get("trail", [])
        if waiting:
            tokens = {"$in": [one["id"] for one in waiting]}
            moved = {each["token"] async for each in transitions.find({"token": tokens})}
            fresh = [{"token": one["id"], "e": one["e"]} for one in waiting if one["id"] not in moved]
            await self._append("transitions", fresh, self.caps.transitions)
            await keys.update_one({"_id": key_id}, {"$pullAll": {"trail": waiting}})
        if found is not None and found["e"] == _GONE:
            await keys.delete_one({"_id": key_id, "e": _GONE, "trail": []})

    # --- quota states, history

    async def save_quota_state(self, state: QuotaState) -> None:
        """Save a key's quota state for its window."""
        document = {"key_id": state.key_id, "e": encode(state)}
        with self._errors():
            name = quota_name(state.key_id, state.time_window)
            await self._at("quota").update_one({"_id": name}, {"$set": document}, upsert=True)

    async def get_quota_state(self, key_id: str, time_window: TimeWindow | None = None) -> QuotaState | None:
        """A key's quota state: of that window, else the one with the newest `updated_at`."""
        wanted = {"key_id": key_id} if time_window is None else {"_id": quota_name(key_id, time_window)}
        found = await self._entities("quota", QuotaState, wanted)
        return max(found, key=lambda state: state.updated_at, default=None)

    async def save_routing_decision(self, decision: RoutingDecision) -> None:
        """Append a decision; the oldest beyond `max_decisions` go."""
        await self.save_routing_decisions([decision])

    async def save_routing_decisions(self, decisions: list[RoutingDecision]) -> None:
        """Append many, BATCH_MAX to a round trip."""
        for start in range(0, len(decisions), BATCH_MAX):
            await self._add_decisions([{"e": encode(decision)} for decision in decisions[start : start + BATCH_MAX]])

    async def _add_decisions(self, documents: list[dict[str, Any]]) -> None:
        with self._errors():
            await self._append("decisions", documents, self.caps.decisions)

    async def _save_facts(self, noted: list[Facts]) -> None:
        await self._add_decisions([_kept(facts) for facts in noted])

    def note_facts(self, facts: Facts) -> bool:
        """Take the facts of a decision, to be written by the next `flush`; of many, the newest `max_decisions`."""
        self._noted.add(facts)
        return True

    def abandon(self) -> None:
        """Forget what was noted: after a fork it is the parent's."""
        self._noted.clear()

    async def flush(self) -> None:
        """Write the decisions that were noted."""
        await self._noted.flush()

    async def recent_facts(self) -> list[Facts]:
        """The facts that were noted, of the last `max_decisions`, by every process."""
        await self.flush()
        with self._errors():
            found = await self._at("decisions").find({"f": {"$exists": True}}).sort("_id").to_list()
        return [read_facts(document["f"], where="decisions") for document in found]

    async def save_state_transition(self, transition: StateTransition) -> None:
        """Append a transition; the oldest beyond `max_transitions` go."""
        with self._errors():
            await self._append(
                "transitions", [{"token": uuid.uuid4().hex, "e": encode(transition)}], self.caps.transitions
            )

    async def query_state(self, query: StateQuery) -> list[Any]:
        """Entities that match, oldest first."""
        found: list[Any] = await self._all(query)
        return [entity for entity in found if query.matches(entity)][-query.limit :]

    async def _all(self, query: StateQuery) -> list[Any]:
        match query.entity_type:
            case "APIKey":
                wanted: dict[str, Any] = {"e": {"$ne": _GONE}}
                if query.ids is not None:
                    wanted["_id"] = {"$in": list(query.ids)}
                with self._errors():
                    stored = await self._at("keys").find(wanted).sort("_id").to_list()
                return sorted((decode_key(one["e"], one["_id"]) for one in stored), key=lambda key: key.created_at)
            case "QuotaState":
                return sorted(await self._entities("quota", QuotaState, {}), key=lambda state: state.updated_at)
            case "RoutingDecision":
                await self.flush()
                return await self._entities("decisions", RoutingDecision, {})
            case "StateTransition":
                with self._errors():
                    async for key in self._at("keys").find({"trail.0": {"$exists": True}}, {"_id": 1}):
                        await self._move_trail(key["_id"])
                return await self._entities("transitions", StateTransition, {})
        documents = await self.list_documents("policy")
        return [Policy.parse(document) for document in documents.values()]

    # --- documents, counts

    async def save_document(self, kind: str, document_id: str, document: Mapping[str, Any]) -> None:
        """Save a small JSON document, and tell the other processes."""
        name, text = _document_id(kind, document_id), encode_document(document)
        with self._errors():
            await self._at("documents").update_one({"_id": name}, {"$set": {"kind": kind, "e": text}}, upsert=True)
            await self._tell(kind, document_id)

    async def get_document(self, kind: str, document_id: str) -> dict[str, Any] | None:
        """A document, or None."""
        name = _document_id(kind, document_id)
        with self._errors():
            found = await self._at("documents").find_one({"_id": name})
        return None if found is None else decode_document(found["e"], where=name)

    async def list_documents(self, kind: str) -> dict[str, dict[str, Any]]:
        """All documents of a kind, by id."""
        with self._errors():
            found = await self._at("documents").find({"kind": check_kind(kind)}).sort("_id").to_list()
        return {each["_id"].partition(":")[2]: decode_document(each["e"], where=each["_id"]) for each in found}

    async def delete_document(self, kind: str, document_id: str) -> bool:
        """Forget a document, and tell the other processes; whether there was one."""
        with self._errors():
            gone = await self._at("documents").delete_one({"_id": _document_id(kind, document_id)})
            if gone.deleted_count:
                await self._tell(kind, document_id)
        return bool(gone.deleted_count)

    async def save_note(self, kind: str, note_id: str, note: Mapping[str, Any], *, seconds: int) -> None:
        """Save a small JSON document for a while; nobody is told. Those that are over go now and then."""
        name, text, now = _document_id(kind, note_id), encode_document(note), time.time()
        self._notes += 1
        with self._errors():
            await self._at("notes").update_one(
                {"_id": name}, {"$set": {"e": text, "until": now + seconds}}, upsert=True
            )
            if self._notes % NOTES_PER_CLEARING == 0:
                await self._at("notes").delete_many({"until": {"$lt": now}})

    async def get_note(self, kind: str, note_id: str) -> dict[str, Any] | None:
        """A note, or None."""
        name = _document_id(kind, note_id)
        with self._errors():
            found = await self._at("notes").find_one({"_id": name})
        return None if found is None or found["until"] <= time.time() else decode_document(found["e"], where=name)

    async def replace_note(
        self, kind: str, note_id: str, known: Mapping[str, Any] | None, note: Mapping[str, Any], *, seconds: int
    ) -> bool:
        """Save a note if it still is as it was read, in one step."""
        from pymongo.errors import DuplicateKeyError

        name, now = _document_id(kind, note_id), time.time()
        kept = {"until": {"$lte": now}} if known is None else {"e": encode_document(known), "until": {"$gt": now}}
        update = {"$set": {"e": encode_document(note), "until": now + seconds}}
        with self._errors():
            try:
                done = await self._at("notes").update_one({"_id": name, **kept}, update, upsert=known is None)
            except DuplicateKeyError:  # there is one, and it is not over
                return False
        return bool(done.matched_count or done.upserted_id)

    async def add_counts(self, kind: str, counts: Mapping[str, int]) -> None:
        """Add to counters of a kind."""
        from pymongo import UpdateOne

        added = [
            UpdateOne({"_id": _document_id(kind, name)}, {"$inc": {"n": number}}, upsert=True)
            for name, number in counts.items()
        ]
        if added:
            with self._errors():
                await self._at("counts").bulk_write(added, ordered=False)

    async def get_counts(self, kind: str, ids: Sequence[str]) -> dict[str, int]:
        """Those counters that were ever added to."""
        names = {_document_id(kind, name): name for name in ids}
        if not names:
            return {}
        with self._errors():
            found = await self._at("counts").find({"_id": {"$in": [*names]}}).to_list()
        return {names[each["_id"]]: int(each["n"]) for each in found}

    # --- changes, connection

    async def version(self) -> int:
        """How many changes the namespace has seen."""
        with self._errors():
            found = await self._at("meta").find_one({"_id": "version"})
        return 0 if found is None else int(found["n"])

    async def watch(self) -> AsyncIterator[Change]:
        """Changes from now on, of every process, within a second. Survives an outage of the server. Ends when the
        generator is closed."""
        async for change in watch_collection(self._changes, self.version):
            yield change

    async def health_check(self) -> bool:
        """True when the server answers, takes commands, and changes a document in one step.

        Errors: StateStoreUnavailableError; StateStoreError, also for a FerretDB that loses changes made at once.
        """
        with self._errors():
            await self._at("meta").find_one({"_id": "version"})
            check_keeps_every_change(await self._at("meta").database.command("buildInfo"))
        return True

    async def aclose(self) -> None:
        """Close the running loop's connections."""
        await self._clients.aclose()

    def __repr__(self) -> str:
        return f"<MongoStateStore {redacted_mongodb_url(self.mongodb_url)}/{self.database} namespace={self.namespace}>"

    def _at(self, name: str) -> "Collection":
        return self._clients.current()[self.database][f"{self.namespace}.{name}"]

    def _errors(self) -> AbstractContextManager[None]:
        return mapped_mongo_errors(self.mongodb_url)

    async def _changes(self) -> "Collection":
        """The notices, made when they are not there: a capped collection is followed without being asked again and
        again, and forgets by itself."""
        from pymongo.errors import DuplicateKeyError, OperationFailure

        made = self._at("changes")
        with self._errors():
            try:
                await made.database.command("create", made.name, capped=True, size=CHANGES_BYTES_MAX)
            except OperationFailure as exc:
                if exc.code != COLLECTION_EXISTS:
                    raise
            if await made.find_one() is None:  # nobody can follow what is empty
                with suppress(DuplicateKeyError):  # another process was faster
                    await made.insert_one({"_id": 0, "kind": "", "id": ""})
        self._tells = True
        return made

    async def _tell(self, kind: str, entity_id: str) -> None:
        version = await self._next("version", 1)
        changes = self._at("changes") if self._tells else await self._changes()
        await changes.insert_one({"_id": version, "kind": kind, "id": entity_id})

    async def _next(self, counter: str, count: int) -> int:
        """Add to a counter; what it is then."""
        from pymongo import ReturnDocument

        counted = await self._at("meta").find_one_and_update(
            {"_id": counter}, {"$inc": {"n": count}}, upsert=True, return_document=ReturnDocument.AFTER
        )
        assert counted is not None  # upsert, and the document after it
        return int(counted["n"])

    async def _append(self, name: str, entries: list[dict[str, Any]], kept: int) -> None:
        """Add to a history in order, and forget what is beyond its cap."""
        if entries:
            last = await self._next(name, len(entries))
            first = last - len(entries) + 1
            await self._at(name).insert_many([{"_id": first + at, **entry} for at, entry in enumerate(entries)])
            await self._at(name).delete_many({"_id": {"$lte": last - kept}})

    async def _entities(self, name: str, model: type[M], wanted: Mapping[str, Any]) -> list[M]:
        with self._errors():
            found = await self._at(name).find(wanted).sort("_id").to_list()
        return [decode(model, each["e"], where=f"{name} {each['_id']}") for each in found]


def _kept(facts: Facts) -> dict[str, Any]:
    """A decision as it is kept: as any version reads it, and its facts."""
    return {"e": encode(decision_of(facts)), "f": write_facts(facts).decode()}


def _document_id(kind: str, document_id: str) -> str:
    return f"{check_kind(kind)}:{document_id}"
