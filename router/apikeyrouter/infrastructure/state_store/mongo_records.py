"""Records in MongoDB, beside the entities. Times are the processes' own: their clocks agree within seconds."""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any

from apikeyrouter.domain.models.system_error import StateStoreUnavailableError
from apikeyrouter.infrastructure.state_store.codec import check_kind
from apikeyrouter.infrastructure.state_store.loop_clients import LoopClients
from apikeyrouter.infrastructure.state_store.mongo_connection import mapped_mongo_errors, open_mongo_client
from apikeyrouter.infrastructure.state_store.records import (
    QUEUE_LENGTH_MAX,
    TURN_SECONDS_MAX,
    WAIT_SECONDS_MAX,
    WAIT_STEP_SECONDS,
    Taken,
    Waiting,
)

if TYPE_CHECKING:
    from pymongo.asynchronous.collection import AsyncCollection

    Collection = AsyncCollection[dict[str, Any]]

__all__ = ["MongoRecords"]

CLEAR_EVERY = 256
"""After how many writes of a process what is over is cleared away."""
COUNT_SECONDS_MAX = 400 * 86_400
"""How long counts are kept after they were last added to."""


class MongoRecords:
    """Records in a store's database, in collections of their own: each step is one write to one document."""

    def __init__(self, mongodb_url: str, database: str, namespace: str) -> None:
        self._url, self._database, self._prefix = mongodb_url, database, f"{namespace}.records"
        self._clients = LoopClients(lambda: open_mongo_client(mongodb_url), lambda client: client.close())
        self._writes = 0

    @asynccontextmanager
    async def turn(self, name: str) -> AsyncIterator[None]:
        """One holder at a time, at most TURN_SECONDS_MAX."""
        mine, deadline = secrets.token_hex(8), time.monotonic() + WAIT_SECONDS_MAX
        while not await self._hold(f"turn:{name}", {"by": mine}, seconds=TURN_SECONDS_MAX):
            if time.monotonic() > deadline:
                raise StateStoreUnavailableError("others are changing the configuration all the time; try again")
            await asyncio.sleep(WAIT_STEP_SECONDS)
        try:
            yield
        finally:
            with self._errors():
                await self._at("memos").delete_one({"_id": f"turn:{name}", "by": mine})

    async def append(self, journal: str, entry: Mapping[str, Any], *, kept: int) -> str:
        """Add to a journal."""
        from pymongo import ReturnDocument

        name = check_kind(journal)
        with self._errors():
            counted = await self._at("meta").find_one_and_update(
                {"_id": f"journal:{name}"}, {"$inc": {"n": 1}}, upsert=True, return_document=ReturnDocument.AFTER
            )
            assert counted is not None  # upsert, and the document after it
            number = int(counted["n"])
            place = {"_id": f"{name}:{number}", "journal": name, "n": number, "e": json.dumps(entry)}
            await self._at("journals").insert_one(place)
            await self._at("journals").delete_many({"journal": name, "n": {"$lte": number - kept}})
        return str(number)

    async def entries(self, journal: str, *, before: str = "", limit: int = 100) -> list[tuple[str, dict[str, Any]]]:
        """The newest entries, newest first."""
        wanted: dict[str, Any] = {"journal": check_kind(journal)}
        if before:
            wanted["n"] = {"$lt": int(before) if before.isdigit() else 0}
        with self._errors():
            found = await self._at("journals").find(wanted).sort("n", -1).limit(limit).to_list()
        return [(str(each["n"]), json.loads(each["e"])) for each in found]

    async def claim(self, name: str, *, seconds: int) -> bool:
        """Whether this call is the first."""
        return await self._hold(f"claim:{name}", {}, seconds=seconds)

    async def _hold(self, name: str, told: Mapping[str, Any], *, seconds: float) -> bool:
        """Write a document that is not there, or whose time is over; whether that was so."""
        from pymongo.errors import DuplicateKeyError

        now = time.time()
        with self._errors():
            await self._clear(now)
            try:
                wanted = {"_id": name, "until": {"$lte": now}}
                await self._at("memos").update_one(wanted, {"$set": {**told, "until": now + seconds}}, upsert=True)
            except DuplicateKeyError:
                return False
        return True

    async def remember(self, name: str, memo: Mapping[str, Any], *, seconds: int) -> None:
        """Keep a small JSON object."""
        now = time.time()
        with self._errors():
            await self._clear(now)
            news = {"e": json.dumps(memo), "until": now + seconds}
            await self._at("memos").update_one({"_id": f"memo:{name}"}, {"$set": news}, upsert=True)

    async def recall(self, name: str) -> dict[str, Any] | None:
        """What was remembered."""
        with self._errors():
            found = await self._at("memos").find_one({"_id": f"memo:{name}"})
        if found is None or found["until"] <= time.time():
            return None
        memo: dict[str, Any] = json.loads(found["e"])
        return memo

    async def add_counts(self, kind: str, counts: Mapping[str, int]) -> None:
        """Add to counters of a kind."""
        from pymongo import UpdateOne

        told, until = check_kind(kind), time.time() + COUNT_SECONDS_MAX
        added = [
            UpdateOne(
                {"_id": f"{told}:{name}"},
                {"$inc": {"n": number}, "$set": {"kind": told, "name": name, "until": until}},
                upsert=True,
            )
            for name, number in counts.items()
        ]
        if added:
            with self._errors():
                await self._clear(time.time())
                await self._at("counts").bulk_write(added, ordered=False)

    async def all_counts(self, kind: str) -> dict[str, int]:
        """Every counter of a kind."""
        with self._errors():
            found = await self._at("counts").find({"kind": check_kind(kind)}).to_list()
        return {str(each["name"]): int(each["n"]) for each in found}

    async def enqueue(self, queue: str, name: str, job: Mapping[str, Any], *, once_seconds: int) -> bool | None:
        """Put a job into a queue. What is over stays as long as its name is known."""
        from pymongo.errors import DuplicateKeyError

        now, told = time.time(), check_kind(queue)
        with self._errors():
            await self._clear(now)
            if await self._at("jobs").count_documents({"queue": told, "over": False}) >= QUEUE_LENGTH_MAX:
                return None
            place = {"name": name, "queue": told, "over": False, "due": int(now * 1e6), "e": json.dumps(job)}
            try:
                wanted = {"_id": f"{told}:{name}", "over": True, "until": {"$lte": now}}
                news = {"$set": {**place, "until": now + once_seconds}}
                await self._at("jobs").update_one(wanted, news, upsert=True)
            except DuplicateKeyError:
                return False
        return True

    async def take(self, queue: str, *, count: int, seconds: float) -> list[Taken]:
        """Jobs that are due."""
        taken: list[Taken] = []
        with self._errors():
            while len(taken) < count:
                now = time.time_ns() // 1000
                claim = now + int(seconds * 1e6)
                found = await self._at("jobs").find_one_and_update(
                    {"queue": check_kind(queue), "over": False, "due": {"$lte": now}},
                    {"$set": {"due": claim}},
                    sort=[("due", 1)],
                )
                if found is None:
                    break
                taken.append(Taken(name=found["name"], claim=claim, job=json.loads(found["e"])))
        return taken

    async def settle(self, queue: str, taken: Taken, *, again: Mapping[str, Any] | None, delay: float = 0.0) -> bool:
        """A job is over, or due once more."""
        due = time.time_ns() // 1000 + int(delay * 1e6)
        news = {"over": True, "e": ""} if again is None else {"due": due, "e": json.dumps(again)}
        mine = {"_id": f"{check_kind(queue)}:{taken.name}", "over": False, "due": taken.claim}
        with self._errors():
            done = await self._at("jobs").update_one(mine, {"$set": news})
        return bool(done.matched_count)

    async def waiting(self, queue: str, *, limit: int) -> list[Waiting]:
        """What is in a queue."""
        wanted = {"queue": check_kind(queue), "over": False}
        with self._errors():
            found = await self._at("jobs").find(wanted).sort([("due", 1), ("name", 1)]).limit(limit).to_list()
        return [Waiting(name=each["name"], due_us=int(each["due"]), job=json.loads(each["e"])) for each in found]

    async def close(self) -> None:
        """Let go of connections."""
        await self._clients.aclose()

    async def _clear(self, now: float) -> None:
        """Now and then: forget what is over."""
        self._writes += 1
        if self._writes % CLEAR_EVERY == 0:
            await self._at("memos").delete_many({"until": {"$lte": now}})
            await self._at("counts").delete_many({"until": {"$lte": now}})
            await self._at("jobs").delete_many({"over": True, "until": {"$lte": now}})

    def _at(self, name: str) -> "Collection":
        return self._clients.current()[self._database][f"{self._prefix}.{name}"]

    def _errors(self) -> AbstractContextManager[None]:
        return mapped_mongo_errors(self._url)
