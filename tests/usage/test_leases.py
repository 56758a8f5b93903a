"""Leases: a key for a call of one's own, with the accounting of every other request."""

import asyncio
import math
from typing import Any

import anthropic
import openai
import pytest
from anthropic import AsyncAnthropic, DefaultAsyncHttpxClient
from openai import AsyncOpenAI, OpenAI

from apikeyrouter import BudgetExceededError, Lease, Policy, PolicyDeniedError, ProviderError
from apikeyrouter.domain.components.routing_engine import NoEligibleKeysError
from apikeyrouter.domain.interfaces.provider_adapter import ProviderAdapter
from apikeyrouter.domain.interfaces.state_store import StateStore
from apikeyrouter.domain.models.api_key import KeyState
from apikeyrouter.domain.models.request_intent import RequestIntent
from apikeyrouter.domain.models.system_error import InvalidRequestError
from apikeyrouter.domain.models.system_response import TokenUsage
from apikeyrouter.infrastructure.state_store.memory_store import InMemoryStateStore
from apikeyrouter.infrastructure.state_store.redis_store import RedisStateStore
from apikeyrouter.router import ApiKeyRouter
from apikeyrouter.simulator import SimulatorProcess
from tests.router.house import House, house, until

pytestmark = pytest.mark.asyncio(loop_scope="package")
DEAREST = 75_000
"""Nano-dollars of 100 input and 50 output tokens of gpt-4o-mini in its dearest tier."""
HELLO: list[Any] = [{"role": "user", "content": "hello there"}]
LIMITS = [{"quota_group": "org-a", "rpd": 3, "kind": "fixed", "headroom": 0}]


def hard(limit_usd: float) -> list[dict[str, Any]]:
    """A hard budget over everything."""
    return [{"name": "all", "scope": "global", "limit_usd": limit_usd, "period": "total", "enforcement": "hard"}]


def sdk(lease: Lease, **options: Any) -> AsyncOpenAI:
    """The official SDK with a leased key."""
    return AsyncOpenAI(api_key=lease.key, base_url=lease.base_url, **{"max_retries": 0, **options})


async def ask(lease: Lease, **options: Any) -> Any:
    """One call of one's own."""
    async with sdk(lease) as client:
        return await client.chat.completions.create(model=lease.model, messages=HELLO, **options)


async def held(made: House) -> list[Any]:
    """Reservations that are open in the ledger."""
    return await made.router.ledger.reservations()


async def test_a_call_of_ones_own_is_booked_exactly_as_billed(simulator: SimulatorProcess, store: StateStore) -> None:
    async with house(simulator, store, ["a1"]) as made:
        async with made.router.lease("gpt-4o-mini", provider_id="openai", estimated_tokens=300) as lease:
            assert (lease.key_id, lease.provider_id, lease.model) == ("a1", "openai", "gpt-4o-mini")
            assert len(await held(made)) == made.router.in_flight == 1
            answer = await ask(lease)
            assert await lease.settle(answer.usage)
            assert lease.ended
        assert await made.at_rest() == await made.billed() > 0
        (facts,) = made.finished
        assert (facts.operation, facts.outcome, facts.request_id) == ("lease", "ok", lease.request_id)
        assert facts.usage is not None
        assert not facts.usage.estimated
        trace = await made.router.get_trace(lease.request_id)
        assert trace is not None
        assert "capacity.held" in [step.name for step in trace.events]


async def test_anthropics_usage_is_read_in_its_own_sense(simulator: SimulatorProcess, store: StateStore) -> None:
    async with house(simulator, store, ["c1"]) as made:
        async with made.router.lease("claude-haiku-5", estimated_tokens=300) as lease:
            async with AsyncAnthropic(api_key=lease.key, base_url=lease.base_url) as client:
                message = await client.messages.create(model=lease.model, max_tokens=12, messages=HELLO)
            lease.settle(message)
        assert await made.at_rest() == await made.billed() > 0


async def test_a_stream_of_ones_own_is_settled_with_its_last_chunk(simulator: SimulatorProcess) -> None:
    async with house(simulator, InMemoryStateStore(), ["a1"]) as made:
        async with made.router.lease("gpt-4o-mini", estimated_tokens=300) as lease:
            stream = await ask(lease, stream=True, stream_options={"include_usage": True})
            chunks = [chunk async for chunk in stream]
            lease.settle(chunks[-1].usage)
        assert await made.at_rest() == await made.billed() > 0


@pytest.mark.parametrize(
    "told",
    [
        {"usage": {"prompt_tokens": 20, "completion_tokens": 10, "total_tokens": 30}},
        {"prompt_tokens": 20, "completion_tokens": 10},
        {"input_tokens": 20, "output_tokens": 10},
        TokenUsage(input_tokens=20, output_tokens=10),
    ],
    ids=["an answer", "chat", "responses", "ours"],
)
async def test_usage_may_be_told_in_many_ways(simulator: SimulatorProcess, told: Any) -> None:
    async with house(simulator, InMemoryStateStore(), ["a1"]) as made:
        for way in ({"usage": told}, {"input_tokens": 20, "output_tokens": 10}):
            async with made.router.lease("gpt-4o-mini", estimated_tokens=300) as lease:
                lease.settle(**way)
        first, second = made.finished
        assert first.cost_nanousd == second.cost_nanousd == 20 * 150 + 10 * 600


@pytest.mark.parametrize(
    "wrong",
    [{"input_tokens": -1}, {"input_tokens": True}, {"output_tokens": 1.5}, {}, {"usage": 3}, {"usage": {}},
     {"usage": {"prompt_tokens": "many"}}, {"usage": {"prompt_tokens": math.nan, "completion_tokens": 1}},
     {"usage": {"usage": {"input_tokens": 1, "output_tokens": math.inf}}},
     {"usage": {"prompt_tokens": 2**40, "completion_tokens": 1}},
     {"usage": TokenUsage(input_tokens=10**30, output_tokens=1)}, {"usage": {"prompt_tokens": 1}, "input_tokens": 1}],
)  # fmt: skip
async def test_wrong_usage_is_refused_and_the_lease_stays_open(simulator: SimulatorProcess, wrong: Any) -> None:
    async with house(simulator, InMemoryStateStore(), ["a1"]) as made:
        async with made.router.lease("gpt-4o-mini", estimated_tokens=300) as lease:
            with pytest.raises(InvalidRequestError):
                lease.settle(**wrong)
            assert not lease.ended
            lease.settle(input_tokens=1, output_tokens=1)
            for again in (lambda: lease.settle(input_tokens=1), lease.release, lambda: lease.fail(ValueError())):
                with pytest.raises(InvalidRequestError, match="ended"):
                    again()
        assert await made.at_rest() == 150 + 600


async def test_where_nothing_is_said_the_estimate_is_charged_and_marked(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    async with house(simulator, store, ["a1"]) as made:
        async with made.router.lease("gpt-4o-mini", input_tokens=100, max_output_tokens=50):
            pass
        assert await made.at_rest() == 100 * 150 + 50 * 600
        (facts,) = made.finished
        assert facts.usage is not None
        assert (facts.outcome, facts.usage.estimated) == ("ok", True)


async def test_an_unused_key_is_given_back_with_all_that_was_held(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    async with house(simulator, store, ["a1"], limits=LIMITS) as made:
        for _ in range(5):
            async with made.router.lease("gpt-4o-mini", estimated_tokens=300) as lease:
                await lease.release()
        assert await made.at_rest() == 0
        assert [facts.outcome for facts in made.finished] == ["released"] * 5


async def test_leases_and_routes_share_one_limit_exactly(simulator: SimulatorProcess, store: StateStore) -> None:
    async with house(simulator, store, ["a1"], limits=LIMITS) as made:
        async with (
            made.router.lease("gpt-4o-mini", estimated_tokens=30) as one,
            made.router.lease("gpt-4o-mini", estimated_tokens=30) as other,
        ):
            await made.route()
            for refused in (made.route(), made.router.lease("gpt-4o-mini", estimated_tokens=1).__aenter__()):
                with pytest.raises(NoEligibleKeysError):
                    await refused
            for lease in (one, other):
                lease.settle(await ask(lease))
        assert await made.at_rest() == await made.billed()
        assert (await made.seen("org-a"))["admitted"] == 3


async def test_hard_budgets_hold_what_is_stated_and_refuse_what_nothing_bounds(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    async with house(simulator, store, ["a1"], budgets=hard(DEAREST / 1e9)) as made:
        lease = made.router.lease
        with pytest.raises(BudgetExceededError):
            await lease("gpt-4o-mini").__aenter__()
        with pytest.raises(BudgetExceededError):
            await lease("gpt-4o-mini", input_tokens=101, max_output_tokens=50).__aenter__()
        with pytest.raises(BudgetExceededError):
            await lease("gpt-4o-mini", estimated_tokens=150).__aenter__()  # may all be output
        async with lease("gpt-4o-mini", input_tokens=100, max_output_tokens=50) as made_it:
            assert made_it.max_output_tokens == 50
            with pytest.raises(BudgetExceededError):
                await lease("gpt-4o-mini", input_tokens=1, max_output_tokens=0).__aenter__()
            made_it.settle(input_tokens=10, output_tokens=5)
        assert await made.at_rest() == 10 * 150 + 5 * 600


@pytest.mark.parametrize(
    ("failure", "state", "charged"),
    [
        ("rate_limit_requests", KeyState.Available, False),
        ("insufficient_quota", KeyState.Exhausted, False),
        ("invalid_api_key", KeyState.Invalid, False),
        ("context_length_exceeded", KeyState.Available, False),
        ("server_error", KeyState.Available, False),
        ("disconnect", KeyState.Available, True),
    ],
)
async def test_a_failure_of_the_sdk_is_read_like_any_failure_of_that_provider(
    simulator: SimulatorProcess, store: StateStore, failure: str, state: KeyState, charged: bool
) -> None:
    await simulator.fail(failure, organisation="org-a")
    async with house(simulator, store, ["a1"]) as made:
        with pytest.raises(openai.APIError):
            async with made.router.lease("gpt-4o-mini", estimated_tokens=300) as lease:
                await ask(lease)
        settled = await made.at_rest()
        assert (settled > 0) is charged
        await until(lambda: made.router.catalogue.keys["a1"].state is state)
        trace = await made.router.get_trace(lease.request_id)
        assert trace is not None
        names = [step.name for step in trace.events]
        assert "attempt.failed" in names
        if failure == "rate_limit_requests":
            assert "lane.cooled" in names
            with pytest.raises(NoEligibleKeysError):
                await made.route()


@pytest.mark.parametrize(
    ("failure", "error", "billed"),
    [("rate_limit_requests", anthropic.RateLimitError, False), ("error_mid_stream", anthropic.APIError, True)],
)
async def test_failures_of_anthropics_sdk_and_of_its_streams_are_read(
    simulator: SimulatorProcess, failure: str, error: type[Exception], billed: bool
) -> None:
    await simulator.fail(failure, organisation="org-c")
    async with house(simulator, InMemoryStateStore(), ["c1"]) as made:
        with pytest.raises(error):
            async with made.router.lease("claude-haiku-5", estimated_tokens=300) as lease:
                client = AsyncAnthropic(api_key=lease.key, base_url=lease.base_url, max_retries=0)
                async with (
                    client,
                    client.messages.stream(model=lease.model, max_tokens=12, messages=HELLO) as stream,
                ):
                    await stream.get_final_message()
        assert bool(await made.at_rest()) is billed
        assert made.finished[0].outcome in ("rate_limit_error", "provider_error")


async def test_a_provider_that_cannot_be_reached_was_certainly_not_billed(simulator: SimulatorProcess) -> None:
    async with house(simulator, InMemoryStateStore(), ["a1"]) as made:
        with pytest.raises(openai.APIConnectionError):
            async with made.router.lease("gpt-4o-mini", estimated_tokens=300) as lease:
                lease.base_url = "http://127.0.0.1:9/v1"
                await ask(lease)
        assert await made.at_rest() == 0
        assert made.finished[0].outcome == "network_error"


async def test_ones_own_mistake_speaks_against_nobody_and_the_estimate_is_charged(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    async with house(simulator, store, ["a1"]) as made:
        for mistake in (KeyError("mine"), FileNotFoundError(2, "mine"), InvalidRequestError("mine")):
            with pytest.raises(type(mistake)):
                async with made.router.lease("gpt-4o-mini", input_tokens=10, max_output_tokens=10):
                    raise mistake
        assert await made.at_rest() == 3 * (10 * 150 + 10 * 600)
        assert made.router.catalogue.keys["a1"].state is KeyState.Available
        assert (await made.route()).content


async def test_a_failure_that_was_caught_can_be_told(simulator: SimulatorProcess) -> None:
    await simulator.fail("rate_limit_requests", organisation="org-a")
    async with house(simulator, InMemoryStateStore(), ["a1", "b1"]) as made:
        async with made.router.lease("gpt-4o-mini", provider_id="openai", estimated_tokens=30) as lease:
            try:
                await ask(lease)
            except openai.RateLimitError as exc:
                failure = lease.fail(exc)
        assert failure is not None
        assert (failure.action, failure.scope) == ("cool", "quota_group")
        async with made.router.lease("gpt-4o-mini", estimated_tokens=30) as other:
            assert other.provider_id == "other"
            other.settle(await ask(other))
        assert await made.at_rest() == await made.billed() > 0


async def test_a_cancelled_block_holds_nothing(simulator: SimulatorProcess, store: StateStore) -> None:
    entered = asyncio.Event()

    async def hold(router: ApiKeyRouter) -> None:
        async with router.lease("gpt-4o-mini", estimated_tokens=30):
            entered.set()
            await asyncio.sleep(60)

    async with house(simulator, store, ["a1"]) as made:
        task = asyncio.create_task(hold(made.router))
        await entered.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await made.at_rest() > 0, "it is not known whether the key was used"
        assert made.finished[0].outcome == "cancelled"


async def test_a_cancelled_entry_holds_nothing(simulator: SimulatorProcess, redis_url: str) -> None:
    async with house(simulator, RedisStateStore(redis_url), ["a1"]) as made:
        entering = asyncio.ensure_future(made.router.lease("gpt-4o-mini", estimated_tokens=30).__aenter__())
        await asyncio.sleep(0)
        entering.cancel()
        with pytest.raises(asyncio.CancelledError):
            await entering
        await until(lambda: emptied(made))
        assert await made.at_rest() == 0


async def emptied(made: House) -> bool:
    """Whether nothing is open in the ledger."""
    return not await held(made)


async def test_a_lease_outlives_its_lease_time_by_the_heartbeat(simulator: SimulatorProcess, store: StateStore) -> None:
    async with house(simulator, store, ["a1"], routing={"lease_ms": 1000}) as made:
        async with made.router.lease("gpt-4o-mini", input_tokens=10, max_output_tokens=0) as lease:
            (hold,) = made.router.books.open.values()
            until_first = hold.renew_at
            await until(lambda: hold.renew_at > until_first + 1.5)
            assert len(await held(made)) == 1, "longer than a lease"
            lease.settle(input_tokens=10, output_tokens=0)
        assert await made.at_rest() == 1500


async def test_a_lease_that_the_ledger_gave_up_ends_the_block(simulator: SimulatorProcess, redis_url: str) -> None:
    async with house(simulator, RedisStateStore(redis_url), ["a1"]) as made:
        with pytest.raises(ProviderError, match="lease"):
            async with made.router.lease("gpt-4o-mini", estimated_tokens=30) as lease:
                (record,) = await held(made)
                await made.router.ledger.cancel(record.rid)
                made.router.books.open[record.rid].renew_at = 0
                await asyncio.sleep(60)
        assert lease.ended
        assert made.router.in_flight == 0


async def test_aliases_and_objectives_apply_and_keys_print_redacted(simulator: SimulatorProcess) -> None:
    models = {"fast": [{"provider": "other", "model": "gpt-4o-mini"}]}
    whose: dict[str, Any] = {"objective": "cost", "team": "eng", "client": "batch"}
    async with house(simulator, InMemoryStateStore(), ["a1", "b1"], models=models) as made:
        async with made.router.lease("fast", estimated_tokens=30, **whose) as lease:
            assert (lease.model, lease.provider_id) == ("gpt-4o-mini", "other")
            assert "Bearer sk-sim-house-b-number-1" in lease.headers.values()
            assert "sk-sim" not in f"{lease!r} {lease.key!r} {lease.key!s} {vars(lease)}"
            lease.settle(await ask(lease))
        facts = made.finished[0]
        assert (facts.team, facts.client, facts.objective) == ("eng", "batch", "cost")


async def test_policies_apply_to_leases(simulator: SimulatorProcess, store: StateStore) -> None:
    async with house(simulator, store, ["a1", "b1"]) as made:
        for _ in range(4):
            denied = {"name": "not there", "rules": {"denied_providers": ["openai"]}}
            async with made.router.lease("gpt-4o-mini", estimated_tokens=30, policy=denied) as lease:
                assert lease.provider_id == "other"
                lease.release()
        await made.router.configure_policy(Policy(name="nowhere", rules={"denied_models": ["gpt-4o-mini"]}))
        with pytest.raises(PolicyDeniedError):
            async with made.router.lease("gpt-4o-mini", estimated_tokens=30):
                pass
        assert await made.at_rest() == 0


class Own(ProviderAdapter):
    """A provider without a dialect of ours."""

    async def execute_request(self, intent: RequestIntent, key: str) -> Any:
        return "unused"


async def test_a_provider_without_a_dialect_can_be_leased_from() -> None:
    async with ApiKeyRouter(InMemoryStateStore()) as router:
        await router.register_provider("mine", Own())
        await router.register_key("a-key-of-my-own", "mine", {"cost_per_1k": 1})
        async with router.lease("anything", estimated_tokens=30) as lease:
            assert (lease.base_url, lease.headers) == (None, {})
            lease.settle({"prompt_tokens": 20, "completion_tokens": 10})
        assert router.decisions[-1].cost_nanousd == 30 * 1_000_000


@pytest.mark.parametrize(
    "wrong",
    [{"model": ""}, {"model": 3}, {"estimated_tokens": -1}, {"estimated_tokens": 2**60}, {"input_tokens": True},
     {"max_output_tokens": 5}, {"estimated_tokens": 5, "input_tokens": 5}, {"objective": "nonsense"}, {"team": ""},
     {"estimated_tokens": 5, "max_output_tokens": 6}],
)  # fmt: skip
async def test_wrong_arguments_are_refused_at_once(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError):
        ApiKeyRouter(InMemoryStateStore()).lease(**{"model": "gpt-4o-mini", **wrong})


async def test_threads_lease_too(simulator: SimulatorProcess, store: StateStore) -> None:
    async with house(simulator, store, ["a1"]) as made:

        def work() -> None:
            with made.router.sync.lease("gpt-4o-mini", estimated_tokens=300) as lease:
                client = OpenAI(api_key=lease.key, base_url=lease.base_url, max_retries=0)
                answer = client.chat.completions.create(model=lease.model, messages=HELLO)
                assert lease.settle(answer.usage) is True
            with pytest.raises(ZeroDivisionError), made.router.sync.lease("gpt-4o-mini", estimated_tokens=3) as lease:
                lease.release()
                _ = 1 // 0

        await asyncio.to_thread(work)
        assert await made.at_rest() == await made.billed() > 0
        assert [facts.outcome for facts in made.finished] == ["ok", "released"]


async def test_a_default_client_of_the_sdk_can_be_kept_over_many_leases(simulator: SimulatorProcess) -> None:
    async with house(simulator, InMemoryStateStore(), ["a1", "a2"]) as made, DefaultAsyncHttpxClient() as http:
        used = set()
        for _ in range(4):
            async with made.router.lease("gpt-4o-mini", estimated_tokens=300) as lease:
                answer = await sdk(lease, http_client=http).chat.completions.create(model=lease.model, messages=HELLO)
                lease.settle(answer)
                used.add(lease.key_id)
        assert used == {"a1", "a2"}
        assert await made.at_rest() == await made.billed() > 0


async def test_a_router_that_is_closed_within_a_lease_ends_the_lease_and_not_its_own_task(
    simulator: SimulatorProcess, redis_url: str
) -> None:
    async with house(simulator, RedisStateStore(redis_url), ["a1"]) as made:
        async with made.router.lease("gpt-4o-mini", provider_id="openai", estimated_tokens=300) as lease:
            await ask(lease)
            await made.router.close()
            assert lease.ended
        async with house(simulator, RedisStateStore(redis_url), ["a1"]) as again:
            assert await held(again) == []
            assert await again.at_rest() > 0, "what was expected is booked: nobody told what was used"
