"""What routing learns of keys: failures that the fleet saw, latencies to the first token; refusals prove nothing."""

from collections import Counter
from contextlib import suppress

from apikeyrouter.domain.models.system_error import ProviderError
from apikeyrouter.infrastructure.state_store.memory_store import InMemoryStateStore
from apikeyrouter.infrastructure.state_store.redis_store import RedisStateStore
from apikeyrouter.simulator import SimulatorProcess
from tests.router.house import House, house, intent, until


async def looked_again(made: House) -> None:
    """Wait until the snapshot is a newer one than that of now."""
    before = made.router.snapshot.version
    await until(lambda: made.router.snapshot.version > before + 1)


async def test_failures_that_one_process_saw_turn_the_others_away(simulator: SimulatorProcess, redis_url: str) -> None:
    async with (
        house(simulator, RedisStateStore(redis_url), ["a1", "b1"]) as here,
        house(simulator, RedisStateStore(redis_url), ["a1", "b1"]) as there,
    ):
        for _ in range(4):
            await there.router.route(intent(), objective="reliability")
        await simulator.fail("server_error", organisation="org-a")
        for _ in range(3):
            with suppress(ProviderError):
                await here.route(provider_id="openai")
        await simulator.control(clear_failures=True)
        await here.router.books.flush(seconds=5)
        await looked_again(there)
        used = Counter([(await there.router.route(intent(), objective="reliability")).key_used for _ in range(6)])
        assert used == {"b1": 6}
        decision = (await there.router.explain(there.finished[-1].request_id)).decision
        failing = next(verdict for verdict in decision.candidates if verdict.key_id == "a1")
        assert failing.outcome == "out" or failing.parts["failure_share"] > 0.1


async def test_streams_are_timed_to_their_first_token(simulator: SimulatorProcess) -> None:
    """A stream of four hundred tokens takes ten seconds, and its first token no time."""
    async with house(simulator, InMemoryStateStore(), ["s1"]) as made:
        chunks = made.router.route_stream(intent("[[tokens:60]] please", model="gpt-4o-mini"))
        async for chunk in chunks:
            last = chunk
        assert last.last
        facts = made.finished[-1]
        seen = made.router.catalogue.observations.of("s1", "gpt-4o-mini")
        assert 0 < seen.latency(stream=True) <= facts.first_token_us < facts.upstream_us / 2
        assert seen.latency(stream=False) == 0
        await made.at_rest()
        (lane,) = await made.router.ledger.lanes(["k:s1"])
        assert lane.latency_us == int(seen.latency(stream=True))


async def test_fast_refusals_are_never_attractive(simulator: SimulatorProcess) -> None:
    async with house(simulator, InMemoryStateStore(), ["a1", "b1"]) as made:
        await simulator.fail("rate_limit", organisation="org-a", seconds=1)
        for number in range(40):
            await made.router.route(intent(), objective="latency")
            if number % 10 == 9:
                await looked_again(made)
        assert (await made.seen("org-b"))["admitted"] == 40
        assert (await made.seen("org-a"))["arrived"] <= 4


async def test_what_policies_refuse_is_told_by_a_dry_run(simulator: SimulatorProcess) -> None:
    async with house(simulator, InMemoryStateStore(), ["a1", "b1"]) as made:
        rules = {"id": "no-other", "name": "no-other", "rules": {"denied_providers": ["other"]}}
        rules |= {"type": "routing", "scope": "global"}
        decision = await made.router.dry_run(intent(), policy=rules)
        assert decision.selected_key_id == "a1"
        (barred,) = [verdict for verdict in decision.candidates if verdict.key_id == "b1"]
        assert barred.outcome == "excluded"
        assert "no-other" in barred.reason
        assert decision.policy_ids == ["no-other"]
        nobody = {**rules, "rules": {"denied_providers": ["other", "openai"]}}
        refused = await made.router.dry_run(intent(), policy=nobody)
        assert (refused.selected_key_id, {verdict.outcome for verdict in refused.candidates}) == ("", {"excluded"})
        assert made.finished == []
