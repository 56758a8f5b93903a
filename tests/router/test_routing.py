"""Routing, through the router's own doors: objectives, explanations, dry runs, strategies, feedback, constraints."""

import asyncio
from collections import Counter
from typing import Any

import pytest

from apikeyrouter import InvalidRequestError, ModelNotFoundError, RoutingDecision, RoutingObjective
from apikeyrouter.domain.components.scoring import CandidateView
from apikeyrouter.domain.interfaces.state_store import StateQuery, StateStore
from apikeyrouter.domain.models.system_error import BudgetExceededError, NoEligibleKeysError
from apikeyrouter.infrastructure.state_store.memory_store import InMemoryStateStore
from apikeyrouter.infrastructure.state_store.redis_store import RedisStateStore
from apikeyrouter.simulator import SimulatorProcess
from tests.router.house import House, config_of, house, intent, until
from tests.routing.recomputing import rechosen

OBJECTIVES = ["fairness", "cost", "reliability", "latency", "quality"]
DEAR = [
    {"provider": "other", "model": "gpt-4o-mini", "input": 15, "output": 60},
    {"provider": "openai", "model": "gpt-4o-mini", "input": 0.15, "output": 0.6},
]
HARD = {"name": "tight", "scope": "global", "limit_usd": 0.000001, "period": "total", "enforcement": "hard"}


async def looked_again(made: House) -> None:
    """Wait until the snapshot is a newer one than that of now."""
    before = made.router.snapshot.version
    await until(lambda: made.router.snapshot.version > before + 1)


async def decided(made: House) -> RoutingDecision:
    """The latest decision."""
    explained = await made.router.explain(made.finished[-1].request_id)
    return explained.decision


@pytest.mark.parametrize("objective", OBJECTIVES)
async def test_a_choice_can_be_made_again_from_its_explanation(
    objective: str, simulator: SimulatorProcess, store: StateStore
) -> None:
    limits = [{"quota_group": "org-b", "models": ["gpt-4o-mini"], "rpm": 3, "headroom": 0}]
    async with house(simulator, store, ["a1", "a2", "b1"], prices=DEAR, limits=limits) as made:
        for _ in range(12):
            answer = await made.router.route(intent(), objective=objective)
            decision = await decided(made)
            assert rechosen(decision) == decision.selected_key_id == answer.key_used
            assert {verdict.key_id for verdict in decision.candidates} == {"a1", "a2", "b1"}
            assert (decision.objective.primary, decision.attempts, len(decision.hold_ids)) == (objective, 1, 1)
            assert all(verdict.reason for verdict in decision.candidates[1:])
        await made.at_rest()


async def test_the_cheapest_key_serves_and_the_full_one_is_told_with_its_limit(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    limits = [{"quota_group": "org-a", "models": ["gpt-4o-mini"], "rpd": 2, "headroom": 0}]
    async with house(simulator, store, ["a1", "b1"], prices=DEAR, limits=limits) as made:
        used = [(await made.router.route(intent(), objective="cost")).key_used for _ in range(3)]
        assert used == ["a1", "a1", "b1"]
        explanation = await made.router.explain(made.finished[-1].request_id)
        denied = next(verdict for verdict in explanation.decision.candidates if verdict.key_id == "a1")
        assert (denied.outcome, denied.binding, denied.limit) == ("denied", "g:org-a:gpt-4o-mini", "rpd")
        assert denied.retry_at is not None
        assert denied.score == 1
        assert "limit rpd of g:org-a:gpt-4o-mini is full" in str(explanation)
        assert str(explanation) == made.router.routing_engine.explain_decision(explanation.decision)
        assert await made.router.explain(explanation.decision) == explanation


async def test_any_process_on_the_store_explains_any_request(simulator: SimulatorProcess, redis_url: str) -> None:
    async with (
        house(simulator, RedisStateStore(redis_url), ["a1", "b1"]) as here,
        house(simulator, RedisStateStore(redis_url), ["a1", "b1"]) as there,
    ):
        answer = await here.router.route(intent(), objective="cost")

        async def known() -> bool:
            return bool(await there.router.state_store.query_state(StateQuery("RoutingDecision")))

        await until(known)
        told = await there.router.explain(answer.request_id)
        assert told.decision == (await here.router.explain(answer.request_id)).decision
        assert rechosen(told.decision) == answer.key_used


async def test_a_refused_request_is_explained(simulator: SimulatorProcess) -> None:
    limits = [{"quota_group": "org-a", "models": ["gpt-4o-mini"], "rpd": 1, "headroom": 0}]
    async with house(simulator, InMemoryStateStore(), ["a1"], limits=limits) as made:
        await made.route()
        with pytest.raises(NoEligibleKeysError):
            await made.route()
        decision = await decided(made)
        assert (decision.selected_key_id, decision.candidates[0].limit) == ("", "rpd")


async def test_nobody_explains_what_nobody_remembers(simulator: SimulatorProcess) -> None:
    async with house(simulator, InMemoryStateStore(), ["a1"]) as made:
        with pytest.raises(InvalidRequestError, match="req_unknown"):
            await made.router.explain("req_unknown")
        with pytest.raises(InvalidRequestError, match="RoutingDecision"):
            await made.router.explain(5)  # type: ignore[arg-type]


@pytest.mark.parametrize("objective", OBJECTIVES)
async def test_a_dry_run_says_what_the_next_request_does_and_holds_nothing(
    objective: str, simulator: SimulatorProcess, store: StateStore
) -> None:
    limits = [{"quota_group": "org-b", "models": ["gpt-4o-mini"], "rpm": 2, "headroom": 0}]
    async with house(simulator, store, ["a1", "a2", "b1"], prices=DEAR, limits=limits) as made:
        compared = 0
        while compared < 6:
            looked = made.router.snapshot.version
            foreseen = await made.router.dry_run(intent(), objective)
            again = await made.router.routing_engine.route_request(intent(), objective)
            assert (foreseen.hold_ids, foreseen.attempts, rechosen(foreseen)) == ([], 0, foreseen.selected_key_id)
            used = (await made.router.route(intent(), objective=objective)).key_used
            if made.router.snapshot.version == looked:  # else the lanes were looked at anew in between
                assert foreseen.selected_key_id == again.selected_key_id == used
                compared += 1
            assert await made.router.books.flush(seconds=5)
        served = sum([(await made.seen(name))["admitted"] for name in ("org-a", "org-b")])
        assert served == len(made.finished)
        await made.at_rest()


async def test_a_dry_run_of_what_would_be_refused_says_why(simulator: SimulatorProcess, store: StateStore) -> None:
    async with house(simulator, store, ["a1", "b1"], budgets=[HARD]) as made:
        decision = await made.router.dry_run(intent())
        assert decision.selected_key_id == ""
        assert {verdict.binding for verdict in decision.candidates} == {"global:tight"}
        with pytest.raises(NoEligibleKeysError, match="nothing was held"):
            await made.router.routing_engine.route_request(intent())
        with pytest.raises(BudgetExceededError):
            await made.route()
        with pytest.raises(ModelNotFoundError):
            await made.router.dry_run(intent(model="claude-haiku-5"))
        with pytest.raises(InvalidRequestError):
            await made.router.dry_run(intent(), "nonsense")


async def test_a_strategy_is_an_objective_by_name_everywhere(simulator: SimulatorProcess) -> None:
    asked: list[str] = []

    def last_letter(candidate: CandidateView) -> float:
        asked.append(candidate.key_id)
        return {"a1": 1.0, "a2": 3.0, "b1": 2.0}[candidate.key_id]

    async with house(simulator, InMemoryStateStore(), ["a1", "a2", "b1"]) as made:
        engine = made.router.routing_engine
        told = engine.register_strategy("Last-Letter", last_letter, "by its last letter")
        assert told in engine.get_routing_strategies()
        assert (told.name, told.builtin) == ("last-letter", False)
        for objective in ("last-letter", RoutingObjective("LAST_LETTER"), RoutingObjective("last letter")):
            assert (await made.router.route(intent(), objective=objective)).key_used == "a2"
        decision = await decided(made)
        assert rechosen(decision) == "a2"
        assert {verdict.key_id: verdict.parts["last-letter"] for verdict in decision.candidates} == {
            "a1": -1, "a2": -3, "b1": -2,
        }  # fmt: skip
        await made.router.apply(config_of(simulator, ["a1", "a2", "b1"], routing={"objective": "last-letter"}))
        assert (await made.route()).key_used == "a2"
        assert set(asked) == {"a1", "a2", "b1"}
    async with house(simulator, InMemoryStateStore(), ["a1"]) as other:
        with pytest.raises(InvalidRequestError, match="not registered with this router"):
            await other.router.route(intent(), objective="last-letter")
        assert (await other.route()).content


async def test_a_strategy_that_fails_costs_nobody_a_request(simulator: SimulatorProcess) -> None:
    def broken(candidate: CandidateView) -> Any:
        if candidate.key_id == "a1":
            raise RuntimeError("of the test")
        return "high" if candidate.key_id == "a2" else 0.0

    async with house(simulator, InMemoryStateStore(), ["a1", "a2", "b1"]) as made:
        made.router.routing_engine.register_strategy("shaky", broken)
        assert [(await made.router.route(intent(), objective="shaky")).key_used for _ in range(3)] == ["b1"] * 3
        assert rechosen(await decided(made)) == "b1"


async def test_feedback_changes_the_next_order_and_reaches_other_processes(
    simulator: SimulatorProcess, redis_url: str
) -> None:
    async with (
        house(simulator, RedisStateStore(redis_url), ["a1", "b1"]) as here,
        house(simulator, RedisStateStore(redis_url), ["a1", "b1"]) as there,
    ):
        blamed = (await here.router.route(intent(), objective="quality")).key_used
        await here.router.routing_engine.update_routing_feedback(here.finished[-1].request_id, success=False)
        await looked_again(here)
        spared = {"a1": "b1", "b1": "a1"}[blamed]
        for objective in ("quality", "reliability"):
            used = [(await here.router.route(intent(), objective=objective)).key_used for _ in range(4)]
            assert used == [spared] * 4
        assert rechosen(await decided(here)) == spared
        await here.router._share_learned()
        await there.router._share_learned()
        await looked_again(there)
        assert {(await there.router.route(intent(), objective="quality")).key_used for _ in range(4)} == {spared}


async def test_feedback_on_latency_counts(simulator: SimulatorProcess) -> None:
    async with house(simulator, InMemoryStateStore(), ["a1", "b1"]) as made:
        for _ in range(6):
            await made.router.route(intent(), objective="fairness")
        await looked_again(made)
        for told_ms in (9_000, 90_000, 900_000):  # each time it is the one that was taken for the faster
            chosen = (await made.router.route(intent(), objective="latency")).key_used
            metrics = {"latency_ms": told_ms, "quality": 1.0}
            await made.router.routing_engine.update_routing_feedback(made.finished[-1].request_id, True, metrics)
            await looked_again(made)
            assert (await made.router.route(intent(), objective="latency")).key_used != chosen


@pytest.mark.parametrize(
    ("metrics", "field"),
    [
        ({"luck": 1}, "metrics.luck"), ({"quality": 2}, "metrics.quality"), ({"quality": "good"}, "metrics.quality"),
        ({"quality": float("nan")}, "metrics.quality"), ({"latency_ms": 0}, "metrics.latency_ms"),
        ({"latency_ms": True}, "metrics.latency_ms"),
    ],
)  # fmt: skip
async def test_feedback_that_makes_no_sense_is_refused(
    metrics: dict[str, Any], field: str, simulator: SimulatorProcess
) -> None:
    async with house(simulator, InMemoryStateStore(), ["a1"]) as made:
        await made.route()
        engine = made.router.routing_engine
        with pytest.raises(InvalidRequestError) as caught:
            await engine.update_routing_feedback(made.finished[-1].request_id, True, metrics)
        assert caught.value.field == field
        with pytest.raises(InvalidRequestError, match="remembered"):
            await engine.update_routing_feedback("req_unknown", True)


async def test_keys_are_evaluated_without_a_request(simulator: SimulatorProcess) -> None:
    async with house(simulator, InMemoryStateStore(), ["a1", "b1"], prices=DEAR) as made:
        engine = made.router.routing_engine
        keys = [await made.router.key_manager.get_key(name) for name in ("a1", "b1")]
        found = await engine.evaluate_keys([key for key in keys if key], "cost", model="gpt-4o-mini")
        assert found == {"a1": 1.0, "b1": pytest.approx(0.01)}
        assert await engine.evaluate_keys(["a1", "b1"]) == {"a1": 1.0, "b1": 1.0}
        constrained = RoutingObjective("cost", constraints={"min_quality": 0.9})
        assert await engine.evaluate_keys(["a1"], constrained, model="gpt-4o-mini") == {"a1": 0.0}
        for wrong in ({"eligible_keys": ["nobody"]}, {"eligible_keys": ["a1"], "model": "claude-haiku-5"}):
            with pytest.raises(InvalidRequestError):
                await engine.evaluate_keys(**wrong)


async def test_what_costs_too_much_is_excluded_with_its_number(simulator: SimulatorProcess, store: StateStore) -> None:
    most = RoutingObjective("fairness", constraints={"max_cost_per_request": 0.003})
    async with house(simulator, store, ["a1", "b1"], prices=DEAR) as made:
        answers = [await made.router.route(intent(), objective=most) for _ in range(4)]
        assert {answer.key_used for answer in answers} == {"a1"}
        decision = await decided(made)
        (excluded,) = [verdict for verdict in decision.candidates if verdict.outcome == "excluded"]
        assert excluded.key_id == "b1"
        assert excluded.parts["max_cost_per_request"] > 0.003
        with pytest.raises(NoEligibleKeysError, match="objective's constraints") as caught:
            await made.router.route(
                intent(), objective=RoutingObjective("cost", constraints={"max_cost_per_request": 0})
            )
        assert set(caught.value.reasons) == {"a1", "b1"}
        assert "max_cost_per_request is 0" in caught.value.reasons["a1"]
        await made.at_rest()


async def test_without_a_cap_of_the_clients_the_cost_limit_holds_as_a_bound(simulator: SimulatorProcess) -> None:
    most = RoutingObjective("cost", constraints={"max_cost_per_request": 0.0004})
    async with house(simulator, InMemoryStateStore(), ["a1"], prices=DEAR) as made:
        answer = await made.router.route(intent("[[tokens:5000]] tell me all"), objective=most)
        cap = made.finished[-1].token_cap
        assert cap is not None
        assert cap < 4096
        assert answer.metadata.tokens_used.output_tokens == cap
        assert answer.cost is not None
        assert float(answer.cost.amount) <= 0.0004
        free = await made.router.route(intent(parameters={"max_tokens": 7}), objective=most)
        assert (made.finished[-1].token_cap, free.metadata.tokens_used.output_tokens) == (None, 7)


async def test_keys_differ_in_weight(simulator: SimulatorProcess) -> None:
    async with house(simulator, InMemoryStateStore(), []) as made:
        await made.router.register_key("sk-sim-house-a-number-1", "openai", {"weight": 3})
        await made.router.register_key("sk-sim-house-b-number-1", "openai")
        used = Counter([(await made.route()).key_used for _ in range(16)])
        assert sorted(used.values()) == [4, 12]


async def test_declared_quality_comes_from_key_file_or_adapter(simulator: SimulatorProcess, store: StateStore) -> None:
    """The model that the file thinks more of serves an alias; what a key says of itself comes before the file."""
    parts: dict[str, Any] = {
        "models": {"best": [{"provider": "openai", "model": "gpt-4o-mini"}, {"provider": "other", "model": "gpt-4o"}]},
        "routing": {"quality": {"gpt-4o-mini": 0.3, "gpt-4o": 0.8}, "objective": {"weights": {"quality": 1}}},
    }
    async with house(simulator, store, ["a1"], **parts) as made:
        engine = made.router.routing_engine
        await made.router.register_key("sk-sim-house-b-number-1", "other", {"quality": {"gpt-4o": 0.9, "*": 0.1}})
        await made.router.register_key("sk-sim-house-a-number-2", "openai", {"quality": 0.6})
        keys = made.router.catalogue.keys.values()
        named = {key.id: str.__str__(key.material)[-10:] for key in keys}
        scores = await engine.evaluate_keys(list(named), model="best")
        assert {named[key_id]: score for key_id, score in scores.items()} == {
            "a-number-1": pytest.approx(0.1 / 0.7), "a-number-2": pytest.approx(0.1 / 0.4), "b-number-1": 1.0,
        }  # fmt: skip
        answer = await made.route(model="best")
        assert named[answer.key_used] == "a-number-2"  # the first target of an alias comes first, whatever its quality


async def test_many_at_once_spread_under_latency(simulator: SimulatorProcess) -> None:
    """What this process has under way counts at once, not when the snapshot shows it."""
    async with house(simulator, InMemoryStateStore(), ["a1", "a2", "b1"]) as made:
        answers = await asyncio.gather(*(made.router.route(intent(), objective="latency") for _ in range(9)))
        assert len({answer.key_used for answer in answers}) == 3
        assert {key.under_way for key in made.router.catalogue.keys.values()} == {0}


@pytest.mark.parametrize("stream", [False, True])
async def test_who_refuses_is_of_low_quality(stream: bool, simulator: SimulatorProcess, store: StateStore) -> None:
    async with house(simulator, store, ["a1", "b1"]) as made:

        async def used() -> str:
            if stream:
                return [chunk async for chunk in made.router.route_stream(intent(), objective="quality")][-1].key_used
            return (await made.router.route(intent(), objective="quality")).key_used

        await made.route()
        assert made.finished[-1].attempts[-1].fault == ""
        await simulator.fail("content_filter_stop", organisation="org-a")

        async def refused() -> bool:
            return await used() == "a1" and made.finished[-1].attempts[-1].fault == "refused"

        await until(refused)
        await looked_again(made)
        assert {await used() for _ in range(4)} == {"b1"}
        assert rechosen(await decided(made)) == "b1"
        scores = await made.router.routing_engine.evaluate_keys(["a1", "b1"], "quality", model="gpt-4o-mini")
        assert scores["a1"] < scores["b1"] == 1.0


async def test_answers_are_looked_at_only_once_somebody_asks_for_quality(simulator: SimulatorProcess) -> None:
    async with house(simulator, InMemoryStateStore(), ["a1"]) as made:
        await simulator.fail("content_filter_stop", organisation="org-a")
        await made.route()
        assert made.finished[-1].attempts[-1].fault == ""
        await made.router.route(intent(), objective=RoutingObjective("cost", ["quality"]))
        assert made.finished[-1].attempts[-1].fault == "refused"
        await simulator.control(clear_failures=True)
        wanted = {"type": "json_schema", "json_schema": {"name": "p", "schema": {"type": "object"}}}
        await made.route("[[tokens:9]] hello", parameters={"response_format": wanted})
        assert made.finished[-1].attempts[-1].fault == "schema"
        await made.route(parameters={"max_tokens": 3})
        assert made.finished[-1].attempts[-1].fault == ""


@pytest.mark.parametrize("rules", [{}, {"max_cost_per_request": 1}])
async def test_turns_go_on_where_they_were_when_something_else_changes(
    simulator: SimulatorProcess, store: StateStore, rules: dict[str, Any]
) -> None:
    """Each registration, change of state and learned fact makes the pools anew."""
    async with house(simulator, store, ["a1", "a2", "b1"]) as made:
        if rules:
            await made.router.configure_policy({"name": "cap", "type": "cost", "rules": rules})
        served: list[str] = []
        for number in range(18):
            served.append((await made.route()).key_used)
            await made.router.register_key(f"sk-ant-other-{number:04}", "anthropic")
        assert Counter(served) == {"a1": 6, "a2": 6, "b1": 6}
        assert served[:3] * 6 == served
        await made.at_rest()


async def test_a_decision_is_surer_the_further_ahead_its_key_is_and_the_newer_its_snapshot(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    async with house(simulator, store, ["a1", "b1"], prices=DEAR) as made:
        await made.router.route(intent(), "cost")
        ahead = (await decided(made)).confidence
        await made.router.route(intent(), "fairness")
        equals = (await decided(made)).confidence
        assert equals < 0.6 < ahead <= 1

        async def less_sure() -> bool:
            made.router.snapshot.taken -= 20  # as if the store had not been heard of for so long
            await made.router.route(intent(), "cost")
            return (await decided(made)).confidence < ahead

        await until(less_sure)  # a refresh may come between
