"""One body of tests over every entity store."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from apikeyrouter.domain.interfaces.state_store import Change, StateQuery, StateStore
from apikeyrouter.domain.models.api_key import APIKey, KeyChange, KeyState, StateTransition
from apikeyrouter.domain.models.call import AttemptFacts, Facts
from apikeyrouter.domain.models.policy import Policy, PolicyScope
from apikeyrouter.domain.models.quota_state import CapacityState, QuotaState, TimeWindow
from apikeyrouter.domain.models.ranking import Ranking, Standing
from apikeyrouter.domain.models.routing_decision import CandidateVerdict, RoutingDecision, RoutingObjective
from apikeyrouter.domain.models.system_error import InvalidRequestError
from apikeyrouter.infrastructure.state_store.memory_store import InMemoryStateStore
from apikeyrouter.infrastructure.state_store.mongo_store import MongoStateStore
from apikeyrouter.infrastructure.state_store.redis_store import RedisStateStore
from tests.mongo_servers import DATABASE, FLAVOURS, drop, ferretdb_running, mongo_running
from tests.servers import flavours

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


CHANGED_AT_ONCE = {
    "test_what_is_decided_on_a_key_is_decided_on_its_newest_form",
    "test_counters_add_up",
    "test_a_watcher_hears_of_changes_with_kind_and_id",
    "test_health_is_good_and_a_closed_store_connects_anew",
    "test_of_many_who_replace_a_note_at_once_one_does",
}
"""What FerretDB 1 cannot keep, as it reads and writes in two steps; so the store refuses it (test_mongo_store.py)."""


@pytest.fixture(scope="module")
def mongodb() -> Iterator[str]:
    with mongo_running() as url:
        yield url


@pytest.fixture(scope="module")
def ferretdb() -> Iterator[str]:
    with ferretdb_running() as url:
        yield url


@pytest.fixture(params=["memory", *FLAVOURS, *flavours()])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[StateStore]:
    made: StateStore
    if request.param == "memory":
        made = InMemoryStateStore(max_decisions=3, max_transitions=2)
    elif request.param in FLAVOURS:
        url = request.getfixturevalue(request.param)
        if request.param == "ferretdb" and request.function.__name__ in CHANGED_AT_ONCE:
            pytest.skip("FerretDB 1 loses changes that are made at once")
        drop(url)
        made = MongoStateStore(url, DATABASE, max_decisions=3, max_transitions=2)
    else:
        server = request.getfixturevalue("servers")[request.param]
        server.flush()
        made = RedisStateStore(redis_url=server.url, max_decisions=3, max_transitions=2)
    yield made
    await made.aclose()


def key(key_id: str, **fields: object) -> APIKey:
    return APIKey.parse({"id": key_id, "provider_id": "openai", "encrypted_material": "v1:x:y", **fields})


def decision(n: int, **fields: object) -> RoutingDecision:
    at = NOON + timedelta(minutes=n)
    return RoutingDecision.parse({"id": f"d{n}", "selected_key_id": f"k{n}", "timestamp": at, **fields})


async def test_a_key_comes_back_as_it_was_saved(store: StateStore) -> None:
    saved = key("k1", state="throttled", state_until=NOON, metadata={"tier": "pro", "index": 3}, usage_count=7)
    await store.save_key(saved)
    assert await store.get_key("k1") == saved
    assert await store.get_key("k2") is None


async def test_saving_a_key_again_replaces_it(store: StateStore) -> None:
    await store.save_key(key("k1"))
    await store.save_key(key("k1", state="disabled"))
    assert [found.state for found in await store.query_state(StateQuery("APIKey"))] == [KeyState.Disabled]


async def test_changing_what_came_back_does_not_change_the_store(store: StateStore) -> None:
    await store.save_key(key("k1", metadata={"tier": "pro"}))
    found = await store.get_key("k1")
    assert found is not None
    found.metadata["tier"] = "free"
    again = await store.get_key("k1")
    assert again is not None
    assert again.metadata == {"tier": "pro"}


async def test_a_deleted_key_takes_its_quota_states_along(store: StateStore) -> None:
    await store.save_key(key("k1"))
    await store.save_quota_state(QuotaState(key_id="k1", total_capacity=5))
    assert await store.delete_key("k1") is True
    assert await store.delete_key("k1") is False
    assert await store.get_key("k1") is None
    assert await store.get_quota_state("k1") is None


def entry(to: KeyState | None, reason: str = "why") -> StateTransition:
    return StateTransition(entity_id="k1", from_state=KeyState.Available, to_state=to, reason=reason)


async def test_a_key_is_changed_with_its_audit_trail_in_one_step(store: StateStore) -> None:
    made = KeyChange(key=key("k1"), transitions=(entry(KeyState.Available, "made"),))
    assert await store.change_key("k1", lambda found: made if found is None else None) == made
    assert await store.change_key("k1", lambda found: made if found is None else None) is None
    before = await store.version()
    gone = KeyChange(key=None, transitions=(entry(None, "gone"),))
    await store.save_quota_state(QuotaState(key_id="k1"))
    assert await store.change_key("k1", lambda found: gone) == gone
    assert await store.version() == before + 1
    assert await store.get_key("k1") is None
    assert await store.get_quota_state("k1") is None
    assert [told.reason for told in await store.query_state(StateQuery("StateTransition"))] == ["made", "gone"]


async def test_what_is_decided_on_a_key_is_decided_on_its_newest_form(store: StateStore) -> None:
    await store.save_key(key("k1", metadata={"n": 0}))

    def count(found: APIKey | None) -> KeyChange:
        assert found is not None
        return KeyChange(key=found.model_copy(update={"metadata": {"n": found.metadata["n"] + 1}}))

    await asyncio.gather(*(store.change_key("k1", count) for _ in range(12)))
    found = await store.get_key("k1")
    assert found is not None
    assert found.metadata == {"n": 12}


async def test_a_decision_that_is_refused_writes_nothing(store: StateStore) -> None:
    def refuse(found: APIKey | None) -> KeyChange:
        raise InvalidRequestError("no")

    before = await store.version()
    with pytest.raises(InvalidRequestError):
        await store.change_key("k1", refuse)
    assert await store.version() == before


async def test_counters_add_up(store: StateStore) -> None:
    await asyncio.gather(*(store.add_counts("key_failures", {"k1": 2, "k2": 1}) for _ in range(5)))
    assert await store.get_counts("key_failures", ["k1", "k2", "k3"]) == {"k1": 10, "k2": 5}
    assert await store.get_counts("other", ["k1"]) == {}
    assert await store.get_counts("key_failures", []) == {}


async def test_a_quota_state_is_kept_per_window_and_the_newest_is_the_default(store: StateStore) -> None:
    daily = QuotaState(key_id="k1", time_window=TimeWindow.Daily, used_capacity=1, updated_at=NOON)
    hourly = QuotaState(
        key_id="k1", time_window=TimeWindow.Hourly, used_capacity=2, updated_at=NOON + timedelta(seconds=1)
    )
    await store.save_quota_state(daily)
    await store.save_quota_state(hourly)
    assert await store.get_quota_state("k1", TimeWindow.Daily) == daily
    assert await store.get_quota_state("k1") == hourly
    assert await store.get_quota_state("k1", TimeWindow.Monthly) is None
    assert await store.get_quota_state("k2") is None


async def test_decisions_come_back_whole_and_oldest_first_up_to_the_cap(store: StateStore) -> None:
    objective = RoutingObjective("cost", ["speed"], {"max_cost_per_request": Decimal("0.01")}, {"cost": 0.7})
    verdict = CandidateVerdict(key_id="k0", provider_id="openai", score=0.5, parts={"price": 0.25}, reason="dearer")
    for n in range(4):
        await store.save_routing_decision(decision(n, objective=objective, candidates=[verdict]))
    found = await store.query_state(StateQuery(entity_type="RoutingDecision"))
    assert found == [decision(n, objective=objective, candidates=[verdict]) for n in (1, 2, 3)]


async def test_many_decisions_are_saved_in_one_call(store: StateStore) -> None:
    await store.save_routing_decisions([decision(n) for n in range(5)])
    assert [found.id for found in await store.query_state(StateQuery("RoutingDecision"))] == ["d2", "d3", "d4"]


async def test_transitions_are_capped_too(store: StateStore) -> None:
    for reason in ("first", "second", "third"):
        await store.save_state_transition(
            StateTransition(entity_id="k1", from_state=KeyState.Available, to_state=KeyState.Throttled, reason=reason)
        )
    found = await store.query_state(StateQuery("StateTransition"))
    assert [transition.reason for transition in found] == ["second", "third"]


async def test_queries_filter_by_everything_they_promise(store: StateStore) -> None:
    await store.save_key(key("k1", created_at=NOON))
    await store.save_key(key("k2", provider_id="anthropic", created_at=NOON + timedelta(hours=1)))
    await store.save_key(key("k3", state="Exhausted", created_at=NOON + timedelta(hours=2)))

    async def ids(**filters: object) -> list[str]:
        return [found.id for found in await store.query_state(StateQuery("api_key", **filters))]  # type: ignore[arg-type]

    assert await ids() == ["k1", "k2", "k3"]
    assert await ids(ids=["k3", "k9"]) == ["k3"]
    assert await ids(ids=[]) == []
    assert await ids(provider_id="anthropic") == ["k2"]
    assert await ids(state="exhausted") == ["k3"]
    assert await ids(state=KeyState.Available) == ["k1", "k2"]
    assert await ids(since=NOON + timedelta(hours=1)) == ["k2", "k3"]
    assert await ids(until=NOON + timedelta(hours=1)) == ["k1"]
    assert await ids(limit=2) == ["k2", "k3"]


async def test_quota_states_are_found_by_capacity_state(store: StateStore) -> None:
    await store.save_quota_state(QuotaState(key_id="k1", capacity_state=CapacityState.Critical))
    await store.save_quota_state(QuotaState(key_id="k2"))
    found = await store.query_state(StateQuery("QuotaState", state="Critical"))
    assert [state.key_id for state in found] == ["k1"]


async def test_policies_are_kept_and_found(store: StateStore) -> None:
    policy = Policy(name="Eng", scope=PolicyScope.Team, scope_value="eng", rules=[{"allowed_providers": ["openai"]}])
    await store.save_policy(policy)
    assert await store.get_policy("eng") == policy
    assert await store.query_state(StateQuery("Policy")) == [policy]
    assert await store.delete_policy("eng") is True
    assert await store.get_policy("eng") is None


async def test_documents_are_kept_by_kind(store: StateStore) -> None:
    await store.save_document("token_ratio", "openai:gpt-4o", {"ratio": 0.25, "n": 100})
    await store.save_document("token_ratio", "openai:o1", {"ratio": 0.3, "n": 1})
    await store.save_document("other", "openai:o1", {})
    assert await store.get_document("token_ratio", "openai:gpt-4o") == {"ratio": 0.25, "n": 100}
    assert await store.get_document("token_ratio", "none") is None
    assert sorted(await store.list_documents("token_ratio")) == ["openai:gpt-4o", "openai:o1"]
    assert await store.delete_document("token_ratio", "openai:o1") is True
    assert await store.delete_document("token_ratio", "openai:o1") is False
    assert sorted(await store.list_documents("other")) == ["openai:o1"]


@pytest.mark.parametrize("document", [{"x": object()}, {"x": "y" * 5_000_000}])
async def test_what_is_no_small_document_is_refused(store: StateStore, document: dict[str, object]) -> None:
    with pytest.raises(InvalidRequestError, match="document"):
        await store.save_document("kind", "id", document)


@pytest.mark.parametrize("kind", ["", "Upper", "a:b", "x" * 65])
async def test_a_kind_that_could_collide_with_other_names_is_refused(store: StateStore, kind: str) -> None:
    with pytest.raises(InvalidRequestError, match="kind"):
        await store.save_document(kind, "id", {})


async def test_the_version_grows_with_keys_and_documents_and_not_with_records(store: StateStore) -> None:
    before = await store.version()
    await store.save_key(key("k1"))
    await store.save_document("kind", "id", {})
    after = await store.version()
    await store.save_routing_decision(decision(1))
    await store.save_quota_state(QuotaState(key_id="k1"))
    assert before < after == await store.version()


async def test_a_watcher_hears_of_changes_with_kind_and_id(store: StateStore) -> None:
    heard: asyncio.Queue[Change] = asyncio.Queue()
    watching = asyncio.create_task(_forward(store, heard))
    await _until_heard(store, heard)
    await store.save_key(key("k7"))
    await store.save_document("token_ratio", "m", {})
    told = [await asyncio.wait_for(heard.get(), 5) for _ in range(2)]
    assert [(change.kind, change.id) for change in told] == [("key", "k7"), ("token_ratio", "m")]
    assert told[1].version == told[0].version + 1 == await store.version()
    await _stop(watching)


async def test_health_is_good_and_a_closed_store_connects_anew(store: StateStore) -> None:
    assert await store.health_check() is True
    await store.aclose()
    assert await store.health_check() is True


async def _forward(store: StateStore, heard: "asyncio.Queue[Change]") -> None:
    async for change in store.watch():
        heard.put_nowait(change)


async def _until_heard(store: StateStore, heard: "asyncio.Queue[Change]") -> None:
    """Write until the watcher is known to listen, then let it fall silent."""
    for n in range(100):
        await store.save_document("probe", str(n), {})
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.1):
                while True:
                    change = await heard.get()
                    if change.kind == "probe" and change.id == str(n):
                        return
    raise AssertionError("the watcher never heard anything")


async def _stop(task: "asyncio.Task[None]") -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_facts_become_decisions_when_they_are_asked_for(store: StateStore) -> None:
    ranking = Ranking(
        objective=("cost", (), (), ()), measures=("cost_nanousd",), ranked=1,
        standings=[Standing("k1", "p", "m", 0, 0, (100.0,)), Standing("k2", "p", "m", 0, 0, (400.0,))],
    )  # fmt: skip
    for number in range(4):
        attempt = AttemptFacts(key_id="k1", provider_id="p", model="m", rid=bytes(16), ranking=ranking)
        facts = Facts(
            request_id=f"r{number}", operation="chat", model="m", stream=False, objective="cost", team=None,
            client=None, at_us=1_700_000_000_000_000 + number, attempts=[attempt],
        )  # fmt: skip
        assert store.note_facts(facts)
    await store.save_routing_decision(decision(9))
    found = await store.query_state(StateQuery("RoutingDecision"))
    assert {each.id for each in found} == {"r2", "r3", "d9"} or {each.id for each in found} == {"r1", "r2", "r3"}
    told = next(each for each in found if each.id == "r3")
    assert (told.selected_key_id, told.objective.primary) == ("k1", "cost")
    assert [(verdict.key_id, verdict.score) for verdict in told.candidates] == [("k1", 1.0), ("k2", 0.25)]
    assert [each.id for each in await store.query_state(StateQuery("RoutingDecision", key_id="k2"))] == []


async def test_notes_go_by_themselves_and_nobody_is_told(store: StateStore) -> None:
    before = await store.version()
    await store.save_note("made", "resp_1", {"model": "m"}, seconds=60)
    await store.save_note("made", "resp_2", {"model": "m"}, seconds=1)
    await store.save_note("made", "resp_1", {"model": "n"}, seconds=60)
    assert await store.get_note("made", "resp_1") == {"model": "n"}
    assert await store.get_note("other", "resp_1") is None
    assert await store.version() == before
    async with asyncio.timeout(20):
        while await store.get_note("made", "resp_2") is not None:
            await asyncio.sleep(0.05)
    assert await store.get_note("made", "resp_1") == {"model": "n"}


async def test_a_note_is_replaced_only_as_it_was_read(store: StateStore) -> None:
    async def replace(known: dict[str, int] | None, note: dict[str, int], *, seconds: int = 60) -> bool:
        return await store.replace_note("made", "resp_1", known, note, seconds=seconds)

    assert not await replace({"at": 1}, {"at": 2})
    assert await store.get_note("made", "resp_1") is None
    assert await replace(None, {"at": 1})
    assert not await replace(None, {"at": 5})
    assert not await replace({"at": 2}, {"at": 5})
    assert await store.get_note("made", "resp_1") == {"at": 1}
    assert await replace({"at": 1}, {"at": 1, "to": 2}, seconds=1)
    async with asyncio.timeout(20):
        while await store.get_note("made", "resp_1") is not None:
            await asyncio.sleep(0.05)
    assert not await replace({"at": 1, "to": 2}, {"at": 5})
    assert await replace(None, {"at": 7})
    assert await store.get_note("made", "resp_1") == {"at": 7}


async def test_of_many_who_replace_a_note_at_once_one_does(store: StateStore) -> None:
    known = None
    for turn in range(3):
        notes = [{"turn": turn, "by": number} for number in range(20)]
        tries = (store.replace_note("made", "resp_1", known, note, seconds=60) for note in notes)
        done = await asyncio.gather(*tries)
        assert sum(done) == 1
        known = notes[done.index(True)]
        assert await store.get_note("made", "resp_1") == known
