"""Every end of a request: what the caller saw, what the ledger booked, what the provider billed."""

from typing import Any

import pytest

from apikeyrouter import ProviderError
from apikeyrouter import router as router_module
from apikeyrouter.domain.interfaces.state_store import StateStore
from apikeyrouter.domain.models.api_key import KeyState
from apikeyrouter.domain.models.system_error import ErrorCategory, InvalidRequestError, ModelNotFoundError
from apikeyrouter.infrastructure.adapters.transport import Timeouts
from apikeyrouter.infrastructure.state_store.memory_store import InMemoryStateStore
from apikeyrouter.serving import bookkeeping, few_places
from apikeyrouter.simulator import SimulatorProcess
from tests.router.house import KEYS, House, house, intent, until

pytestmark = pytest.mark.asyncio(loop_scope="package")

SHORT = Timeouts(connect=1.0, first_byte=0.2, idle=0.2, total=5.0)
ELSEWHERE = [
    "rate_limit_requests", "slow_down", "insufficient_quota", "invalid_api_key", "server_is_overloaded", "server_error",
    "gateway_timeout", "disconnect", "empty_body", "malformed_json", "error_first_event", "model_not_found",
    "cut_mid_body",
]  # fmt: skip
NOT_BILLED = {
    "rate_limit_requests", "slow_down", "insufficient_quota", "invalid_api_key", "server_is_overloaded", "server_error",
    "model_not_found",
}  # fmt: skip
STREAM_ELSEWHERE = ["rate_limit_requests", "server_error", "disconnect", "empty_body", "error_first_event"]


async def test_an_answer_is_booked_exactly_as_billed(simulator: SimulatorProcess, store: StateStore) -> None:
    async with house(simulator, store) as made:
        answers = [await made.route(f"number {n}") for n in range(6)]
        settled = await made.at_rest()
        assert settled == await made.billed()
        assert sum(int(answer.cost.amount * 10**9) for answer in answers if answer.cost) == settled
        assert {answer.key_used for answer in answers} == {"a1", "b1"}
        assert [facts.outcome for facts in made.finished] == ["ok"] * 6


async def test_a_stream_is_booked_exactly_as_billed(simulator: SimulatorProcess, store: StateStore) -> None:
    async with house(simulator, store, ["a1", "c1"]) as made:
        for model in ("gpt-4o-mini", "claude-haiku-5"):
            *pieces, last = await made.stream(model=model)
            assert "".join(map(str, pieces)).startswith("You said")
            assert last.last
            assert last.usage is not None
            assert last.cost is not None
            assert not last.usage.estimated
        settled = await made.at_rest()
        assert settled == await made.billed()
        assert [facts.outcome for facts in made.finished] == ["ok", "ok"]


@pytest.mark.parametrize("failure", ELSEWHERE)
async def test_a_failure_moves_on_to_another_group(
    simulator: SimulatorProcess, store: StateStore, failure: str
) -> None:
    await simulator.fail(failure, organisation="org-a")
    async with house(simulator, store) as made:
        for _ in range(2):
            answer = await made.route()
            assert answer.key_used == "b1"
        settled = await made.at_rest()
        billed = await made.billed()
        assert settled == billed if failure in NOT_BILLED else settled >= billed
        assert sorted(len(facts.attempts) for facts in made.finished) in ([1, 2], [1, 1], [2, 2])
        assert all(facts.outcome == "ok" for facts in made.finished)


@pytest.mark.parametrize("failure", STREAM_ELSEWHERE)
async def test_a_stream_that_fails_before_its_first_word_moves_on(
    simulator: SimulatorProcess, store: StateStore, failure: str
) -> None:
    await simulator.fail(failure, organisation="org-a")
    async with house(simulator, store) as made:
        for _ in range(2):
            *_, last = await made.stream()
            assert last.key_used == "b1"
        settled = await made.at_rest()
        assert settled >= await made.billed()
        assert [facts.outcome for facts in made.finished] == ["ok", "ok"]


@pytest.mark.parametrize("failure", ["cut_mid_stream", "truncate", "error_mid_stream", "malformed_json"])
@pytest.mark.parametrize("model", ["gpt-4o-mini", "claude-haiku-5"])
async def test_a_stream_that_breaks_tells_what_was_received(
    simulator: SimulatorProcess, store: StateStore, failure: str, model: str
) -> None:
    await simulator.fail(failure, after_chunks=3)
    async with house(simulator, store, ["a1", "c1"]) as made:
        received = ""
        with pytest.raises(ProviderError) as caught:
            async for chunk in made.router.route_stream(intent(model=model)):
                received += str(chunk)
        assert received
        assert caught.value.details["partial"] == received
        assert caught.value.details["usage"].estimated
        settled, billed = await made.at_rest(), await made.billed()
        assert abs(settled - billed) <= billed // 5, "an estimate, by a model that has told nothing yet"
        (facts,) = made.finished
        assert facts.cost_estimated
        assert facts.outcome == caught.value.category
        assert len(facts.attempts) == 1


async def test_a_stream_that_lost_only_its_last_event_is_booked_as_billed(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    await simulator.fail("truncate_terminator")
    async with house(simulator, store, ["c1"]) as made:
        *pieces, last = await made.stream(model="claude-haiku-5")
        assert pieces
        assert last.usage is not None
        assert await made.at_rest() == await made.billed()


@pytest.mark.parametrize("failure", ["stall_before_first_byte", "slow_first_token"])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_provider_that_is_silent_too_long_is_left_for_another(
    simulator: SimulatorProcess, store: StateStore, failure: str, stream: bool
) -> None:
    await simulator.fail(failure, organisation="org-a", seconds=3600)
    async with house(simulator, store) as made:
        made.router.timeouts = SHORT
        for _ in range(2):
            used = (await made.stream())[-1].key_used if stream else (await made.route()).key_used
            assert used == "b1"
        settled = await made.at_rest()
        assert settled >= await made.billed()


async def test_a_stream_that_stalls_is_ended(simulator: SimulatorProcess, store: StateStore) -> None:
    await simulator.fail("stall_mid_stream", seconds=3600)
    async with house(simulator, store, ["a1"]) as made:
        made.router.timeouts = SHORT
        with pytest.raises(ProviderError) as caught:
            await made.stream()
        assert caught.value.category is ErrorCategory.TimeoutError
        assert caught.value.details["partial"]
        await made.at_rest()
        await made.billed()


async def test_a_refused_caller_keeps_every_key_in_good_standing(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    await simulator.fail("context_length_exceeded")
    async with house(simulator, store) as made:
        with pytest.raises(ProviderError) as caught:
            await made.route()
        assert caught.value.category is ErrorCategory.ValidationError
        assert not caught.value.retryable
        assert len(made.finished[0].attempts) == 1
        await simulator.control(clear_failures=True)
        assert {(await made.route()).key_used for _ in range(4)} == {"a1", "b1"}
        assert await made.at_rest() == await made.billed()


async def test_a_key_that_cannot_pay_is_exhausted_and_left_alone(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    await simulator.fail("insufficient_quota", organisation="org-a")
    async with house(simulator, store, ["a1", "a2", "b1"]) as made:
        answers = [await made.route() for _ in range(8)]
        await until(lambda: made.router.catalogue.keys["a2"].state is KeyState.Exhausted)
        assert {answer.key_used for answer in answers} == {"b1"}
        assert (await made.seen("org-a"))["arrived"] == 1
        stored = await made.router.key_manager.get_key("a1")
        assert stored is not None
        assert (stored.state, stored.state_until is not None) == (KeyState.Exhausted, True)
        assert await made.at_rest() == await made.billed()


async def test_an_invalid_key_is_never_used_again(simulator: SimulatorProcess, store: StateStore) -> None:
    await simulator.fail("invalid_api_key", key="sk-sim-house-a-number-1", count=1)
    async with house(simulator, store, ["a1", "a2"]) as made:
        for _ in range(8):
            await made.route()
        report = await simulator.report()
        first = report["organisations"]["org-a"]["keys"]["org-a/1"]
        assert (first["arrived"], first["admitted"]) == (1, 0)
        await until(lambda: made.router.catalogue.keys["a1"].state is KeyState.Invalid)
        await made.at_rest()


async def test_where_every_key_is_out_the_error_says_why_and_until_when(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    from apikeyrouter.domain.components.routing_engine import NoEligibleKeysError

    async with house(simulator, store, ["a1", "a2", "b1"]) as made:
        manager = made.router.key_manager
        await manager.update_key_state("a1", KeyState.Invalid, "it was leaked")
        await manager.update_key_state("a2", KeyState.Throttled, "too loud", for_seconds=90)
        await manager.update_key_state("b1", KeyState.Disabled)
        with pytest.raises(NoEligibleKeysError) as caught:
            await made.route()
        assert set(caught.value.reasons) == {"a1", "a2", "b1"}
        assert "it was leaked" in caught.value.reasons["a1"]
        assert caught.value.retry_after is not None
        assert 60 <= caught.value.retry_after <= 91
        assert (await made.seen("org-a"))["arrived"] == 0
        assert made.finished[0].outcome == "no_eligible_keys"


async def test_a_rate_limited_group_cools_for_as_long_as_it_says(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    from apikeyrouter.domain.components.routing_engine import NoEligibleKeysError

    await simulator.fail("rate_limit_requests", organisation="org-a", count=1, seconds=30)
    async with house(simulator, store, ["a1", "a2"]) as made:
        with pytest.raises(ProviderError) as first:
            await made.route()
        assert first.value.category is ErrorCategory.RateLimitError
        assert (await made.seen("org-a"))["arrived"] == 1
        with pytest.raises(NoEligibleKeysError) as second:
            await made.route()
        assert second.value.retry_after is not None
        assert 20 <= second.value.retry_after <= 31
        assert set(second.value.reasons) == {"a1", "a2"}
        assert (await made.seen("org-a"))["arrived"] == 1
        await made.at_rest()


@pytest.mark.parametrize(
    ("wrong", "kind"),
    [
        ({"messages": []}, InvalidRequestError),
        ({"parameters": {"max_tokens": -1}}, InvalidRequestError),
        ({"parameters": {"temperature": float("nan")}}, InvalidRequestError),
        ({"model": "no-such-model-anywhere", "provider_id": "anthropic"}, ModelNotFoundError),
        ({"provider_id": "nobody"}, InvalidRequestError),
    ],
)
async def test_a_wrong_request_is_refused_before_anything_is_held(
    simulator: SimulatorProcess, store: StateStore, wrong: dict[str, Any], kind: type[Exception]
) -> None:
    async with house(simulator, store, ["a1"]) as made:
        with pytest.raises(kind):
            await made.router.route({**intent(), **wrong})
        assert made.router.decided == 0
        assert (await made.seen("org-a"))["arrived"] == 0
        await made.at_rest()


async def test_a_listener_that_fails_costs_nobody_an_answer(simulator: SimulatorProcess, store: StateStore) -> None:
    def broken(_: object) -> None:
        raise RuntimeError("a listener's own mistake")

    async with house(simulator, store, ["a1"]) as made:
        made.router.on_finished.insert(0, broken)
        assert (await made.route()).content
        assert len(made.finished) == 1
        await made.at_rest()


@pytest.mark.parametrize(("places", "told"), [(32, True), (33, False)])
async def test_an_end_in_a_lane_with_few_places_waits_for_no_others(
    simulator: SimulatorProcess, places: int, told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = [{"key": "a1", "concurrency": places}]
    async with house(simulator, InMemoryStateStore(), ["a1"], limits=limits) as made:
        await made.route()
        await made.at_rest()
        await until(lambda: _known(made, "k:a1"))
        monkeypatch.setattr(bookkeeping, "FLUSH_SECONDS", 3600)
        await made.route()
        if told:
            await until(lambda: _idle(made))
        assert made.router.books.waiting == (0 if told else 1)
        assert await made.router.books.told(seconds=60), "who waits for it need not wait for more"
        assert await _idle(made)


@pytest.mark.usefixtures("patient")
async def test_who_asks_one_after_another_is_sent_to_the_only_place_of_the_cheap_key_every_time(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    """A place that was just given back is free, whatever else has room and was read of it while it was taken."""
    async with house(simulator, store, []) as made:
        cheap = await made.router.register_key(
            KEYS["a1"]["key"], "openai", {"cost_per_1k": "0.0001", "limits": {"concurrency": 1}}
        )
        await made.router.register_key(KEYS["s1"]["key"], "openai", {"cost_per_1k": "1"})
        await made.router.route(intent("hello"), "cost")
        await until(lambda: made.router.snapshot.few)
        used = {(await made.router.route(intent("hello"), "cost")).key_used for _ in range(40)}
        assert used == {cheap.id}


async def _known(made: House, lane: str) -> bool:
    return lane in made.router.snapshot.lanes


async def _idle(made: House) -> bool:
    return not made.router.books.waiting


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits until ends are told waits long: the machine may be busy."""
    for module in (router_module, few_places):
        monkeypatch.setattr(module, "ENDS_SECONDS_MAX", 60.0)


@pytest.mark.usefixtures("patient")
async def test_who_asks_one_after_another_is_never_in_his_own_way(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    """What a call held, in flight and of a budget, is there for the next as soon as its answer is."""
    budget = {"name": "one", "scope": "global", "limit_usd": 0.002, "period": "total", "enforcement": "hard"}
    limits = [{"key": "a1", "concurrency": 1}]
    async with house(simulator, store, ["a1"], limits=limits, budgets=[budget]) as made:
        for number in range(10):
            await made.route(f"number {number}", parameters={"max_tokens": 1500})
        for _ in range(5):
            async for _ in made.router.route_stream(intent("again", parameters={"max_tokens": 1500})):
                pass
        assert [facts.outcome for facts in made.finished] == ["ok"] * 15
