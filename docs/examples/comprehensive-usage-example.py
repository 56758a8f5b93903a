"""A tour of ApiKeyRouter: eleven stations as a library, then the same router as an HTTP service.

    python docs/examples/comprehensive-usage-example.py            # simulated providers, nothing to set up
    python docs/examples/comprehensive-usage-example.py --real     # your keys, your money: some sixty short answers

Keys come from OPENAI_KEY_1 … OPENAI_KEY_4 and ANTHROPIC_KEY_1, ANTHROPIC_KEY_2, with `--real` only; else they are
placeholders, which only simulated providers take. The service needs an extra: `pip install 'apikeyrouter[proxy]'`.
"""

import argparse
import asyncio
import contextlib
import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import httpx

from apikeyrouter import ApiKeyRouter, BudgetExceededError, KeyState, NoEligibleKeysError, RoutingObjective, SystemError
from apikeyrouter.domain.interfaces.state_store import StateQuery
from apikeyrouter.domain.models.api_key import APIKey
from apikeyrouter.domain.models.budget import BudgetScope, EnforcementMode
from apikeyrouter.domain.models.policy import Policy, PolicyScope, PolicyType
from apikeyrouter.domain.models.quota_state import TimeWindow
from apikeyrouter.domain.models.routing_decision import ObjectiveType
from apikeyrouter.domain.models.system_response import SystemResponse
from apikeyrouter.infrastructure.adapters.anthropic_adapter import AnthropicAdapter
from apikeyrouter.infrastructure.adapters.openai_adapter import OpenAIAdapter
from apikeyrouter.simulator import SimulatorProcess

GPT, CLAUDE = "gpt-4o-mini", "claude-haiku-4-5"
PLACEHOLDERS = {
    **{f"OPENAI_KEY_{number}": f"sk-placeholder-openai-{number}" for number in range(1, 5)},
    **{f"ANTHROPIC_KEY_{number}": f"sk-ant-placeholder-{number}" for number in range(1, 3)},
}
METADATA: dict[str, dict[str, Any]] = {
    "OPENAI_KEY_1": {"tier": "enterprise", "region": "us-east"},
    "OPENAI_KEY_2": {"tier": "pro", "region": "us-east"},
    "OPENAI_KEY_3": {"tier": "pro", "region": "eu-west"},
    "OPENAI_KEY_4": {"tier": "basic", "region": "eu-west", "cost_per_1k": "0.00001"},
    "ANTHROPIC_KEY_1": {"tier": "pro", "region": "us-east"},
    "ANTHROPIC_KEY_2": {"tier": "pro", "region": "eu-west"},
}
# Two organisations at each provider. Keys of one organisation share its limits, which the router finds out.
SIMULATED = {
    "organisations": [
        {"id": "one", "keys": [PLACEHOLDERS[f"OPENAI_KEY_{number}"] for number in (1, 2)], "output_tokens": 12},
        {"id": "two", "keys": [PLACEHOLDERS[f"OPENAI_KEY_{number}"] for number in (3, 4)], "output_tokens": 12},
        {"id": "three", "dialect": "anthropic", "keys": [PLACEHOLDERS["ANTHROPIC_KEY_1"]], "output_tokens": 12},
        {"id": "four", "dialect": "anthropic", "keys": [PLACEHOLDERS["ANTHROPIC_KEY_2"]], "output_tokens": 12},
    ],
    "open": True,
}


@dataclass
class Tour:
    """What the stations share. `simulator` is None with real keys: then no failures are made."""

    router: ApiKeyRouter
    materials: Mapping[str, str]
    simulator: SimulatorProcess | None
    keys: dict[str, APIKey]

    def name(self, key_id: str | None) -> str:
        """The name under which this tour knows a key."""
        return next((name for name, key in self.keys.items() if key.id == key_id), str(key_id))

    def key(self, name: str) -> str:
        """A key's id, by that name."""
        return self.keys[name].id

    async def ask(self, text: str, *, objective: Any = None, **fields: Any) -> SystemResponse:
        """One short question."""
        request = {
            "model": GPT, "messages": [{"role": "user", "content": text}], "parameters": {"max_tokens": 32}, **fields
        }  # fmt: skip
        return await self.router.route(request, objective=objective)

    async def fail(self, name: str, **rule: Any) -> None:
        """Let the simulated providers fail."""
        if self.simulator is not None:
            await self.simulator.fail(name, **rule)


def title(text: str) -> None:
    """Head one station."""
    print(f"\n{text}\n{'-' * len(text)}")


async def setup(tour: Tour) -> None:
    """1. Providers and keys."""
    title("1. Setup: two providers, six keys")
    await tour.router.register_provider("openai", OpenAIAdapter())
    await tour.router.register_provider("anthropic", AnthropicAdapter())
    for name, material in tour.materials.items():
        provider_id = name.partition("_")[0].lower()
        tour.keys[name] = await tour.router.register_key(material, provider_id, METADATA[name])
        print(f"{name:16} is {tour.keys[name].id}, {tour.keys[name].state}, {METADATA[name]}")
    again = await tour.router.register_key(tour.materials["OPENAI_KEY_1"], "openai", METADATA["OPENAI_KEY_1"])
    print(f"registering it again gives the same key: {again.id == tour.key('OPENAI_KEY_1')}")


async def configuration(tour: Tour) -> None:
    """2. Quotas, budgets, policies and model names."""
    title("2. Configuration: a quota, a budget, two policies, a name for two models")
    next_month = (datetime.now(UTC).replace(day=1) + timedelta(days=32)).replace(
        day=1, hour=0, minute=0, second=0, microsecond=0
    )
    quota = await tour.router.configure_quota(
        tour.key("OPENAI_KEY_2"), TimeWindow.Monthly, total_capacity=1_000_000, reset_at=next_month
    )
    print(f"OPENAI_KEY_2 has {quota.remaining_capacity:,} tokens until {quota.reset_at:%Y-%m-%d}")
    budget = await tour.router.cost_controller.create_budget(
        BudgetScope.Global, Decimal("5.00"), TimeWindow.Daily, EnforcementMode.Hard, name="day"
    )
    print(f"budget {budget.id}: ${budget.limit} a day, {budget.enforcement_mode}")
    for policy in (
        Policy(
            name="development", type=PolicyType.Cost, scope=PolicyScope.Team, scope_value="development",
            rules=[{"action": "prefer_lowest_cost", "max_cost_per_request": 0.10}],
        ),
        Policy(
            name="production", type=PolicyType.Routing, scope=PolicyScope.Team, scope_value="production",
            rules=[{"min_success_rate": 0.95, "prefer_premium_tier": True}],
        ),
    ):  # fmt: skip
        await tour.router.configure_policy(policy)
        print(f"policy {policy.id} for team {policy.scope_id}: {policy.rules}")
    await tour.router.configure_models(
        {"small": [{"provider": "openai", "model": GPT}, {"provider": "anthropic", "model": CLAUDE}]}
    )
    print(f"model small: {GPT}, else {CLAUDE}")


async def objectives(tour: Tour) -> None:
    """3. Objectives."""
    title("3. Routing: what a request may ask for")
    balanced = RoutingObjective(
        primary=ObjectiveType.Cost.value,
        secondary=["reliability"],
        weights={"cost": 0.6, "reliability": 0.4},
        constraints={"min_reliability": 0.5},
    )
    for objective in ("cost", "reliability", "fairness", "speed", "quality", balanced):
        answer = await tour.ask("Say hello.", objective=objective)
        told = objective if isinstance(objective, str) else "cost 0.6 + reliability 0.4"
        print(f"{told:28} {tour.name(answer.key_used):16} ${answer.metadata.cost_actual:.8f}")
    used = Counter([tour.name((await tour.ask("Say hello.", objective="fairness")).key_used) for _ in range(8)])
    print(f"eight times fairness: {dict(sorted(used.items()))}")
    print("streamed: ", end="")
    async for chunk in tour.router.route_stream({"model": GPT, "messages": [{"role": "user", "content": "Hi!"}]}):
        print(chunk, end="", flush=True)
    print()


async def failover(tour: Tour) -> None:
    """4. Failures."""
    title("4. Failover: a refused request finds another key")
    await tour.fail("rate_limit", seconds=1, count=1)
    answer = await tour.ask("Say hello, whatever happens.")
    attempts = tour.router.decisions[-1].attempts
    for attempt in attempts:
        print(f"{tour.name(attempt.key_id):16} {attempt.failure or 'answered'}")
    print(f"{answer.content!r} after {len(attempts)} attempts")
    refused = attempts[0].key_id
    circuit = await tour.router.failure_handler.get_circuit_state(refused)
    print(
        f"{tour.name(refused)}: its breaker is {circuit.state}, for it was no failure; it rests for a second: ", end=""
    )
    await asyncio.sleep(1.2)
    print("over")


async def quotas(tour: Tour) -> None:
    """5. Quota awareness."""
    title("5. Quota tracking: abundant, constrained, critical, exhausted")
    engine, key_id = tour.router.quota_awareness_engine, tour.key("OPENAI_KEY_3")
    await tour.router.configure_quota(key_id, TimeWindow.Daily, total_capacity=10_000)
    for elsewhere in (0, 8_000, 1_500, 500):
        state = await engine.update_capacity(key_id, used_tokens=elsewhere, time_window=TimeWindow.Daily)
        print(f"{elsewhere:6,} tokens used elsewhere: {state.remaining_capacity:6,} left, {state.capacity_state}")
    estimate = await engine.calculate_capacity_estimate(key_id, TimeWindow.Daily)
    prediction = await engine.predict_exhaustion(tour.key("OPENAI_KEY_2"))
    print(f"capacity of OPENAI_KEY_3: {estimate.remaining} ({estimate.method})")
    print(f"OPENAI_KEY_2 will run out: {(prediction and prediction.expected_at) or 'not before it resets'}")
    used = {tour.name((await tour.ask("Say hello.")).key_used) for _ in range(8)}
    print(f"eight requests went to {', '.join(sorted(used))}")
    await engine.reset_quota(key_id, TimeWindow.Daily)
    print(f"after a reset: {(await engine.get_quota_state(key_id, TimeWindow.Daily)).capacity_state}")


async def costs(tour: Tour) -> None:
    """6. Costs and budgets."""
    title("6. Costs: estimated before, held, booked after")
    controller = tour.router.cost_controller
    request = {"model": GPT, "messages": [{"role": "user", "content": "What will this cost?"}]}
    estimate = await controller.estimate_request_cost(request, "openai", tour.key("OPENAI_KEY_1"))
    checked = await controller.check_budget(request, estimate)
    print(f"estimate ${estimate.amount if estimate else 0:.8f}, fits the budgets: {checked.allowed}")
    tight = await controller.create_budget(
        BudgetScope.Team, Decimal("0.0000001"), TimeWindow.Daily, EnforcementMode.Hard, scope_id="interns"
    )
    try:
        await tour.ask("A long story, please.", team="interns")
    except BudgetExceededError as exc:
        print(f"refused before it was sent: {exc.details['scope']}, limit ${exc.details['limit']:.7f}")
    tight.enforcement_mode = EnforcementMode.Soft
    answer = await tour.ask("A long story, please.", team="interns")
    print(f"soft: served, marked {answer.metadata.additional_metadata.get('soft_budgets_exceeded')}")
    status = await controller.get_budget_status(BudgetScope.Global)
    print(f"today: ${status.settled:.8f} settled, ${status.held} held, ${status.remaining:.8f} of ${status.limit} left")


async def lifecycle(tour: Tour) -> None:
    """7. The life of a key."""
    title("7. Keys: rest, rotate, revoke")
    manager, key_id = tour.router.key_manager, tour.key("OPENAI_KEY_2")
    await manager.update_key_state(key_id, KeyState.Disabled, "maintenance")
    served = {tour.name((await tour.ask("Say hello.")).key_used) for _ in range(6)}
    print(f"OPENAI_KEY_2 is disabled; six requests went to {', '.join(sorted(served))}")
    await manager.update_key_state(key_id, KeyState.Available, "maintenance is over")
    if tour.simulator is not None:
        rotated = await manager.rotate_key(key_id, "sk-placeholder-openai-2-new")
        print(f"rotated: the id stays ({rotated.id == key_id}), generation {rotated.generation}")
    spare = await tour.router.register_key("sk-placeholder-spare", "openai")
    await manager.revoke_key(spare.id, "it was never needed")
    for transition in (await manager.get_transitions(key_id))[-3:]:
        print(f"  {transition.from_state} -> {transition.to_state}: {transition.reason}")


async def observability(tour: Tour) -> None:
    """8. What happened, and why."""
    title("8. Observability: events, traces, decisions, state")
    heard: list[str] = []
    subscription = tour.router.subscribe_to_events("*", lambda event: heard.append(event["event"]))
    answer = await tour.ask("Why this key?", objective="cost")
    trace = await tour.router.get_trace(answer.request_id)
    for step in trace.events if trace else ():
        print(f"  {step.at:%H:%M:%S.%f} {step.name}")
    print(f"decision: {await tour.router.explain(answer.request_id)}")
    (decision,) = await tour.router.state_store.query_state(StateQuery("RoutingDecision", ids=[answer.request_id]))
    print(f"of {len(decision.candidates)} candidates, with confidence {decision.confidence:.2f}")
    foreseen = await tour.router.dry_run({"model": GPT, "messages": [{"role": "user", "content": "Hi"}]}, "reliability")
    print(f"a reliable one would go to {tour.name(foreseen.selected_key_id)}")
    await tour.router.routing_engine.update_routing_feedback(answer.request_id, False, {"quality": 0.1})
    await asyncio.sleep(0.1)  # events are told behind the requests' backs
    subscription.cancel()
    print(f"heard: {', '.join(dict.fromkeys(heard))}")
    state = await tour.router.get_state_summary()
    print(f"{state.keys.available} of {state.keys.total} keys available, ${state.costs.total_spent:.8f} spent")


async def providers(tour: Tour) -> None:
    """9. Several providers."""
    title("9. Providers: one name, two houses")
    print(f"small goes to {(await tour.ask('Say hello.', model='small')).metadata.provider_id}")
    await tour.fail("server_error", model=GPT, count=4)
    answer = await tour.ask("Say hello.", model="small")
    print(f"after trouble at the first: {answer.metadata.provider_id}, {answer.metadata.model_used}")
    if tour.simulator is not None:
        await tour.simulator.control(clear_failures=True)
    pinned = await tour.ask("Say hello.", model=CLAUDE, provider_id="anthropic")
    print(f"pinned: {pinned.metadata.provider_id}")


async def concurrency(tour: Tour) -> None:
    """10. Many requests."""
    title("10. Concurrency: a batch, and what it used")
    intents = [{"model": "small", "messages": [{"role": "user", "content": f"Count to {n}."}]} for n in range(12)]
    answers = await tour.router.route_batch(
        intents, concurrency=4, on_progress=lambda done, total: print(f"\r  {done} of {total}", end="")
    )
    print()
    used = Counter(tour.name(answer.key_used) for answer in answers)
    print(f"{sum(answer.metadata.tokens_used.total for answer in answers)} tokens over {dict(sorted(used.items()))}")


async def policies(tour: Tour) -> None:
    """11. Policies."""
    title("11. Policies: each team has its own")
    for team in ("development", "production"):
        answer = await tour.ask("Say hello.", team=team)
        print(f"{team:12} {tour.name(answer.key_used):16} {tour.keys[tour.name(answer.key_used)].metadata['tier']}")
    europe = Policy(name="europe", type=PolicyType.KeySelection, rules={"allowed_regions": ["eu-west"]})
    impact = await tour.router.policy_engine.dry_run_policy(europe, {"model": GPT})
    print(f"europe would leave {len(impact.keys_after)} of {len(impact.keys_before)} keys")
    answer = await tour.router.route({"model": GPT, "messages": [{"role": "user", "content": "Hi"}]}, policy=europe)
    print(f"with it: {tour.name(answer.key_used)}")
    nowhere = Policy(name="nowhere", rules={"allowed_regions": ["the moon"]})
    try:
        await tour.router.route({"model": GPT, "messages": [{"role": "user", "content": "Hi"}]}, policy=nowhere)
    except NoEligibleKeysError as exc:
        print(f"refused: {str(exc).partition(' (')[0]}")


@contextlib.asynccontextmanager
async def service(environ: Mapping[str, str]) -> AsyncIterator[dict[str, Any]]:
    """A service of its own, on a free port, as `make run` starts it; what it says when it listens."""
    with tempfile.TemporaryDirectory() as directory:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "apikeyrouter.cli", "quickstart", "--port", "0", "--json",
            cwd=directory, env=dict(environ), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        try:
            assert process.stdout is not None
            async with asyncio.timeout(60):
                while line := await process.stdout.readline():
                    told: dict[str, Any] = json.loads(line)
                    if told.get("event") == "listening":
                        yield told
                        break
                else:
                    raise RuntimeError("the service did not start")
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            await process.wait()


async def proxy_mode(environ: Mapping[str, str]) -> None:
    """The same, over HTTP: any OpenAI or Anthropic client, and the management API."""
    title("Proxy mode: the same keys behind one address")
    async with service(environ) as listening, httpx.AsyncClient(base_url=listening["url"], timeout=60) as client:
        chat = {"model": GPT, "messages": [{"role": "user", "content": "Hello!"}]}
        answer = await client.post("/v1/chat/completions", json=chat, headers={"x-akr-objective": "cost"})
        body = answer.json()
        print(f"POST /v1/chat/completions: {body['choices'][0]['message']['content']!r}")
        routed = body["routing_metadata"]
        print(f"  key {routed['key_used']}, {routed['attempts']} attempt, ${routed['cost']}")
        message = {"model": CLAUDE, "max_tokens": 32, "messages": [{"role": "user", "content": "Hello!"}]}
        answer = await client.post("/v1/messages", json=message)
        print(f"POST /v1/messages: {answer.json()['content'][0]['text']!r}")
        manager = {"X-API-Key": listening["management_key"] or environ.get("MANAGEMENT_API_KEY", "")}
        added = await client.post(
            "/api/v1/keys", headers=manager,
            json={"key_material": "sk-placeholder-5", "provider_id": "openai", "metadata": {"tier": "basic"}},
        )  # fmt: skip
        key_id = added.json()["id"]
        print(f"POST /api/v1/keys: {added.status_code}, {key_id}")
        rest = {"state": "throttled", "reason": "a rest", "for_seconds": 30}
        changed = await client.patch(f"/api/v1/keys/{key_id}", headers=manager, json=rest)
        print(f"PATCH /api/v1/keys/{key_id}: {changed.json()['state']}")
        print(f"DELETE: {(await client.delete(f'/api/v1/keys/{key_id}', headers=manager)).status_code}")
        print(f"GET /health: {(await client.get('/health')).json()}")
        state = (await client.get("/state", headers=manager)).json()
        print(f"GET /state: {state['keys']['available']} keys available, ${state['costs']['total_spent']} spent")
        metrics = (await client.get("/metrics")).text
        print(f"GET /metrics: {sum(not line.startswith('#') for line in metrics.splitlines())} samples")


async def run(*, real: bool) -> None:
    """The whole tour."""
    materials = {name: (os.environ.get(name, "") if real else "") or made for name, made in PLACEHOLDERS.items()}
    placeholders = [name for name, made in PLACEHOLDERS.items() if materials[name] == made]
    if real and placeholders:
        sys.exit(f"--real needs real keys: set {', '.join(placeholders)}")
    if placeholders:
        print("WARNING: placeholder keys. They work with the simulated providers of this example and nowhere else.")
    async with contextlib.AsyncExitStack() as stack:
        simulator = None
        if not real:
            simulator = await stack.enter_async_context(SimulatorProcess(SIMULATED))
            os.environ |= {"OPENAI_BASE_URL": simulator.openai_url, "ANTHROPIC_BASE_URL": simulator.anthropic_url}
        router = await stack.enter_async_context(ApiKeyRouter(config={"log_level": "ERROR"}))
        tour = Tour(router=router, materials=materials, simulator=simulator, keys={})
        for station in (
            setup, configuration, objectives, failover, quotas, costs, lifecycle, observability, providers,
            concurrency, policies,
        ):  # fmt: skip
            try:
                await station(tour)
            except SystemError as exc:  # what is left of a request after all its retries
                raise SystemExit(f"{station.__name__}: {exc.category}: {exc.message}") from exc
        await proxy_mode({**os.environ, **materials})
    print("\nThat was it. The README beside this file says where to read on.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", action="store_true", help="call the real providers with the keys of the environment")
    asyncio.run(run(real=parser.parse_args().real))
