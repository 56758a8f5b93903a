"""`router.failure_handler`: each method's effect seen through another door, and what it does by itself."""

import asyncio
import contextlib
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apikeyrouter import ApiKeyRouter, ErrorCategory, NoEligibleKeysError, ProviderError, SystemError
from apikeyrouter.domain.components.failure_taxonomy import ALIKE, DEAD, DOWN, EXHAUSTED, MEANINGS, REJECT
from apikeyrouter.domain.components.retry_budget import RetryBudget
from apikeyrouter.domain.interfaces.state_store import StateStore
from apikeyrouter.domain.models.api_key import KeyState
from apikeyrouter.domain.models.failure import CircuitPhase, Failure
from apikeyrouter.domain.models.system_error import InvalidRequestError
from apikeyrouter.infrastructure.adapters.transport import ResponseLost, UpstreamTimeout
from apikeyrouter.infrastructure.state_store.memory_store import InMemoryStateStore
from apikeyrouter.infrastructure.state_store.redis_store import RedisStateStore
from apikeyrouter.simulator import SimulatorProcess
from tests.router.house import House, house, until

pytestmark = pytest.mark.asyncio(loop_scope="package")
A1, A2 = "sk-sim-house-a-number-1", "sk-sim-house-a-number-2"
OFFERED = 40
"""Requests of one load."""


async def offered(made: House, count: int = OFFERED) -> int:
    """Offer requests at a constant pace; how many attempts reached the providers."""
    before = await attempts(made)

    async def one() -> None:
        with contextlib.suppress(ProviderError, NoEligibleKeysError):
            await made.route()

    for _ in range(count):
        await asyncio.gather(one(), asyncio.sleep(0.02))
    return await attempts(made) - before


async def attempts(made: House) -> int:
    return int((await made.simulator.report())["total"]["arrived"])


async def stored(made: House, key_id: str) -> KeyState:
    key = await made.router.key_manager.get_key(key_id)
    assert key is not None
    return key.state


# --- interpret_failure -----------------------------------------------------------------------------------------------


class Refused(Exception):
    """As HTTP clients raise it."""

    def __init__(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        super().__init__(f"status {status} for {A1}")
        self.response = type("Response", (), {"status_code": status, "content": body, "headers": headers})()


QUOTA = b'{"error":{"message":"no money","type":"insufficient_quota","code":"insufficient_quota"}}'


async def test_an_error_is_interpreted_by_its_providers_dialect_its_adapter_or_its_kind(
    simulator: SimulatorProcess,
) -> None:
    async with house(simulator, InMemoryStateStore()) as made:
        read = made.router.failure_handler.interpret_failure
        at_a1 = {"provider_id": "openai", "key_id": "a1"}
        assert read(Refused(429, QUOTA, {}), at_a1).meaning == "exhausted"
        slow = read(Refused(429, b"{}", {"Retry-After": "7"}), at_a1)
        assert (slow.meaning, slow.retry_after, slow.retryable) == ("rate_limited", 7, True)
        assert read(Refused(429, QUOTA, {})).category is ErrorCategory.RateLimitError  # nobody said whose it is
        assert read(UpstreamTimeout("first_byte", sent=True)).meaning == "provider_late"
        assert read(ResponseLost("gone")).meaning == "cut_off"
        assert read(ConnectionResetError(f"with {A1}"), at_a1).category is ErrorCategory.NetworkError
        assert A1 not in read(ValueError(f"with {A1}"), at_a1).message
        known = ProviderError("m", details={"failure": DEAD.failure("dead")})
        assert read(known).meaning == "key_refused"


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from([ValueError, KeyError, OSError, TimeoutError, SystemError, UnicodeError, RecursionError]),
    args=st.lists(st.text(max_size=20) | st.integers() | st.binary(max_size=9), max_size=3),
    fields=st.dictionaries(
        st.sampled_from(
            [
                "status_code",
                "status",
                "code",
                "response",
                "details",
                "failure",
                "retry_after",
                "headers",
                "category",
                "message",
            ]
        ),
        st.none()
        | st.lists(st.text())
        | st.integers(-5, 900)
        | st.text(max_size=9)
        | st.floats()
        | st.dictionaries(st.text(), st.text()),
        max_size=5,
    ),
    context=st.none() | st.text() | st.dictionaries(st.sampled_from(["provider_id", "key_id"]), st.text() | st.none()),
)
async def test_no_error_whatever_is_beyond_interpretation(
    kind: type[Exception], args: list[Any], fields: dict[str, Any], context: Any
) -> None:
    error = kind(*(args[:1] if kind in (UnicodeError, SystemError) else args))
    for name, value in fields.items():
        setattr(error, name, value)
    failure = HANDLER.interpret_failure(error, context)
    assert isinstance(failure, Failure)
    assert failure.meaning in MEANINGS
    assert failure.message


HANDLER = ApiKeyRouter(InMemoryStateStore()).failure_handler


# --- update_key_health -----------------------------------------------------------------------------------------------


async def test_a_key_whose_health_is_bad_is_avoided_by_every_process(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    async with house(simulator, store, ["a1", "b1"]) as made:
        handler = made.router.failure_handler
        await handler.update_key_health("a1", MEANINGS["rate_limited"].failure("slow", retry_after_us=90_000_000))
        key = await made.router.key_manager.get_key("a1")
        assert key is not None
        assert (key.state, key.state_reason, key.state_until is None) == (KeyState.Throttled, "slow", False)
        assert {(await made.route()).key_used for _ in range(4)} == {"b1"}


async def test_health_is_updated_at_the_scope_of_the_failure(simulator: SimulatorProcess, store: StateStore) -> None:
    async with house(simulator, store, ["a1", "a2", "b1"]) as made:
        handler = made.router.failure_handler
        for kind in ("callers_fault", "model_not_served", "too_large_here"):
            await handler.update_key_health("a1", MEANINGS[kind].failure("not its fault"))
            assert await stored(made, "a1") is KeyState.Available
        await handler.update_key_health("a1", MEANINGS["unclear"].failure("odd"))
        assert (await handler.get_circuit_state("a1")).cooling
        assert not (await handler.get_circuit_state("a2")).cooling
        await handler.update_key_health("a1", EXHAUSTED.failure("no money"))
        assert [await stored(made, name) for name in ("a1", "a2", "b1")] == ["exhausted", "exhausted", "available"]
        await handler.update_key_health("b1", DEAD.failure("leaked"))
        assert await stored(made, "b1") is KeyState.Invalid
        with pytest.raises(NoEligibleKeysError) as caught:
            await made.route()
        assert "leaked" in caught.value.reasons["b1"]


async def test_a_failure_of_the_provider_reduces_the_providers_load(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    async with house(simulator, store, ["a1", "a2", "b1"]) as made:
        await made.router.failure_handler.update_key_health("a1", DOWN.failure("down"))
        assert await stored(made, "a1") is KeyState.Available
        assert {(await made.route()).key_used for _ in range(4)} == {"b1"}


@pytest.mark.parametrize("key_id", ["", "nobody", "a1 "])
async def test_an_unknown_key_is_a_clear_error(simulator: SimulatorProcess, key_id: str) -> None:
    async with house(simulator, InMemoryStateStore()) as made:
        handler = made.router.failure_handler
        for work in (
            handler.update_key_health(key_id, DEAD.failure("x")),
            handler.get_circuit_state(key_id),
            handler.reduce_load_on_failure(key_id, "openai"),
            handler.monitor_recovery(key_id),
            handler.reduce_load_on_failure("a1", "other"),
        ):
            with pytest.raises(InvalidRequestError):
                await work


# --- should_retry and the budget -------------------------------------------------------------------------------------


async def test_a_request_too_large_for_two_groups_is_tried_at_no_third(simulator: SimulatorProcess) -> None:
    async with house(simulator, InMemoryStateStore(), ["a1", "a2", "b1", "s1"]) as made:
        await simulator.fail("request_too_large")
        with pytest.raises(ProviderError) as caught:
            await made.route()
        assert caught.value.details["failure"].meaning == "too_large_here"
        tried = made.finished[-1].attempts
        groups = [made.router.catalogue.keys[one.key_id].quota_group for one in tried]
        assert len(groups) == len(set(groups)) == 2
        assert await attempts(made) == 2
        assert await made.at_rest() == await made.billed() == 0


async def test_what_should_not_be_retried_is_not(simulator: SimulatorProcess) -> None:
    async with house(simulator, InMemoryStateStore(), ["a1", "a2", "b1"]) as made:
        handler = made.router.failure_handler
        assert handler.should_retry(DOWN.failure("down"), 1)
        assert not handler.should_retry(REJECT.failure("wrong"), 1)
        assert not handler.should_retry(DOWN.failure("down"), 3)
        made.router.attempts_max = 1
        assert not handler.should_retry(DOWN.failure("down"), 1)
        await simulator.fail("server_error")
        with pytest.raises(ProviderError):
            await made.route()
        assert await attempts(made) == 1


async def test_retries_stay_within_the_budget(simulator: SimulatorProcess, store: StateStore) -> None:
    await simulator.fail("model_not_found")  # no breaker counts it, so that nothing but the budget holds back
    async with house(simulator, store, ["a1", "a2", "b1"]) as made:
        handler = made.router.failure_handler
        handler.budget = RetryBudget(share=0.2, floor=2)
        for _ in range(30):
            with pytest.raises(ProviderError):
                await made.route()
        assert await attempts(made) <= 30 + 30 * 0.2 + 1
        assert handler.budget.retries == await attempts(made) - 30
        assert handler.budget.refused > 0


# --- circuits and load -----------------------------------------------------------------------------------------------


async def test_a_circuit_opens_for_the_whole_fleet_and_closes_by_one_probe(
    simulator: SimulatorProcess, redis_url: str
) -> None:
    async with (
        house(simulator, RedisStateStore(redis_url), ["a1", "a2"]) as made,
        house(simulator, RedisStateStore(redis_url), ["a1", "a2"]) as other,
    ):
        closed = await made.router.failure_handler.get_circuit_state("a1")
        assert (closed.state, closed.admits, closed.until) == (CircuitPhase.CLOSED, True, None)
        await simulator.fail("server_error")
        await offered(made, 10)
        circuit = await other.router.failure_handler.get_circuit_state("a1")
        assert (circuit.state, circuit.lane, circuit.admits) == (CircuitPhase.OPEN, "p:openai", False)
        assert circuit.until is not None
        with pytest.raises(NoEligibleKeysError):
            await other.route()
        await simulator.control(clear_failures=True)
        before = await attempts(made)

        async def recovered() -> bool:
            await asyncio.gather(*(house.route() for house in (made, other)), return_exceptions=True)
            return (await other.router.failure_handler.get_circuit_state("a1")).state == "closed"

        await until(recovered)
        assert (await made.route()).content
        assert await attempts(made) > before


async def test_load_falls_by_itself_where_everything_fails_and_comes_back_by_probes(
    simulator: SimulatorProcess,
) -> None:
    async with house(simulator, InMemoryStateStore(), ["a1", "a2", "b1"]) as made:
        assert await offered(made) == OFFERED
        await simulator.fail("server_error")
        await offered(made)
        assert await offered(made) <= OFFERED // 10
        await simulator.control(clear_failures=True)

        async def recovered() -> bool:
            return await offered(made, 5) == 5

        await until(recovered)


async def test_reducing_the_load_takes_nine_attempts_of_ten_away_at_once(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    async with house(simulator, store, ["a1"]) as made:
        before, asked = await offered(made), datetime.now(UTC)
        await made.router.failure_handler.reduce_load_on_failure("a1", "openai")
        assert await offered(made) <= before // 10
        circuit = await made.router.failure_handler.get_circuit_state("a1")
        assert circuit.cooling
        first = circuit.until
        await made.router.failure_handler.reduce_load_on_failure("a1", "openai")
        again = await made.router.failure_handler.get_circuit_state("a1")
        assert again.until is not None
        assert first is not None
        assert first - asked > timedelta(seconds=9.9), "nine of ten stay away for ten seconds"
        assert again.until - first > timedelta(seconds=9), "twice as long the second time"


async def test_a_reduced_load_is_restored_when_the_monitored_key_works(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    async with house(simulator, store, ["a1"]) as made:
        for _ in range(4):  # ten seconds, doubled three times
            await made.router.failure_handler.reduce_load_on_failure("a1", "openai")
        until_then = (await made.router.failure_handler.get_circuit_state("a1")).until
        await made.router.failure_handler.monitor_recovery("a1")

        async def restored() -> bool:
            return not (await made.router.failure_handler.get_circuit_state("a1")).cooling and await offered(made) > 0

        await until(restored)
        assert until_then is not None
        assert datetime.now(UTC) < until_then


# --- recovery --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [KeyState.Invalid, KeyState.Exhausted, KeyState.Throttled])
async def test_a_monitored_key_comes_back_when_its_provider_takes_it(
    simulator: SimulatorProcess, store: StateStore, state: KeyState
) -> None:
    async with house(simulator, store, ["a1"]) as made:
        await simulator.control(disable_keys=[A1])
        try:
            await made.router.key_manager.update_key_state("a1", state, "by the test")
            await made.router.failure_handler.monitor_recovery("a1")
            await made.router.failure_handler.monitor_recovery("a1")  # once is enough
            await asyncio.sleep(0)
            with pytest.raises(NoEligibleKeysError):
                await made.route()
        finally:
            await simulator.control(enable_keys=[A1])

        async def back() -> bool:
            return (await stored(made, "a1")).eligible and made.router.catalogue.keys["a1"].state.eligible

        await until(back)
        assert (await made.route()).key_used == "a1"


async def test_monitoring_ends_with_the_router(simulator: SimulatorProcess) -> None:
    async with house(simulator, InMemoryStateStore(), ["a1"]) as made:
        await simulator.control(disable_keys=[A1])
        try:
            await made.router.key_manager.update_key_state("a1", KeyState.Invalid)
            await made.router.failure_handler.monitor_recovery("a1")
            await asyncio.wait_for(made.router.close(), 5)
        finally:
            await simulator.control(enable_keys=[A1])


# --- failures alike --------------------------------------------------------------------------------------------------


async def test_keys_refused_alike_are_spared_and_their_provider_is_left_alone(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    await simulator.fail("invalid_api_key")
    async with house(simulator, store, ["a1", "a2", "s1", "c1"]) as made:
        with pytest.raises(ProviderError) as caught:
            await made.route()
        assert caught.value.category is ErrorCategory.AuthenticationError

        async def spared() -> bool:
            return [await stored(made, name) for name in ("a1", "a2", "s1")] == [KeyState.Available] * 3

        async def cooled() -> bool:
            return (await made.router.failure_handler.get_circuit_state("a1")).lane == "p:openai"

        await until(cooled)
        await until(spared)
        trail = await made.router.key_manager.get_transitions("a1")
        assert (trail[-1].to_state, "refused alike" in trail[-1].reason) == (KeyState.Available, True)
        with pytest.raises(NoEligibleKeysError) as left:
            await made.route()
        assert all("cooling" in why for why in left.value.reasons.values())
        await simulator.control(clear_failures=True)
        assert (await made.route(model="claude-haiku-5")).key_used == "c1"
        assert await made.at_rest() == await made.billed()


async def test_a_key_refused_alone_is_invalid_however_many_others_serve(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    for material in (A1, A2):
        await simulator.fail("invalid_api_key", key=material)
    async with house(simulator, store, ["a1", "a2", "s1"]) as made:
        short = {"max_tokens": 2}  # this key answers slowly
        assert {(await made.route(parameters=short)).key_used for _ in range(6)} == {"s1"}

        async def out() -> bool:
            return [await stored(made, name) for name in ("a1", "a2")] == [KeyState.Invalid] * 2

        await until(out)


async def test_refusals_in_different_processes_are_seen_together(simulator: SimulatorProcess, redis_url: str) -> None:
    await simulator.fail("invalid_api_key")
    keys = ["a1", "a2", "s1"]
    patient = {"correlated_failures": {"within_ms": 600_000, "pause_ms": 600_000}}  # however slow this machine is
    async with (
        house(simulator, RedisStateStore(redis_url), keys, routing=patient) as one,
        house(simulator, RedisStateStore(redis_url), keys, routing=patient) as two,
        house(simulator, RedisStateStore(redis_url), keys, routing=patient) as three,
    ):
        for made, first in zip((one, two, three), keys, strict=True):  # each sees a single refusal
            made.router.attempts_max = 1
            made.router.snapshot.blocked.update({f"k:{key}": time.perf_counter() + 600 for key in keys if key != first})
            with pytest.raises(ProviderError):
                await made.route()

        async def spared() -> bool:
            return [await stored(one, name) for name in keys] == [KeyState.Available] * 3

        async def cooled() -> bool:
            return (await two.router.failure_handler.get_circuit_state("a1")).cooling

        await until(cooled)
        await until(spared)


async def test_refusals_of_a_provider_under_suspicion_count_against_the_provider(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    await simulator.fail("invalid_api_key")
    async with house(simulator, store, ["a1", "a2", "s1"]) as made:
        handler = made.router.failure_handler
        option = made.router.catalogue.pool("gpt-4o-mini", None, "").options[0]
        refused = DEAD.failure("refused")
        assert handler.judge(refused, option) is refused
        with pytest.raises(ProviderError):
            await made.route()

        async def suspected() -> bool:
            return handler.judge(refused, option).meaning == ALIKE.name

        await until(suspected)
        assert handler.judge(EXHAUSTED.failure("no money"), option).meaning == "exhausted"
        assert handler.judge(MEANINGS["organisation_refused"].failure("closed"), option).scope == "quota_group"
