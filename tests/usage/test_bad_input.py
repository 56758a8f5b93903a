"""What makes no sense is answered by an error of ours that names what is wrong; nothing is lost, nothing held."""

import inspect
import math
import re
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from typing import Any

import pytest

from apikeyrouter import ApiKeyRouter, ApiKeyRouterError, RoutingObjective
from apikeyrouter.domain.models.system_error import ConfigurationError
from apikeyrouter.infrastructure.adapters.openai_adapter import OpenAIAdapter
from apikeyrouter.infrastructure.state_store.memory_store import InMemoryStateStore
from apikeyrouter.infrastructure.state_store.redis_store import RedisStateStore
from apikeyrouter.simulator import SimulatorProcess
from tests.router.house import house, intent

NAN, HUGE = math.nan, 2**60
Asks = Callable[[ApiKeyRouter], Any]


def asking(door: Callable[[ApiKeyRouter], Any], *args: Any, **more: Any) -> Asks:
    """A call of a router's method with these arguments."""
    return lambda router: door(router)(*args, **more)


def objectives() -> dict[str, Asks]:
    """Objectives that are none."""
    wrong: list[tuple[Any, str]] = [
        ("cheapest", "primary"), ("", "primary"), (5, "RoutingObjective"), ([], "RoutingObjective"),
        ({"primary": "cost", "weights": {"cost": -1}}, "weights.cost"),
        ({"primary": "cost", "weights": {"cost": NAN}}, "weights.cost"),
        ({"primary": "cost", "weights": {"cost": math.inf}}, "weights.cost"),
        ({"primary": "cost", "weights": {"cost": 0, "latency": 0}}, "weights"),
        ({"primary": "cost", "weights": {"beauty": 1}}, "weights.beauty"),
        ({"primary": "cost", "secondary": ["beauty"]}, "secondary"),
        ({"primary": "cost", "secondary": 5}, "secondary"),
        ({"primary": "cost", "constraints": {"min_reliability": 2}}, "constraints.min_reliability"),
        ({"primary": "cost", "constraints": {"max_cost_per_request": NAN}}, "constraints.max_cost_per_request"),
        ({"primary": "cost", "constraints": {"beauty": 1}}, "constraints.beauty"),
    ]  # fmt: skip
    return {f"{told}: {given!r}": asking(lambda r: r.route, intent(), given) for given, told in wrong}


def intents() -> dict[str, Asks]:
    """Requests that cannot be served by anybody."""
    wrong: list[tuple[Any, str]] = [
        (None, "RequestIntent"), (5, "RequestIntent"), ({}, "model"), (intent(model=""), "model"),
        (intent(model="m" * 300), "model"), ({"model": "gpt-4o-mini", "messages": []}, "messages"),
        ({"model": "gpt-4o-mini", "messages": "hello"}, "messages"),
        ({"model": "gpt-4o-mini", "messages": [{"role": "boss", "content": "x"}]}, r"messages\[0\].role"),
        ({"model": "gpt-4o-mini", "messages": [{"role": "user", "content": 5}]}, r"messages\[0\].content: "),
        (intent(provider_id="nobody"), "provider_id"), (intent(provider_id=5), "provider_id"),
        (intent(parameters=5), "parameters"), (intent(parameters={"max_tokens": -5}), "parameters.max_tokens"),
        (intent(parameters={"max_tokens": HUGE}), "parameters.max_tokens"),
        (intent(parameters={"temperature": NAN}), "parameters.temperature"),
        ({"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "\ud800"}]}, r"messages\[0\].content: "),
        (intent(parameters={"\ud800": 1}), r"parameters.\\ud800: "),
        (intent(parameters={"user": object()}), "parameters.user: "),
        (intent(parameters={"n": 10**9}), "n: "), (intent(tags=5), "tags"), (intent(team=""), "team"),
        (intent(client="x" * 300), "client"), (intent(bogus=1), "bogus"), (intent(operation="guess"), "operation"),
    ]  # fmt: skip
    found = {f"{told}: {str(given)[:60]}": asking(lambda r: r.route, given) for given, told in wrong}
    found |= {f"{told}: dry {str(given)[:60]}": asking(lambda r: r.dry_run, given) for given, told in wrong}
    return found | {f"{told}: streamed {str(given)[:60]}": asking(lambda r: partial(_streamed, r), given)
                    for given, told in wrong}  # fmt: skip


async def _streamed(router: ApiKeyRouter, given: Any) -> list[Any]:
    return [chunk async for chunk in router.route_stream(given)]


def _of_nobody(router: ApiKeyRouter, method: str) -> Any:
    return getattr(router.key_manager, method)("nobody")


def keys() -> dict[str, Asks]:
    """Keys that cannot be, and what cannot be done with one."""
    wrong: list[tuple[tuple[Any, ...], str]] = [
        (("", "openai"), "empty"), (("  ", "openai"), "empty"), ((None, "openai"), "must be a str"),
        (("sk\nnew-line", "openai"), "printable"), (("k" * 20_000, "openai"), "longer"),
        (("sk-x1234567", "nobody"), "nobody"), (("sk-x1234567", None), "not registered"),
        (("sk-x1234567", "openai", 5), "metadata: must be a mapping"),
        (("sk-x1234567", "openai", {"weight": -1}), "metadata.weight"),
        (("sk-x1234567", "openai", {"weight": NAN}), "metadata.weight"),
        (("sk-x1234567", "openai", {"limits": {"rpm": HUGE}}), "exactly"),
        (("sk-x1234567", "openai", {"limits": {"rpm": -1}}), "rpm"),
        (("sk-x1234567", "openai", {"limits": 5}), "metadata.limits: "),
        (("sk-x1234567", "openai", {"models": 5}), "metadata.models"),
        (("sk-x1234567", "openai", {"cost_per_1k": NAN}), "metadata.cost_per_1k"),
        (("sk-x1234567", "openai", {"x": object()}), "metadata.x: "),
        (("sk-x1234567", "openai", {"x": [NAN]}), r"metadata.x\[0\]: "),
        (("sk-x1234567", "openai", {"x": "\ud800"}), "metadata.x: "),
        (("sk-x1234567", "openai", {"\ud800": 1}), r"metadata.\\ud800: "),
    ]  # fmt: skip
    found: dict[str, Asks] = {
        f"{told}: key {str(given)[:50]}": asking(lambda r: r.register_key, *given) for given, told in wrong
    }
    for state in ("asleep", 5, None):
        found[f"state: {state!r}"] = asking(lambda r: r.key_manager.update_key_state, "a1", state, "why not")
    for seconds in (-1, 0, NAN, math.inf, "x", 1e30):
        found[f"for_seconds: {seconds!r}"] = asking(
            lambda r: r.key_manager.update_key_state, "a1", "throttled", "why not", for_seconds=seconds
        )
    for method in ("revoke_key", "disable_key", "enable_key", "probe_key"):
        found[f"nobody: {method}"] = asking(lambda r: partial(_of_nobody, r), method)
    return found | {
        "cannot become: recovering": lambda r: r.key_manager.update_key_state("a1", "recovering", "why not"),
        "nobody: update": lambda r: r.key_manager.update_key_state("nobody", "throttled", "why not"),
        "empty: rotated": lambda r: r.key_manager.rotate_key("a1", ""),
        "nobody: rotated": lambda r: r.key_manager.rotate_key("nobody", "sk-x1234567"),
    }


def money_and_quotas() -> dict[str, Asks]:
    """Amounts that are none, of things that there are not."""
    budgets: list[tuple[tuple[Any, ...], str]] = [
        (("global", -1, "daily", "hard"), "limit"), (("global", NAN, "daily", "hard"), "limit"),
        (("global", Decimal("1e30"), "daily", "hard"), "limit"), (("global", "much", "daily", "hard"), "limit"),
        (("global", 5, "often", "hard"), "period"), (("global", 5, "daily", "steel"), "enforcement_mode"),
        (("world", 5, "daily", "hard"), "scope"), (("team", 5, "daily", "hard"), "scope_id"),
    ]  # fmt: skip
    quotas: list[tuple[tuple[Any, ...], str]] = [
        (("a1", "daily", -1), "total_capacity"), (("a1", "daily", NAN), "total_capacity"),
        (("a1", "daily", HUGE), "total_capacity"), (("a1", "often", 5), "time_window"),
        (("nobody", "daily", 5), "key_id"),
        (("a1", "daily", 5, "tomorrow"), "reset_at"),
        (("a1", "daily", 5, datetime(2020, 1, 1, tzinfo=UTC)), "reset_at"),
        (("a1", "daily", 5, None, "bananas"), "unit"),
    ]  # fmt: skip
    found: dict[str, Asks] = {
        f"{told}: budget {given}": asking(lambda r: r.cost_controller.create_budget, *given) for given, told in budgets
    }
    found |= {f"{told}: quota {given}": asking(lambda r: r.configure_quota, *given) for given, told in quotas}
    return found | {
        "nobody: status": lambda r: r.cost_controller.get_budget_status("team", "nobody"),
        "budget_id: spent": lambda r: r.cost_controller.update_spending("nobody", 5),
        "consumed: less than nothing": lambda r: r.quota_awareness_engine.update_capacity("a1", -5),
        "consumed: no number": lambda r: r.quota_awareness_engine.update_capacity("a1", NAN),
        "key_id: forecast": lambda r: r.quota_awareness_engine.predict_exhaustion("nobody"),
        "time_window: reset": lambda r: r.quota_awareness_engine.reset_quota("a1", "often"),
        "response: what a provider said": lambda r: r.quota_awareness_engine.handle_quota_response("a1", 5),
    }


def policies() -> dict[str, Asks]:
    """Policies that say nothing, or what cannot be."""
    wrong: list[tuple[Any, str]] = [
        (None, "Policy"), ({}, "id"), ({"name": "x"}, "rules"), ({"name": "x", "type": "fair", "rules": {}}, "type"),
        ({"name": "x", "type": "routing", "rules": {"beauty": 1}}, "rules.beauty"),
        ({"name": "x", "type": "routing", "rules": {"allowed_models": 5}}, "rules.allowed_models"),
        ({"name": "x", "type": "cost", "rules": {"max_cost_per_request": NAN}}, "rules.max_cost_per_request"),
        ({"name": "x", "type": "routing", "rules": {"min_success_rate": 5}}, "rules.min_success_rate"),
        ({"name": "x", "type": "routing", "scope": "world", "rules": {"allowed_models": ["*"]}}, "scope"),
        ({"name": "x", "type": "routing", "scope": "team", "rules": {"allowed_models": ["*"]}}, "scope_id"),
        ({"name": "x", "type": "routing", "rules": [5]}, "rules: must be a mapping"),
    ]  # fmt: skip
    found: dict[str, Asks] = {f"{told}: {given}": asking(lambda r: r.configure_policy, given) for given, told in wrong}
    both = {"name": "both", "type": "routing", "rules": {"allowed_keys": ["a1"], "denied_keys": ["a1"]}}
    return found | {
        "denied by policy 'both': contradicts itself": lambda r: r.route(intent(), policy=both),
        "allow nothing: empty": lambda r: r.route(
            intent(), policy={"name": "none", "type": "routing", "rules": {"allowed_providers": []}}
        ),
    }


def other_doors() -> dict[str, Asks]:
    """Everything else that takes an argument."""
    found: dict[str, Asks] = {
        f"concurrency: {count!r}": asking(lambda r: r.route_batch, [intent()], concurrency=count)
        for count in (0, -1, NAN, 10**9)
    }
    for name, given in (("estimated_tokens", -1), ("estimated_tokens", NAN), ("estimated_tokens", HUGE)):
        found[f"{name}: {given!r}"] = asking(lambda r: r.lease, "gpt-4o-mini", **{name: given})
    return found | {
        "registered already: provider": lambda r: r.register_provider("openai", OpenAIAdapter()),
        "execute_request: adapter": lambda r: r.register_provider("new", 5),
        "instance of OpenAIAdapter: class": lambda r: r.register_provider("new", OpenAIAdapter),
        "non-empty: provider": lambda r: r.register_provider("", OpenAIAdapter()),
        "intents: none": lambda r: r.route_batch(None),
        r"intents\[1\]: one of them": lambda r: r.route_batch([intent(), 5]),
        "no decision: unknown": lambda r: r.explain("nobody"),
        "decision: no id": lambda r: r.explain(5),
        "event_type: unknown": lambda r: r.subscribe_to_events("rain", print),
        "callback: none": lambda r: r.subscribe_to_events("*", 5),
        "built in: strategy": lambda r: r.routing_engine.register_strategy("cost", lambda _: 1.0),
        "scorer: none": lambda r: r.routing_engine.register_strategy("mine", 5),
        "decision_id: feedback": lambda r: r.routing_engine.update_routing_feedback("nobody", True),
        "failure: retried": lambda r: r.failure_handler.should_retry(5, 1),
        "key_id: circuit": lambda r: r.failure_handler.get_circuit_state("nobody"),
        "key_id: recovery": lambda r: r.failure_handler.monitor_recovery("nobody"),
    }


CASES = objectives() | intents() | keys() | money_and_quotas() | policies() | other_doors()


@pytest.mark.asyncio(loop_scope="package")
async def test_every_wrong_question_is_answered_by_an_error_that_says_what_is_wrong(
    simulator: SimulatorProcess,
) -> None:
    said: dict[str, str] = {}
    async with house(simulator, InMemoryStateStore(), ["a1", "b1"]) as made:
        for name, ask in CASES.items():
            wanted = name.partition(": ")[0]
            try:
                answer = ask(made.router)
                told = repr(await answer if inspect.isawaitable(answer) else answer)
            except ApiKeyRouterError as exc:
                if not re.search(wanted, str(exc)):
                    said[name] = f"does not name it: {exc}"
            except Exception as exc:
                said[name] = f"{type(exc).__name__}: {exc}"
            else:
                said[name] = f"was taken: {told[:100]}"
        assert said == {}
        assert {(await made.route()).key_used for _ in range(4)} == {"a1", "b1"}, "nothing was lost"
        assert await made.at_rest() == await made.billed()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"config": {"bogus": 1}}, "bogus"),
        ({"config": 5}, "config"),
        ({"config": {"max_decisions": -1}}, "max_decisions"),
        ({"config": {"log_level": "LOUD"}}, "log_level"),
        ({"config": {"default_cooldown_seconds": NAN}}, "default_cooldown_seconds"),
        ({"state_store": 5}, "state_store"),
        ({"state_store": InMemoryStateStore}, "instance"),
        ({"observability_manager": 5}, "observability_manager"),
    ],
)
def test_a_router_is_not_made_of_nonsense(given: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        ApiKeyRouter(**given)


@pytest.mark.parametrize("url", ["", "nope", "http://127.0.0.1", 5, None])
def test_a_redis_url_is_checked_at_once(url: Any) -> None:
    with pytest.raises(ConfigurationError, match="redis://"):
        RedisStateStore(url)


@pytest.mark.parametrize(
    "weights", [{"cost": 1e308, "latency": 1e308}, {"cost": 1e-320}, {"cost": 1e-300, "latency": 1e300}]
)
async def test_absurd_weights_still_choose(simulator: SimulatorProcess, weights: dict[str, float]) -> None:
    async with house(simulator, InMemoryStateStore(), ["a1", "b1"]) as made:
        answer = await made.router.route(intent(), RoutingObjective("cost", weights=weights))
        assert answer.key_used in {"a1", "b1"}
