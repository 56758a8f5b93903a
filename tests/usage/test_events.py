"""Events: subscribers are told everything, and no request notices them."""

import asyncio
import threading
from collections.abc import Mapping
from typing import Any

import pytest

from apikeyrouter import ProviderError
from apikeyrouter.domain.interfaces.state_store import StateStore
from apikeyrouter.domain.models.api_key import KeyState
from apikeyrouter.domain.models.system_error import InvalidRequestError
from apikeyrouter.infrastructure.observability.event_names import ALL, COMMON, EVENTS
from apikeyrouter.infrastructure.observability.subscriptions import WAITING_MAX
from apikeyrouter.infrastructure.state_store.memory_store import InMemoryStateStore
from apikeyrouter.infrastructure.state_store.redis_store import RedisStateStore
from apikeyrouter.router import ApiKeyRouter
from apikeyrouter.simulator import SimulatorProcess
from tests.router.house import MASTER_KEY, house, until

pytestmark = pytest.mark.asyncio(loop_scope="package")
Event = Mapping[str, Any]


def names(events: list[Event]) -> list[str]:
    """What the events are called."""
    return [event["event"] for event in events]


def one(events: list[Event], name: str) -> Event:
    """The only event of that name."""
    (found,) = [event for event in events if event["event"] == name]
    return found


async def test_a_subscriber_hears_of_everything_a_request_did(simulator: SimulatorProcess, store: StateStore) -> None:
    events: list[Event] = []
    await simulator.fail("insufficient_quota", organisation="org-a", count=1)
    async with house(simulator, store, ["a1", "b1"]) as made:
        made.router.subscribe_to_events(ALL, events.append)
        before = await made.router.register_key("sk-sim-house-a-number-2", "other")
        await made.router.key_manager.rotate_key(before.id, "sk-sim-house-slow-1")
        await made.router.key_manager.revoke_key(before.id)
        answers = [await made.route() for _ in range(2)]
        await until(lambda: "key.state_changed" in names(events))
        assert await made.router.observability.flush(5)
        assert {event["request_id"] for event in events if event["event"] == "request.completed"} == {
            answer.request_id for answer in answers
        }
        failed = one(events, "attempt.failed")
        assert (failed["key_id"], failed["category"], failed["status"]) == ("a1", "quota_exceeded_error", 429)
        moved = one(events, "key.state_changed")
        assert (moved["key_id"], moved["from_state"], moved["to_state"]) == ("a1", "available", "exhausted")
        assert moved["request_id"] == failed["request_id"]
        decided = [event for event in events if event["event"] == "routing.decided"]
        assert {event["key_id"] for event in decided} == {"b1"}
        about = [(event["event"], event["key_id"]) for event in events if event["event"].startswith("key.")]
        assert about[:3] == [(name, before.id) for name in ("key.registered", "key.changed", "key.revoked")]
        completed = next(event for event in events if event["event"] == "request.completed")
        assert completed["cost_nanousd"] > 0
        assert completed["input_tokens"] > 0
    for event in events:
        assert set(event) == {*COMMON, *EVENTS[event["event"]].fields}, event["event"]


async def test_a_rate_limit_cools_a_lane_and_says_so(simulator: SimulatorProcess, store: StateStore) -> None:
    events: list[Event] = []
    await simulator.fail("rate_limit_requests", organisation="org-a", count=1)
    async with house(simulator, store, ["a1", "b1"]) as made:
        made.router.subscribe_to_events(ALL, events.append)
        for _ in range(2):
            await made.route()
        await until(lambda: "lane.cooled" in names(events))
        cooled = one(events, "lane.cooled")
        assert cooled["request_id"] == one(events, "attempt.failed")["request_id"]
        assert cooled["lane"] == "g:org-a:gpt-4o-mini"


async def test_failures_budgets_and_configuration_are_told(simulator: SimulatorProcess, store: StateStore) -> None:
    events: list[Event] = []
    tiny = {"name": "all", "scope": "global", "limit_usd": 1e-9, "period": "total", "enforcement": "soft"}
    await simulator.fail("context_length_exceeded", organisation="org-a")
    async with house(simulator, store, ["a1"]) as made:
        made.router.subscribe_to_events("request.failed", events.append)
        made.router.subscribe_to_events("config.changed", events.append)
        made.router.subscribe_to_events("budget.soft_exceeded", events.append)
        with pytest.raises(ProviderError):
            await made.route()
        await simulator.control(clear_failures=True)
        await made.apply(["a1"], budgets=[tiny])
        answer = await made.route()
        assert await made.router.observability.flush(5)
        assert one(events, "request.failed")["outcome"] == "validation_error"
        assert "config.changed" in names(events)
        exceeded = one(events, "budget.soft_exceeded")
        assert (exceeded["scope"], exceeded["request_id"]) == ("global:all", answer.request_id)


async def test_a_breaker_that_opens_and_closes_is_told(simulator: SimulatorProcess) -> None:
    events: list[Event] = []
    await simulator.fail("disconnect", organisation="org-a")
    async with house(simulator, InMemoryStateStore(), ["a1"]) as made:
        made.router.attempts_max = 1
        made.router.subscribe_to_events("circuit.opened", events.append)
        made.router.subscribe_to_events("circuit.closed", events.append)
        for _ in range(40):
            with pytest.raises(Exception, match=r"."):
                await made.route()
        await until(lambda: names(events)[:1] == ["circuit.opened"])
        assert events[0]["until_us"] > 0
        await simulator.control(clear_failures=True)

        async def closed() -> bool:
            try:
                await made.route()
            except Exception:
                return False
            return "circuit.closed" in names(events)

        await until(closed)


async def test_an_async_callback_runs_on_the_routers_loop_and_a_plain_one_in_its_own_thread(
    simulator: SimulatorProcess,
) -> None:
    heard: list[object] = []

    async def on_loop(event: Event) -> None:
        heard.append(asyncio.get_running_loop())

    async with house(simulator, InMemoryStateStore(), ["a1"]) as made:
        made.router.subscribe_to_events("request.completed", on_loop)
        subscribed = await made.router.subscribe_to_events(
            "request.completed", lambda _: heard.append(threading.current_thread())
        )
        await made.route()
        assert await made.router.observability.flush(5)
        assert asyncio.get_running_loop() in heard
        assert len(heard) == 2
        assert threading.main_thread() not in heard
        subscribed.cancel()
        await made.route()
        assert await made.router.observability.flush(5)
        assert len(heard) == 3


async def test_callbacks_that_raise_or_hang_hold_up_no_request(simulator: SimulatorProcess) -> None:
    release = threading.Event()
    heard: list[Event] = []

    def broken(event: Event) -> None:
        raise RuntimeError("a subscriber's own mistake")

    async def broken_too(event: Event) -> None:
        raise RuntimeError("another one")

    async with house(simulator, InMemoryStateStore(), ["a1"]) as made:
        router = made.router
        hanging = router.subscribe_to_events("request.completed", lambda _: release.wait(30))
        for callback in (broken, broken_too, heard.append):
            router.subscribe_to_events("request.completed", callback)
        for _ in range(3):
            await made.route()
        await until(lambda: len(heard) == 3)
        for _ in range(WAITING_MAX + 10):
            hanging.put({})
        assert hanging.dropped >= 10
        assert router.observability.dropped == hanging.dropped
        release.set()


async def test_what_processes_change_is_told_in_the_other_process(simulator: SimulatorProcess, redis_url: str) -> None:
    events: list[Event] = []
    async with house(simulator, RedisStateStore(redis_url), ["a1"]) as made:
        other = ApiKeyRouter(state_store=RedisStateStore(redis_url), config={"encryption_key": MASTER_KEY})
        async with other:
            await other.start()
            other.subscribe_to_events("config.changed", events.append)
            await made.apply(["a1", "b1"], limits=[{"quota_group": "org-a", "rpm": 7}])
            await until(lambda: "config.changed" in names(events))


@pytest.mark.parametrize(("event_type", "callback"), [("key.state_chnaged", print), ("*", "no function"), ("", print)])
async def test_a_wrong_subscription_is_refused(event_type: str, callback: Any) -> None:
    with pytest.raises(InvalidRequestError, match=r"event_type|callback"):
        ApiKeyRouter().subscribe_to_events(event_type, callback)


async def test_an_operators_change_is_no_requests_event(simulator: SimulatorProcess) -> None:
    events: list[Event] = []
    async with house(simulator, InMemoryStateStore(), ["a1"]) as made:
        made.router.subscribe_to_events("key.state_changed", events.append)
        await made.router.key_manager.update_key_state("a1", KeyState.Disabled, "maintenance")
        await until(lambda: names(events) == ["key.state_changed"])
        assert (events[0]["request_id"], events[0]["actor"], events[0]["reason"]) == ("", "operator", "maintenance")


async def test_a_change_is_told_by_the_process_that_made_it_and_the_others_can_look_it_up(
    simulator: SimulatorProcess, redis_url: str
) -> None:
    heard: dict[str, list[Event]] = {"here": [], "there": []}
    async with (
        house(simulator, RedisStateStore(redis_url), ["a1"]) as here,
        house(simulator, RedisStateStore(redis_url), ["a1"]) as there,
    ):
        here.router.subscribe_to_events("key.state_changed", heard["here"].append)
        there.router.subscribe_to_events("key.state_changed", heard["there"].append)
        await here.router.key_manager.update_key_state("a1", KeyState.Throttled, "by hand", actor="ann")
        await until(lambda: there.router.catalogue.keys["a1"].state is KeyState.Throttled)
        for made in (here, there):
            assert await made.router.observability.flush(5)
        assert [(event["key_id"], event["actor"]) for event in heard["here"]] == [("a1", "ann")]
        assert heard["there"] == []
        (entry,) = [each for each in await there.router.key_manager.get_transitions("a1") if each.reason == "by hand"]
        assert entry.actor == "ann"
