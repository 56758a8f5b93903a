"""Keys: idempotent registration, rotation, states that every process sees, restarts, and what never leaves."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import redis

from apikeyrouter import ApiKeyRouter, ProviderError
from apikeyrouter.domain.components.key_manager import KeyRegistrationError
from apikeyrouter.domain.components.routing_engine import NoEligibleKeysError
from apikeyrouter.domain.interfaces.state_store import StateStore
from apikeyrouter.domain.models.accounting import Metric
from apikeyrouter.domain.models.api_key import KeyState
from apikeyrouter.domain.models.system_error import ConfigurationError, InvalidRequestError, PolicyDeniedError
from apikeyrouter.infrastructure.adapters.openai_adapter import OpenAIAdapter
from apikeyrouter.infrastructure.state_store.redis_store import RedisStateStore
from apikeyrouter.simulator import SimulatorProcess
from tests.router.house import MASTER_KEY, house, intent, until

pytestmark = pytest.mark.asyncio(loop_scope="package")
A1, A2, B1 = "sk-sim-house-a-number-1", "sk-sim-house-a-number-2", "sk-sim-house-b-number-1"


@asynccontextmanager
async def plain(simulator: SimulatorProcess, store: StateStore) -> AsyncIterator[ApiKeyRouter]:
    """A router with the simulated provider, and no key of its own."""
    router = ApiKeyRouter(state_store=store, config={"encryption_key": MASTER_KEY})
    router.register_provider("openai", OpenAIAdapter(simulator.openai_url))
    async with router:
        yield router


async def test_registering_is_idempotent_and_updates_metadata(simulator: SimulatorProcess, store: StateStore) -> None:
    async with plain(simulator, store) as router:
        first = await router.register_key(A1, "openai", {"weight": 2})
        again = await router.register_key(f"  {A1}\n", "openai", {"weight": 3})
        assert first.id == again.id
        assert [(key.id, key.metadata) for key in await router.key_manager.list_keys()] == [(first.id, {"weight": 3})]
        assert router.catalogue.keys[first.id].weight == 3
        assert (await router.route(intent())).key_used == first.id


async def test_registrations_that_nobody_awaited_are_finished_before_the_first_request(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    router = ApiKeyRouter(state_store=store, config={"encryption_key": MASTER_KEY})
    router.register_provider("openai", OpenAIAdapter(simulator.openai_url))
    router.register_key(A1, "openai")
    router.register_key(A2, "openai")
    try:
        answers = await asyncio.gather(*(router.route(intent()) for _ in range(4)))
        assert len({answer.key_used for answer in answers}) == 2
    finally:
        await router.close()


async def test_an_error_that_nobody_saw_is_raised_at_the_first_request_once(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    async with plain(simulator, store) as router:
        router.register_key("", "openai")
        router.register_key(A1, "openai")
        with pytest.raises(KeyRegistrationError):
            await router.route(intent())
        assert (await router.route(intent())).content


async def test_of_several_errors_that_nobody_saw_each_is_told_and_what_succeeded_holds(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    async with plain(simulator, store) as router:
        router.register_key(A1, "openai")
        router.register_key("", "openai")
        router.configure_policy({"name": "wrong", "rules": {"denied_model": ["gpt-4o-mini"]}})
        router.configure_quota("nobody", "daily", 1)
        router.configure_policy({"name": "right", "rules": {"denied_models": ["gpt-4o-mini"]}})
        with pytest.raises(ConfigurationError, match="3 registrations failed") as caught:
            await router.route(intent())
        empty_key, policy, quota = caught.value.errors
        assert "empty" in empty_key
        assert "denied_model" in policy
        assert "nobody" in quota
        assert all(error in str(caught.value) for error in caught.value.errors)
        assert isinstance(caught.value.__cause__, ExceptionGroup)
        assert isinstance(caught.value.__cause__.exceptions[0], KeyRegistrationError)
        for _ in range(2):
            with pytest.raises(PolicyDeniedError, match="right"):
                await router.route(intent())


async def test_an_error_that_nobody_saw_outlives_the_request_that_was_given_up_before_it(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    async with plain(simulator, store) as router:
        router.configure_policy({"name": "wrong", "rules": {"denied_model": ["gpt-4o-mini"]}})
        opened, go_on = asyncio.Event(), asyncio.Event()

        async def slow() -> None:
            opened.set()
            await go_on.wait()

        router._deferrals.add(slow)
        waiting = asyncio.create_task(router.route(intent()))
        await opened.wait()
        await until(lambda: len(router._deferrals._unfinished) == 1)
        waiting.cancel()
        await asyncio.wait([waiting])
        go_on.set()
        with pytest.raises(InvalidRequestError, match="denied_model"):
            await router.route(intent())


async def test_an_error_whose_waiter_gave_up_is_raised_at_the_first_request(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    async with plain(simulator, store) as router:
        go_on = asyncio.Event()
        router._deferrals.add(go_on.wait)
        registration = router.register_key("", "openai")

        async def wait() -> None:
            await registration

        waiting = asyncio.create_task(wait())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        go_on.set()
        with pytest.raises(KeyRegistrationError, match="empty"):
            await router.route(intent())


async def test_a_closed_router_refuses_until_it_is_opened_again(simulator: SimulatorProcess, store: StateStore) -> None:
    router = ApiKeyRouter(state_store=store, config={"encryption_key": MASTER_KEY})
    router.register_provider("openai", OpenAIAdapter(simulator.openai_url))
    async with router:
        key = await router.register_key(A1, "openai")
        assert (await router.route(intent())).key_used == key.id
        later = router.configure_policy({"name": "none", "rules": {"denied_models": ["gpt-4o-mini"]}})
        await router.close()
        await router.close()
    tasks = asyncio.all_tasks()
    doors: list[Awaitable[object]] = [
        router.route(intent()), anext(router.route_stream(intent())), router.route_batch([intent()]),
        router.get_state_summary(), router.lease("gpt-4o-mini").__aenter__(), router.register_key(A2, "openai"),
        router.cost_controller.get_budget_status("all"), router.explain("req_1"), router.dry_run(intent()),
        router.routing_engine.route_request(intent(), "cost"),
        asyncio.to_thread(router.sync.route, intent()),
    ]  # fmt: skip
    for door in doors:
        with pytest.raises(ConfigurationError, match="this router is closed; open it again"):
            await door
    assert router.loop is None
    assert [task for task in asyncio.all_tasks() - tasks if not task.done()] == []
    async with router:
        assert (await later).id == "none", "what was told before it closed is done"
        with pytest.raises(PolicyDeniedError, match="none"):
            await router.route(intent())
    await asyncio.to_thread(router.sync.close)


async def test_an_error_that_was_seen_is_not_raised_again(simulator: SimulatorProcess, store: StateStore) -> None:
    async with plain(simulator, store) as router:
        with pytest.raises(KeyRegistrationError):
            await router.register_key(A1, "nobody")
        with pytest.raises(ConfigurationError):
            await router.register_provider("openai", OpenAIAdapter(simulator.openai_url))
        await router.register_key(A1, "openai")
        assert (await router.route(intent())).content


@pytest.mark.parametrize(
    "metadata",
    [
        {"weight": -1},
        {"cost_per_1k": "nan"},
        {"limits": {"rpm": 0}},
        {"limits": {"rpm": 2**53}},
        {"limits": {"what": 1}},
        {"limits": [{"rpm": 1, "models": []}]},
        {"limits": [{"rpm": 1}, *({"rpd": 1, "models": ["a", other]} for other in "bcde")]},
    ],
)
async def test_wrong_metadata_is_refused_and_nothing_is_kept(
    simulator: SimulatorProcess, store: StateStore, metadata: dict[str, Any]
) -> None:
    async with plain(simulator, store) as router:
        with pytest.raises(KeyRegistrationError) as caught:
            await router.register_key(A1, "openai", metadata)
        assert A1 not in str(caught.value)
        assert await router.key_manager.list_keys() == []
        assert router.catalogue.keys == {}


async def test_a_rotated_key_keeps_its_id_whoever_registers_what(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    async with plain(simulator, store) as router:
        key = await router.register_key(A1, "openai")
        await router.key_manager.rotate_key(key.id, B1)
        assert (await router.register_key(B1, "openai")).id == key.id
        assert (await router.register_key(A1, "openai", {"weight": 2})).id == key.id
        assert len(await router.key_manager.list_keys()) == 1
        await router.route(intent())
        report = await simulator.report()
        assert [report["organisations"][name]["admitted"] for name in ("org-a", "org-b")] == [0, 1]


async def test_a_request_under_way_survives_the_rotation_of_its_key(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    async with plain(simulator, store) as router:
        key = await router.register_key("sk-sim-house-slow-1", "openai")
        stream = router.route_stream(intent("[[tokens:20]] please"))
        await anext(stream)
        await router.key_manager.rotate_key(key.id, A1)
        assert [chunk async for chunk in stream][-1].last
        await router.route(intent())
        assert (await simulator.report())["organisations"]["org-a"]["admitted"] == 1


async def test_a_key_revoked_while_in_use_ends_as_it_does(simulator: SimulatorProcess, store: StateStore) -> None:
    async with plain(simulator, store) as router:
        key = await router.register_key("sk-sim-house-slow-1", "openai")
        stream = router.route_stream(intent("[[tokens:20]] please"))
        await anext(stream)
        await router.key_manager.revoke_key(key.id)
        assert [chunk async for chunk in stream][-1].last
        with pytest.raises(InvalidRequestError):
            await router.route(intent())


async def test_a_restart_keeps_keys_encrypted_and_learned_ratios(simulator: SimulatorProcess, redis_url: str) -> None:
    async with plain(simulator, RedisStateStore(redis_url)) as router:
        key = await router.register_key(A1, "openai", {"weight": 2})
        for _ in range(5):
            await router.route(intent("some words that are counted " * 20))
        learned = router.estimator.export()
    with redis.Redis.from_url(redis_url) as client:
        dump = b"".join(client.dump(name) or b"" for name in client.scan_iter())
    assert A1.encode() not in dump
    async with plain(simulator, RedisStateStore(redis_url)) as router:
        assert (await router.route(intent())).key_used == key.id
        assert learned["models"]
        models = router.estimator.export()["models"]
        assert isinstance(models, list)
        assert [row[:2] for row in models] == [["openai", "gpt-4o-mini"]]


async def test_without_the_master_key_keys_are_reported_not_served(simulator: SimulatorProcess, redis_url: str) -> None:
    async with plain(simulator, RedisStateStore(redis_url)) as router:
        await router.register_key(A1, "openai")
    other = ApiKeyRouter(
        state_store=RedisStateStore(redis_url), config={"encryption_key": MASTER_KEY.replace("MDEy", "OTg3")}
    )
    async with other:
        await other.register_provider("openai", OpenAIAdapter(simulator.openai_url))
        with pytest.raises(InvalidRequestError, match="no key serves"):
            await other.route(intent())


async def test_other_processes_see_keys_and_states_within_a_second(simulator: SimulatorProcess, redis_url: str) -> None:
    async with (
        plain(simulator, RedisStateStore(redis_url)) as one,
        plain(simulator, RedisStateStore(redis_url)) as two,
    ):
        key = await one.register_key(A1, "openai")
        await until(lambda: key.id in two.catalogue.keys)
        assert (await two.route(intent())).key_used == key.id
        await one.key_manager.update_key_state(key.id, "disabled", "maintenance")
        await until(lambda: two.catalogue.keys[key.id].state is KeyState.Disabled)
        with pytest.raises(NoEligibleKeysError, match="maintenance"):
            await two.route(intent())
        await one.key_manager.revoke_key(key.id)
        await until(lambda: key.id not in two.catalogue.keys)


async def test_a_throttled_key_comes_back_by_itself(simulator: SimulatorProcess, store: StateStore) -> None:
    async with plain(simulator, store) as router:
        key = await router.register_key(A1, "openai")
        await router.key_manager.update_key_state(key.id, "throttled", for_seconds=0.3)
        with pytest.raises(NoEligibleKeysError):
            await router.route(intent())
        await until(lambda: router.catalogue.keys[key.id].state is KeyState.Available)
        assert (await router.route(intent())).content


async def test_an_exhausted_key_recovers_by_serving(simulator: SimulatorProcess, store: StateStore) -> None:
    async with plain(simulator, store) as router:
        key = await router.register_key(A1, "openai")
        await router.key_manager.update_key_state(key.id, "exhausted", for_seconds=0.2)
        await until(lambda: router.catalogue.keys[key.id].state is KeyState.Recovering)
        assert (await router.route(intent())).content

        async def recovered() -> bool:
            stored = await router.key_manager.get_key(key.id)
            return stored is not None and stored.state is KeyState.Available

        await until(recovered)


async def test_limits_of_several_keys_in_one_group_are_one_limit(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    async with plain(simulator, store) as router:
        await router.register_key(
            A1, "openai", {"quota_group": "org-a", "limits": {"rpd": 9, "kind": "fixed", "headroom": 0}}
        )
        await router.register_key(
            A2, "openai", {"quota_group": "org-a", "limits": [{"rpd": 5, "kind": "fixed", "headroom": 0}]}
        )
        answers = await asyncio.gather(*(router.route(intent()) for _ in range(12)), return_exceptions=True)
        assert sum(not isinstance(answer, BaseException) for answer in answers) == 5
        assert all(isinstance(answer, NoEligibleKeysError) for answer in answers if isinstance(answer, BaseException))


async def test_an_unlearned_key_learns_its_limits_from_headers(simulator: SimulatorProcess, store: StateStore) -> None:
    await simulator.control(organisation="org-a", limits=[{"rpm": 60, "burst": 3}])
    async with plain(simulator, store) as router:
        key = await router.register_key(A1, "openai")
        await router.route(intent())
        lane = f"g:{key.id}:gpt-4o-mini"

        async def learned() -> bool:
            states = await router.ledger.lanes([lane])
            return any(limit.learned and limit.metric is Metric.REQUESTS for state in states for limit in state.limits)

        await until(learned)
        await until(lambda: lane in router.snapshot.lanes)


async def test_nothing_secret_leaves(
    simulator: SimulatorProcess, redis_url: str, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    said: list[str] = []
    async with house(simulator, RedisStateStore(redis_url), ["a1", "b1"]) as made:
        for failure in ("invalid_api_key", "insufficient_quota", "server_error", "disconnect", "error_first_event"):
            await simulator.fail(failure, count=2)
            for ask in (made.route, made.stream):
                try:
                    said.append(repr(await ask()))
                except (ProviderError, NoEligibleKeysError) as exc:
                    said.append(f"{exc!r} {getattr(exc, 'details', '')} {exc.__cause__!r}")
        await made.router.books.flush(seconds=5)
        said.append(repr(made.finished))
        said.append(repr(await made.router.get_state_summary()))
        said.append(json.dumps([key.public() for key in await made.router.key_manager.list_keys()]))
        said.append(repr(made.router.catalogue.keys))
        said.append(repr(made.router.estimator.export()))
    with redis.Redis.from_url(redis_url) as client:
        said.extend(str(client.dump(name)) for name in client.scan_iter())
    shown = capsys.readouterr()
    everything = "\n".join([*said, caplog.text, shown.out, shown.err])
    for material in (A1, B1, MASTER_KEY):
        assert material not in everything


async def test_a_due_return_is_seen_without_any_change_in_the_store(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    async with plain(simulator, store) as router:
        key = await router.register_key(A1, "openai")
        await router.key_manager.update_key_state(key.id, "throttled", for_seconds=3600)
        assert not router.key_manager.is_due()
        await router.key_manager.update_key_state(key.id, "throttled", for_seconds=0.05)
        await until(lambda: router.catalogue.keys[key.id].state is KeyState.Available)
        assert not router.key_manager.is_due()
