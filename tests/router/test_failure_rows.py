"""Every error row of `providers.md` §1.3 through a simulated provider: what the caller saw, what became of key, group
and provider, and where the next requests went."""

from typing import Any, NamedTuple

import pytest

from apikeyrouter import ProviderError
from apikeyrouter.domain.components.failure_taxonomy import MEANINGS
from apikeyrouter.domain.interfaces.state_store import StateStore
from apikeyrouter.domain.models.api_key import KeyState
from apikeyrouter.domain.models.failure import FailureAction, FailureScope, Meaning
from apikeyrouter.infrastructure.state_store.memory_store import InMemoryStateStore
from apikeyrouter.simulator import SimulatorProcess
from apikeyrouter.simulator.anthropic_errors import ANTHROPIC_FAILURES
from apikeyrouter.simulator.openai_errors import OPENAI_FAILURES
from tests.router.house import House, house, until

pytestmark = pytest.mark.asyncio(loop_scope="package")

ROWS: dict[str, dict[str, str]] = {
    "openai": {
        "rate_limited": "rate_limit_requests rate_limit_tokens slow_down slow_down_503",
        "too_large_here": "request_too_large",
        "exhausted": "insufficient_quota credit_balance_exhausted organization_spend_limit_exceeded "
        "organization_usage_limit_exceeded billing_hard_limit_reached",
        "key_exhausted": "project_spend_limit_exceeded",
        "key_refused": "invalid_api_key not_a_member",
        "origin_refused": "ip_not_authorized unsupported_country",
        "model_not_permitted": "missing_scope unverified_organization",
        "model_not_served": "model_not_found model_not_found_400",
        "too_long": "context_length_exceeded",
        "callers_fault": "content_filter content_policy_violation invalid_prompt bio_policy "
        "misalignment_policy_violation",
        "overloaded": "flex_unavailable server_is_overloaded",
        "provider_failed": "server_error",
        "provider_late": "gateway_timeout",
    },
    "anthropic": {
        "rate_limited": "rate_limit_requests rate_limit_tokens ramp_limit_exceeded",
        "exhausted": "enforced_spend_limit_reached contract_spend_limit_reached usage_limit_reached "
        "credit_balance_too_low billing_error linked_organization_billing",
        "key_exhausted": "workspace_usage_limit_reached",
        "organisation_refused": "organization_on_hold organization_disabled cmek_key_unavailable",
        "key_refused": "claude_code_key_creator_not_member authentication_error",
        "model_not_permitted": "permission_error",
        "model_not_served": "not_found_error",
        "too_long": "prompt_too_long",
        "callers_fault": "request_too_large request_too_large_html content_policy",
        "overloaded": "overloaded_error",
        "provider_failed": "api_error cmek_transient",
        "provider_late": "timeout_error",
    },
}
"""What each error of a dialect means, by the simulator's names."""
CASES = [(d, name, kind) for d, kinds in ROWS.items() for kind, names in kinds.items() for name in names.split()]


class Fleet(NamedTuple):
    """Keys of one dialect: the one that fails, its sibling of the same group, and another provider's."""

    failing: str
    material: str
    sibling: str
    other: str
    model: str
    organisation: str
    lane: str
    provider: str


FLEETS = {
    "openai": Fleet("a1", "sk-sim-house-a-number-1", "a2", "b1", "gpt-4o-mini", "org-a", "g:org-a:gpt-4o-mini",
                    "p:openai"),
    "anthropic": Fleet("c1", "sk-ant-sim-house-c-1", "c2", "d1", "claude-haiku-5", "org-c", "g:org-c:claude-haiku-5",
                       "p:anthropic"),
}  # fmt: skip


class Seen(NamedTuple):
    """What there is to see of a key's scopes."""

    failing: KeyState
    sibling: KeyState
    group_cools: bool
    key_cools: bool
    provider_cools: bool
    provider_failures: int


UNTOUCHED = Seen(KeyState.Available, KeyState.Available, False, False, False, 0)


def expected(meaning: Meaning) -> Seen:
    """What is left behind by a failure of that kind, by its scope and action alone."""
    group = meaning.scope is FailureScope.QUOTA_GROUP
    if meaning.action is FailureAction.COOL:
        return UNTOUCHED._replace(group_cools=True)
    if meaning.action is FailureAction.EXHAUST:
        sibling = KeyState.Exhausted if group else KeyState.Available
        return UNTOUCHED._replace(failing=KeyState.Exhausted, sibling=sibling)
    if meaning.action is FailureAction.INVALIDATE:
        return UNTOUCHED._replace(failing=KeyState.Invalid, sibling=KeyState.Invalid if group else KeyState.Available)
    if meaning.action is FailureAction.BACK_OFF:
        return UNTOUCHED._replace(provider_failures=1)
    return UNTOUCHED


async def seen(made: House, fleet: Fleet) -> Seen:
    """What the store and the ledger have, which is what every other process sees."""
    manager, ledger = made.router.key_manager, made.router.ledger
    keys = [await manager.get_key(name) for name in (fleet.failing, fleet.sibling)]
    states = [key.state if key else KeyState.Disabled for key in keys]
    found = {lane.id: lane for lane in await ledger.lanes([fleet.lane, f"k:{fleet.failing}", fleet.provider])}
    now_us = ledger.stamp.now_us

    def cools(lane: str) -> bool:
        return lane in found and found[lane].blocked_until_us > now_us

    return Seen(
        states[0], states[1], cools(fleet.lane), cools(f"k:{fleet.failing}"), cools(fleet.provider),
        found[fleet.provider].failures_total,
    )  # fmt: skip


async def arrived(made: House, fleet: Fleet) -> int:
    """How many requests the failing key has sent."""
    keys = (await made.seen(fleet.organisation))["keys"]
    return int(keys[f"{fleet.organisation}/1"]["arrived"])


async def strike(made: House, fleet: Fleet) -> tuple[str, ProviderError | None]:
    """Route until the failing key was used once: who served that request, and how it failed."""
    for _ in range(6):
        used, error = "", None
        try:
            used = (await made.route(model=fleet.model)).key_used
        except ProviderError as exc:
            error = exc
        if any(attempt.key_id == fleet.failing for attempt in made.finished[-1].attempts):
            return used, error
    raise AssertionError("the failing key was never tried")


async def test_the_rows_here_name_every_error_of_each_dialect() -> None:
    named = {dialect: {name for d, name, _ in CASES if d == dialect} for dialect in ROWS}
    assert named == {
        "openai": set(OPENAI_FAILURES),
        "anthropic": set(ANTHROPIC_FAILURES) | {"request_too_large_html"},
    }
    assert {kind for _, _, kind in CASES} <= MEANINGS.keys()


@pytest.mark.parametrize(("dialect", "name", "kind"), CASES, ids=[f"{d}-{name}" for d, name, _ in CASES])
async def test_an_error_is_acted_on_at_its_own_scope_and_no_wider(
    simulator: SimulatorProcess, store: StateStore, dialect: str, name: str, kind: str
) -> None:
    fleet, meaning = FLEETS[dialect], MEANINGS[kind]
    await simulator.fail(name, key=fleet.material, count=1)
    async with house(simulator, store, [fleet.failing, fleet.sibling, fleet.other]) as made:
        used, error = await strike(made, fleet)
        (attempt, *more) = [one for one in made.finished[-1].attempts if one.key_id == fleet.failing]
        assert (attempt.meaning, more) == (kind, [])

        # what the caller saw
        if meaning.elsewhere and kind != "too_long":  # all models here have the same context
            assert error is None
            speaks_for_the_sibling = meaning.scope in (FailureScope.QUOTA_GROUP, FailureScope.PROVIDER)
            assert used in ({fleet.other} if speaks_for_the_sibling else {fleet.other, fleet.sibling})
        else:
            assert error is not None
            assert (error.category, error.retryable) == (meaning.category, False)
            assert len(made.finished[-1].attempts) == 1

        # what is left behind, for this process and all others
        wanted = expected(meaning)

        async def settled() -> bool:
            return await seen(made, fleet) == wanted

        await made.router.books.flush(seconds=5)
        await until(settled)

        # where the next requests went
        before = await arrived(made, fleet)
        followers = [(await made.route(model=fleet.model)).key_used for _ in range(6)]
        left_alone = wanted.failing is not KeyState.Available or wanted.group_cools or meaning.pause_seconds > 0
        left_alone |= meaning.action is FailureAction.SKIP_MODEL
        assert (fleet.failing in followers) == (not left_alone)
        assert await arrived(made, fleet) == before + followers.count(fleet.failing)
        if meaning.scope in (FailureScope.KEY, FailureScope.KEY_MODEL, FailureScope.REQUEST):
            assert {fleet.sibling, fleet.other} <= set(followers)
        settled_nanousd, billed = await made.at_rest(), await made.billed()
        assert settled_nanousd == billed if meaning.billed is False else settled_nanousd >= billed


@pytest.mark.parametrize(("dialect", "name", "kind"), CASES, ids=[f"{d}-{name}" for d, name, _ in CASES])
async def test_an_error_before_a_streams_first_word_is_acted_on_alike(
    simulator: SimulatorProcess, dialect: str, name: str, kind: str
) -> None:
    fleet, meaning = FLEETS[dialect], MEANINGS[kind]
    await simulator.fail(name, key=fleet.material, count=1)
    async with house(simulator, InMemoryStateStore(), [fleet.failing, fleet.other]) as made:
        for _ in range(6):
            error: ProviderError | None = None
            last: Any = None
            try:
                last = (await made.stream(model=fleet.model))[-1]
            except ProviderError as exc:
                error = exc
            if any(attempt.key_id == fleet.failing for attempt in made.finished[-1].attempts):
                break
        assert made.finished[-1].attempts[0].meaning == kind
        assert (error is None) == (meaning.elsewhere and kind != "too_long")
        assert last.key_used == fleet.other if error is None else error.category == meaning.category
        await made.at_rest()
