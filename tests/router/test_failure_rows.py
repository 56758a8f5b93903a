"""Every error row of `providers.md` §1.3 through a simulated provider: what the caller saw, what became of key, group
and provider, and where the next requests went."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import pytest
import pytest_asyncio

from apikeyrouter import ProviderError
from apikeyrouter.domain.components.failure_taxonomy import MEANINGS
from apikeyrouter.domain.interfaces.state_store import StateStore
from apikeyrouter.domain.models.api_key import KeyState
from apikeyrouter.domain.models.failure import FailureAction, FailureScope, Meaning
from apikeyrouter.infrastructure.config.compile import compile_config
from apikeyrouter.infrastructure.config.config_file import read_config
from apikeyrouter.infrastructure.state_store.memory_store import InMemoryStateStore
from apikeyrouter.simulator import SimulatorProcess
from apikeyrouter.simulator.anthropic_errors import ANTHROPIC_FAILURES
from apikeyrouter.simulator.compatible_errors import COMPATIBLE_FAILURES
from apikeyrouter.simulator.gemini_errors import GEMINI_FAILURES
from apikeyrouter.simulator.openai_errors import OPENAI_FAILURES
from tests.router.house import SOFT_BUDGET, House, house, until

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
    "gemini": {
        "rate_limited": "rate_limit_requests rate_limit_tokens quota_plain",
        "period_used_up": "quota_per_day",
        "exhausted": "prepayment_depleted",
        "key_refused": "api_key_invalid permission_denied key_leaked referrer_blocked",
        "organisation_refused": "service_disabled failed_precondition",
        "model_not_served": "gemini_not_found",
        "too_long": "input_too_long",
        "overloaded": "unavailable",
        "provider_failed": "internal",
        "provider_late": "deadline_exceeded",
    },
    "azure": {
        "rate_limited": "rate_limit_requests rate_limit_tokens",
        "key_refused": "invalid_api_key network_denied temporarily_blocked",
        "model_not_served": "model_not_found",
        "callers_fault": "content_filter",
    },
    "groq": {
        "rate_limited": "rate_limit_requests rate_limit_tokens",
        "too_large_here": "request_too_large",
        "overloaded": "capacity_exceeded overloaded",
        "organisation_refused": "organization_restricted",
        "callers_fault": "tool_use_failed",
        "key_refused": "invalid_api_key",
        "model_not_served": "model_not_found",
    },
    "mistral": {
        "rate_limited": "rate_limit_requests",
        "key_refused": "invalid_api_key",
        "exhausted": "payment_required",
        "model_not_served": "model_not_found",
        "callers_fault": "extra_forbidden",
        "too_long": "context_length",
        "overloaded": "overloaded",
    },
    "deepseek": {
        "rate_limited": "rate_limit_requests",
        "exhausted": "insufficient_balance",
        "key_refused": "invalid_api_key",
        "callers_fault": "invalid_parameters",
        "model_not_served": "model_not_found",
        "overloaded": "overloaded",
    },
    "openrouter": {
        "rate_limited": "rate_limit_requests in_flight_budget",
        "exhausted": "insufficient_credits",
        "key_exhausted": "key_limit",
        "callers_fault": "weight_exceeds_budget moderation",
        "key_refused": "invalid_api_key",
        "model_not_served": "model_not_found",
        "provider_late": "request_timeout",
        "overloaded": "overloaded",
        "provider_failed": "upstream_down",
    },
}
"""What each error of a dialect means, by the simulator's names."""
CASES = [(d, name, kind) for d, kinds in ROWS.items() for kind, names in kinds.items() for name in names.split()]


class Fleet(NamedTuple):
    """Keys of one dialect: `failing` and `sibling` of one organisation, `other` of another one at another provider."""

    dialect: str
    model: str

    def material(self, key: str) -> str:
        """What the key is."""
        return f"sk-{self.dialect}-rows-{key}-0123456789"

    @property
    def lane(self) -> str:
        """The lane of the organisation's model."""
        return f"g:org-{self.dialect}:{self.model}"

    def organisations(self) -> list[dict[str, Any]]:
        """For the simulator."""
        common = {"dialect": self.dialect, "output_tokens": 12, "prices": {self.model: {"input": "1", "output": "5"}}}
        return [
            {"id": f"org-{self.dialect}", "keys": [self.material("failing"), self.material("sibling")], **common},
            {"id": f"org-{self.dialect}-2", "keys": [self.material("other")], **common},
        ]

    def sections(self, simulator: SimulatorProcess, *keys: str) -> dict[str, Any]:
        """For the router: the same adapter under two names."""
        provider = {"adapter": self.dialect, "base_url": simulator.base_url(self.dialect)}
        groups = {"other": f"org-{self.dialect}-2"}
        return {
            "providers": {"here": provider, "there": provider},
            "prices": [{"model": self.model, "input": 1, "output": 5}],
            "keys": [
                {
                    "id": key, "provider": "there" if key == "other" else "here", "key": self.material(key),
                    "quota_group": groups.get(key, f"org-{self.dialect}"), "models": [self.model],
                }
                for key in keys
            ],
        }  # fmt: skip


FLEETS = {
    dialect: Fleet(dialect, model)
    for dialect, model in {
        "openai": "gpt-4o-mini", "anthropic": "claude-haiku-5", "gemini": "gemini-2.5-flash", "azure": "gpt-4o-mini",
        "groq": "llama-3.1-8b-instant", "mistral": "mistral-small-latest", "deepseek": "deepseek-chat",
        "openrouter": "example/free",
    }.items()
}  # fmt: skip
SIMULATED = {"organisations": [one for fleet in FLEETS.values() for one in fleet.organisations()]}


@pytest_asyncio.fixture(loop_scope="package", scope="module")
async def providers() -> AsyncIterator[SimulatorProcess]:
    """One child with every dialect."""
    async with SimulatorProcess(SIMULATED) as process:
        yield process


@pytest_asyncio.fixture(loop_scope="package")
async def rows(providers: SimulatorProcess) -> SimulatorProcess:
    """The same, untouched."""
    await providers.control(clear_failures=True)
    await providers.reset()
    return providers


@asynccontextmanager
async def manned(simulator: SimulatorProcess, store: StateStore, fleet: Fleet, *keys: str) -> AsyncIterator[House]:
    """A house with these keys of a fleet."""
    config = {**fleet.sections(simulator, *keys), "budgets": [SOFT_BUDGET]}
    async with house(simulator, store, []) as made:
        await made.router.apply(compile_config(read_config(config), environ={}))
        yield made


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
    keys = [await manager.get_key(name) for name in ("failing", "sibling")]
    states = [key.state if key else KeyState.Disabled for key in keys]
    found = {lane.id: lane for lane in await ledger.lanes([fleet.lane, "k:failing", "p:here"])}
    now_us = ledger.stamp.now_us

    def cools(lane: str) -> bool:
        return lane in found and found[lane].blocked_until_us > now_us

    return Seen(
        states[0], states[1], cools(fleet.lane), cools("k:failing"), cools("p:here"),
        found["p:here"].failures_total,
    )  # fmt: skip


async def arrived(made: House, fleet: Fleet) -> int:
    """How many requests the failing key has sent."""
    organisation = f"org-{fleet.dialect}"
    keys = (await made.seen(organisation))["keys"]
    return int(keys[f"{organisation}/1"]["arrived"])


async def strike(made: House, fleet: Fleet) -> tuple[str, ProviderError | None]:
    """Route until the failing key was used once: who served that request, and how it failed."""
    for _ in range(6):
        used, error = "", None
        try:
            used = (await made.route(model=fleet.model)).key_used
        except ProviderError as exc:
            error = exc
        if any(attempt.key_id == "failing" for attempt in made.finished[-1].attempts):
            return used, error
    raise AssertionError("the failing key was never tried")


async def test_the_rows_here_name_every_error_of_each_dialect() -> None:
    named = {dialect: {name for d, name, _ in CASES if d == dialect} for dialect in ROWS}
    assert named == {
        "openai": set(OPENAI_FAILURES),
        "anthropic": set(ANTHROPIC_FAILURES) | {"request_too_large_html"},
        "gemini": set(GEMINI_FAILURES),
        **{dialect: set(rows) for dialect, rows in COMPATIBLE_FAILURES.items()},
    }
    assert {kind for _, _, kind in CASES} <= MEANINGS.keys()


@pytest.mark.parametrize(("dialect", "name", "kind"), CASES, ids=[f"{d}-{name}" for d, name, _ in CASES])
async def test_an_error_is_acted_on_at_its_own_scope_and_no_wider(
    rows: SimulatorProcess, store: StateStore, dialect: str, name: str, kind: str
) -> None:
    fleet, meaning = FLEETS[dialect], MEANINGS[kind]
    await rows.fail(name, key=fleet.material("failing"), count=1)
    async with manned(rows, store, fleet, "failing", "sibling", "other") as made:
        used, error = await strike(made, fleet)
        (attempt, *more) = [one for one in made.finished[-1].attempts if one.key_id == "failing"]
        assert (attempt.meaning, more) == (kind, [])

        # what the caller saw
        if meaning.elsewhere and kind != "too_long":  # all models here have the same context
            assert error is None
            speaks_for_the_sibling = meaning.scope in (FailureScope.QUOTA_GROUP, FailureScope.PROVIDER)
            assert used in ({"other"} if speaks_for_the_sibling else {"other", "sibling"})
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
        assert ("failing" in followers) == (not left_alone)
        assert await arrived(made, fleet) == before + followers.count("failing")
        if meaning.scope in (FailureScope.KEY, FailureScope.KEY_MODEL, FailureScope.REQUEST):
            assert {"sibling", "other"} <= set(followers)
        settled_nanousd, billed = await made.at_rest(), await made.billed()
        assert settled_nanousd == billed if meaning.billed is False else settled_nanousd >= billed


@pytest.mark.parametrize(("dialect", "name", "kind"), CASES, ids=[f"{d}-{name}" for d, name, _ in CASES])
async def test_an_error_before_a_streams_first_word_is_acted_on_alike(
    rows: SimulatorProcess, dialect: str, name: str, kind: str
) -> None:
    fleet, meaning = FLEETS[dialect], MEANINGS[kind]
    await rows.fail(name, key=fleet.material("failing"), count=1)
    async with manned(rows, InMemoryStateStore(), fleet, "failing", "other") as made:
        for _ in range(6):
            error: ProviderError | None = None
            last: Any = None
            try:
                last = (await made.stream(model=fleet.model))[-1]
            except ProviderError as exc:
                error = exc
            if any(attempt.key_id == "failing" for attempt in made.finished[-1].attempts):
                break
        assert made.finished[-1].attempts[0].meaning == kind
        assert (error is None) == (meaning.elsewhere and kind != "too_long")
        assert last.key_used == "other" if error is None else error.category == meaning.category
        await made.at_rest()


async def test_a_key_is_out_until_the_date_that_its_provider_names(rows: SimulatorProcess, store: StateStore) -> None:
    fleet = FLEETS["anthropic"]
    await rows.fail("usage_limit_reached", key=fleet.material("failing"), count=1)
    async with manned(rows, store, fleet, "failing", "sibling", "other") as made:
        await strike(made, fleet)

        async def out() -> bool:
            key = await made.router.key_manager.get_key("failing")
            return key is not None and key.state is KeyState.Exhausted

        await until(out)
        key = await made.router.key_manager.get_key("failing")
        assert key is not None
        assert key.state_until is not None
        today = datetime.now(UTC)
        first = datetime(today.year + today.month // 12, today.month % 12 + 1, 1, tzinfo=UTC)
        assert abs(key.state_until - first) < timedelta(seconds=30)


async def test_a_day_of_ones_own_ends_at_its_midnight(rows: SimulatorProcess, store: StateStore) -> None:
    fleet = FLEETS["gemini"]
    await rows.fail("quota_per_day", key=fleet.material("failing"), count=1)
    async with manned(rows, store, fleet, "failing", "other") as made:
        await strike(made, fleet)

        async def cools() -> bool:
            return (await seen(made, fleet)).group_cools

        await until(cools)
        (lane,) = await made.router.ledger.lanes([fleet.lane])
        back = datetime.fromtimestamp(lane.blocked_until_us / 1e6, ZoneInfo("America/Los_Angeles"))
        assert abs(back - back.replace(hour=0, minute=0, second=0, microsecond=0)) < timedelta(seconds=30)
