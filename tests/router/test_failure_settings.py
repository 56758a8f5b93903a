"""Time limits, breakers, the retry budget and the guard against failures alike, as a configuration file sets them."""

import pytest

from apikeyrouter import NoEligibleKeysError, ProviderError
from apikeyrouter.domain.interfaces.state_store import StateStore
from apikeyrouter.domain.models.api_key import KeyState
from apikeyrouter.infrastructure.adapters.openai_adapter import OpenAIAdapter
from apikeyrouter.infrastructure.adapters.transport import Timeouts
from apikeyrouter.infrastructure.state_store.redis_store import RedisStateStore
from apikeyrouter.router import ApiKeyRouter
from apikeyrouter.simulator import SimulatorProcess
from tests.router.house import MASTER_KEY, House, house, intent, until

pytestmark = pytest.mark.asyncio(loop_scope="package")
STALLED_MS = 200


def providers(simulator: SimulatorProcess, **own: object) -> dict[str, object]:
    return {
        "openai": {"adapter": "openai", "base_url": simulator.openai_url, **own},
        "other": {"adapter": "openai", "base_url": simulator.openai_url},
    }


async def meanings(made: House) -> list[str]:
    with pytest.raises(ProviderError):
        await made.route()
    return [attempt.meaning for attempt in made.finished[-1].attempts]


async def test_the_time_limits_of_a_file_hold_and_a_provider_has_its_own(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    await simulator.fail("stall_before_first_byte", seconds=3600)
    short = {"timeouts": {"first_byte_ms": STALLED_MS}}
    own = {"routing": {"timeouts": {"first_byte_ms": 3_600_000, "total_ms": 900}}}
    async with house(simulator, store, ["a1", "b1"], routing=short) as made:
        assert await meanings(made) == ["provider_late", "provider_late"]
        await made.apply(["a1"], **own)
        assert await meanings(made) == ["deadline_passed"]
        await made.apply(["a1"], providers=providers(simulator, **short), **own)
        assert await meanings(made) == ["provider_late"]
        await made.apply(["a1"])
        assert made.router.timeouts == Timeouts()
        await made.at_rest()


async def test_a_stream_that_says_nothing_of_the_answer_is_left_in_time(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    slow = {"id": "s1", "provider": "openai", "key": "sk-sim-house-slow-1", "quota_group": "org-s"}
    async with house(simulator, store, [slow, "b1"], routing={"timeouts": {"first_token_ms": STALLED_MS}}) as made:
        await simulator.fail("stall_mid_stream", organisation="org-s", seconds=3600, after_chunks=0)
        for _ in range(2):
            await made.stream()
        overs = [facts.attempts for facts in made.finished if len(facts.attempts) == 2]
        assert overs
        for late, served in overs:
            assert (late.meaning, late.status, served.meaning) == ("provider_late", 200, "")
        assert await made.at_rest() >= await made.billed()


async def test_a_breaker_opens_where_the_file_says_in_every_process(
    simulator: SimulatorProcess, redis_url: str
) -> None:
    await simulator.fail("server_error")
    eager = {"attempts_max": 1, "breakers": {"provider": {"failures": 2, "open_ms": 60_000}}}
    async with house(simulator, RedisStateStore(redis_url), ["a1", "a2"], routing=eager) as made:
        for _ in range(2):
            await meanings(made)
        assert await made.router.books.flush(seconds=10)
        with pytest.raises(NoEligibleKeysError):
            await made.route()
        other = ApiKeyRouter(state_store=RedisStateStore(redis_url), config={"encryption_key": MASTER_KEY})
        other.attempts_max = 1
        async with other:  # it has no file: what it registers keeps to what the other's says
            await other.register_provider("elsewhere", OpenAIAdapter(simulator.openai_url))
            await other.register_key("sk-sim-house-b-number-1", "elsewhere")
            for _ in range(2):
                with pytest.raises(ProviderError):
                    await other.route(intent(provider_id="elsewhere"))
            assert await other.books.flush(seconds=10)
            with pytest.raises(NoEligibleKeysError):
                await other.route(intent(provider_id="elsewhere"))


async def test_the_retry_budget_of_a_file_holds(simulator: SimulatorProcess, store: StateStore) -> None:
    await simulator.fail("server_error")
    async with house(simulator, store, ["a1", "b1"], routing={"retry_budget": {"share": 0, "floor": 1}}) as made:
        assert len(await meanings(made)) == 2
        assert len(await meanings(made)) == 1


async def test_keys_are_spared_where_fewer_failures_alike_are_enough(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    await simulator.fail("invalid_api_key")
    wary = {"correlated_failures": {"keys": 2, "within_ms": 600_000}}
    async with house(simulator, store, ["a1", "s1"], routing=wary) as made:
        await meanings(made)

        async def spared() -> bool:
            keys = [await made.router.state_store.get_key(key) for key in ("a1", "s1")]
            return all(key is not None and key.state is KeyState.Available for key in keys)

        await until(spared)
