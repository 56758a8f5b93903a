"""What a policy may say, what is refused, and what it says to a context."""

from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apikeyrouter import ApiKeyRouter
from apikeyrouter.domain.components.policy_checks import check_policy
from apikeyrouter.domain.components.policy_windows import NEVER, in_force, next_change, read_window
from apikeyrouter.domain.models.policy import RULES, Policy, PolicyScope
from apikeyrouter.domain.models.system_error import InvalidRequestError

BERLIN = ZoneInfo("Europe/Berlin")


def checked(rules: Any, **fields: Any) -> tuple[list[str], list[str]]:
    """Errors and warnings of a policy with these rules, where provider p0 and key k0 are known."""
    made = Policy(**{"name": "p", "rules": rules, **fields})
    return check_policy(made, providers={"p0"}, keys={"k0"})


@pytest.mark.parametrize(
    ("rules", "complaint"),
    [
        ({}, "rules: must have at least one rule"),
        ([], "rules: must have at least one rule"),
        ([{}], "rules: must have at least one rule"),
        ({"alowed_keys": ["k"]}, "rules.alowed_keys: is no rule"),
        ([{"denied_keys": ["k"]}, {"max_cost": 1}], "rules[1].max_cost: is no rule"),
        ({"allowed_keys": "k0"}, "rules.allowed_keys: must be a list of names"),
        ({"allowed_keys": ["k0", 7]}, "rules.allowed_keys: must be a list of names"),
        ({"allowed_keys": [""]}, "rules.allowed_keys: must be a list of names"),
        ({"allowed_regions": []}, "rules.allowed_regions: is empty"),
        ({"preferred_models": []}, "rules.preferred_models: is empty"),
        ({"max_cost_per_request": -1}, "rules.max_cost_per_request: must be a number between"),
        ({"max_cost_per_request": float("nan")}, "rules.max_cost_per_request: must be a number between"),
        ({"max_cost_per_request": True}, "rules.max_cost_per_request: must be a number between"),
        ({"max_cost_per_request": "cheap"}, "rules.max_cost_per_request: must be a number between"),
        ({"max_cost_per_request": 1e15}, "rules.max_cost_per_request: must be a number between"),
        ({"min_success_rate": 95}, "rules.min_success_rate: must be a number between 0 and 1"),
        ({"prefer_lowest_cost": "yes"}, "rules.prefer_lowest_cost: must be true or false"),
        ({"action": "explode"}, "rules.action: must be one of"),
        ({"action": "prefer_lowest_cost", "prefer_lowest_cost": False}, "contradicts action"),
        ({"budget_limit": 0}, "rules.budget_limit: must be above 0"),
        ({"budget_limit": 5, "budget_window": "fortnightly"}, "rules.budget_window: must be one of"),
        ({"budget_window": "daily"}, "rules.budget_window: goes with budget_limit"),
        ({"objective": "beauty"}, "rules.objective.primary: must be one of"),
        ({"objective": {"primary": "cost", "weights": {"cost": -1}}}, "rules.objective.weights"),
        ({"denied_keys": ["k"], "time_windows": []}, "rules.time_windows: must be a window"),
        ({"denied_keys": ["k"], "time_windows": {"day": "mon"}}, "rules.time_windows[0]: day is not known"),
        ({"denied_keys": ["k"], "time_windows": [{"days": ["someday"]}]}, "'someday' is no day"),
        ({"denied_keys": ["k"], "time_windows": [{"days": []}]}, "days must be a list"),
        ({"denied_keys": ["k"], "time_windows": [{"start": "25:00"}]}, "start must be a time of day"),
        ({"denied_keys": ["k"], "time_windows": [{"start": "9:00", "end": "09:00"}]}, "are the same"),
        ({"denied_keys": ["k"], "time_windows": [{"timezone": "Mars/Olympus"}]}, "timezone 'Mars/Olympus' is unknown"),
        ({"denied_keys": ["k"], "time_windows": [{"from": "soon"}]}, "from must be an ISO date"),
        ({"denied_keys": ["k"], "time_windows": [{"from": "2027-02-01", "until": "2027-01-01"}]}, "before until"),
    ],
)
def test_what_makes_no_sense_is_refused_with_its_path(rules: Any, complaint: str) -> None:
    errors, _ = checked(rules)
    assert any(complaint in error for error in errors), errors


@pytest.mark.parametrize(
    ("rules", "fields", "doubt"),
    [
        ({"allowed_providers": ["p9"]}, {}, "there is no provider 'p9'"),
        ({"denied_keys": ["k9"]}, {}, "there is no key 'k9'"),
        ({"denied_keys": ["k0"]}, {"scope": "provider", "scope_id": "p9"}, "scope_id: there is no provider 'p9'"),
        ({"allowed_keys": ["k0"], "denied_keys": ["k0"]}, {}, "the denial holds"),
        ({"tier_ranks": ["pro"]}, {}, "ranks count where"),
        ({"objective": "cost"}, {"scope": "key", "scope_id": "k0"}, "prefer nothing"),
        ({"denied_keys": ["k0"], "time_windows": {"until": "2020-01-01"}}, {}, "all of them are over"),
    ],
)
def test_what_is_doubtful_is_a_warning(rules: Any, fields: dict[str, Any], doubt: str) -> None:
    errors, warnings = checked(rules, **fields)
    assert errors == []
    assert any(doubt in warning for warning in warnings), warnings


def test_every_rule_that_is_named_is_taken() -> None:
    rules = {
        "action": "prefer_lowest_cost", "preferred_models": ["m"], "max_cost_per_request": 0.1,
        "min_success_rate": 0.9, "prefer_lowest_cost": True, "prefer_premium_tier": True, "tier_ranks": ["a", "b"],
        "fallback_to_reliable": True, "budget_limit": 5, "budget_window": "monthly", "objective": "cost",
        "time_windows": [{"days": "weekend"}],
    }  # fmt: skip
    names = [f"{verb}_{matter}" for verb in ("allowed", "denied") for matter in ("models", "regions", "tiers")]
    rules |= {name: ["x"] for name in names}
    rules |= {"allowed_providers": ["p0"], "denied_providers": ["p1"], "allowed_keys": ["k0"], "denied_keys": ["k1"]}
    assert rules.keys() == RULES
    errors, _ = checked(rules)
    assert errors == []


async def test_validation_speaks_of_everything_at_once_and_of_conflicts() -> None:
    async with ApiKeyRouter() as router:
        engine = router.policy_engine
        told = await engine.validate_policy({"name": "p", "rules": {"a": 1, "min_success_rate": 2}})
        assert not told.valid
        assert len(told.errors) == 2
        wrongs: list[Any] = [{"rules": {}}, {"name": "p", "scope": "team"}, {"name": "p", "scope": "galaxy"}, 7]
        for wrong in wrongs:
            assert not (await engine.validate_policy(wrong)).valid
        await router.configure_policy({"name": "all", "rules": {"allowed_models": ["gpt-4o"]}})
        team = {"name": "team", "scope": "team", "scope_id": "t", "rules": {"allowed_models": ["gpt-5"]}}
        told = await engine.validate_policy(team)
        assert told.valid
        (warning,) = told.warnings
        assert "'all'" in warning
        assert "'team'" in warning
        assert len(await engine.list_policies()) == 1


async def test_the_applicable_policies_come_in_the_order_in_which_they_prevail() -> None:
    async with ApiKeyRouter() as router:
        for scope, scope_id in (("global", None), ("team", "a"), ("team", "b"), ("default", None), ("client", "c")):
            rules = {"denied_models": ["x"]}
            fields = {"name": f"{scope}-{scope_id}", "scope": scope, "scope_id": scope_id, "rules": rules}
            await router.configure_policy({**fields, "type": "cost" if scope == "team" else "routing"})
        await router.configure_policy({"name": "off", "enabled": False, "rules": rules})
        find = router.policy_engine.get_applicable_policies
        names = [one.id for one in await find(PolicyScope.Team, scope_id="a")]
        assert names == ["team-a", "global-none", "default-none"]
        assert [one.id for one in await find("PerTeam", "cost")] == ["team-a", "team-b"]
        assert [one.id for one in await find("default")] == ["default-none"]
        assert [one.id for one in await find("client", scope_id="other")] == ["global-none", "default-none"]
        for wrong in (("galaxy",), ("team", "magic")):
            with pytest.raises(InvalidRequestError):
                await find(*wrong)


async def test_an_evaluation_says_whether_a_context_is_allowed_and_why_not() -> None:
    async with ApiKeyRouter() as router:
        evaluate = router.policy_engine.evaluate_policy
        rules = {"allowed_regions": ["eu"], "max_cost_per_request": 0.1, "denied_models": ["gpt-4*"]}
        made = Policy(name="p", scope="team", scope_id="t", rules=rules)
        fine = await evaluate(made, {"team": "t", "region": "EU", "cost": 0.05, "model": "gpt-5"})
        assert fine.allowed
        assert fine.policy_ids == ["p"]
        assert fine.constraints == rules
        refused = await evaluate(made, {"team": "t", "region": "us", "cost": "0.2", "model": "gpt-4o"})
        assert not refused.allowed
        for part in ("regions eu", "model gpt-4o", "0.2"):
            assert part in refused.reason
        other = await evaluate(made, {"team": "x", "region": "us"})
        assert (other.allowed, other.policy_ids) == (True, [])
        assert "does not apply" in other.reason
        windowed = made.model_copy(update={"rules": {**rules, "time_windows": {"days": ["sun"]}}})
        monday = datetime(2026, 11, 23, tzinfo=UTC)
        assert (await evaluate(windowed, {"team": "t", "region": "us", "at": monday})).allowed
        least = Policy(name="q", rules={"min_success_rate": 0.9})
        assert not (await evaluate(least, {"success_rate": 0.8})).allowed
        contexts: list[dict[str, Any]] = [{"planet": "x"}, {"at": "now"}, {"team": "t", "cost": "much"}]
        for wrong in contexts:
            with pytest.raises(InvalidRequestError, match="context"):
                await evaluate(made, wrong)


def test_windows_follow_the_clock_of_their_zone() -> None:
    windows = (read_window({"days": "weekdays", "start": "22:00", "end": "06:00", "timezone": "Europe/Berlin"}),)

    def at(day: int, hour: int, minute: int = 0) -> bool:
        return in_force(windows, datetime(2026, 11, day, hour, minute, tzinfo=BERLIN).timestamp())

    assert at(20, 23)  # Friday night
    assert at(21, 5, 59)  # and its morning
    assert not at(21, 6)
    assert not at(21, 23)  # Saturday night
    assert not at(23, 5)  # Monday morning is of no weekday's night
    morning = (read_window({"start": "09:00", "end": "10:00", "timezone": "Europe/Berlin"}),)
    for hour, day in ((8.5, datetime(2027, 3, 27, tzinfo=UTC)), (7.5, datetime(2027, 3, 28, tzinfo=UTC))):
        assert in_force(morning, day.timestamp() + hour * 3600)  # clocks went forward in between
        assert not in_force(morning, day.timestamp() + (hour + 1) * 3600)
    bounded = (read_window({"from": "2027-01-01", "until": "2027-01-02T12:00:00+00:00", "timezone": "Europe/Berlin"}),)
    start = datetime(2027, 1, 1, tzinfo=BERLIN).timestamp()
    assert [in_force(bounded, moment) for moment in (start - 1, start, start + 86_400 * 1.6)] == [False, True, False]
    assert next_change(bounded, start - 86_400 * 30) == start
    assert next_change(bounded, start + 86_400 * 9) == NEVER


@given(
    st.lists(st.sampled_from(["mon", "wed", "sat", "sun"]), min_size=1, unique=True), st.integers(0, 47),
    st.integers(1, 48), st.sampled_from(["UTC", "America/New_York", "Asia/Kathmandu", "Australia/Lord_Howe"]),
    st.floats(1_790_000_000, 1_900_000_000),
)  # fmt: skip
def test_nothing_changes_before_the_next_change(days: list[str], start: int, end: int, zone: str, now: float) -> None:
    if start == end:
        return
    clock = [f"{half // 2:02}:{half % 2 * 30:02}" for half in (start, end)]
    windows = (read_window({"days": days, "start": clock[0], "end": clock[1], "timezone": zone}),)
    change = next_change(windows, now)
    assert now < change <= now + 9 * 86_400
    before = in_force(windows, now)
    for part in (0.1, 0.5, 0.9, 0.999999):
        assert in_force(windows, now + (change - now) * part) is before
