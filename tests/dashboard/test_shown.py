"""What is made of the API's answers, without a browser."""

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from apikeyrouter_dashboard.shown import (
    decisions,
    deployment,
    fleet,
    headroom,
    key_import,
    money,
    pool,
    pools,
    setup,
    situation,
)  # fmt: skip
from apikeyrouter_dashboard.shown.words import count, dollars, percent, span_of, table, told_at, when

NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)


def key(**changes: Any) -> dict[str, Any]:
    """A key that is well."""
    told: dict[str, Any] = {
        "id": "k1", "provider_id": "openai", "quota_group": "org-a", "tier": None, "tags": [], "team": None,
        "models": None, "state": "available", "state_reason": "", "state_until": None, "capacity_state": "abundant",
        "headroom": 0.5, "binding": None, "breaker": "closed", "out_lane": None, "out_until": None, "lanes": [],
        "in_flight": 0, "requests_total": 0, "failures_total": 0, "latency_ms": None, "last_used_at": None,
        "last_error": None,
    }  # fmt: skip
    return {**told, **changes}


@pytest.mark.parametrize(
    ("told", "seconds"),
    [("0 s", 0), ("59 s", 59), ("1 min 30 s", 90), ("3 min", 185), ("1 h 20 min", 4800), ("2 d", 172_800)],
)
def test_a_span_is_told_in_its_largest_units(told: str, seconds: float) -> None:
    assert span_of(seconds) == told


def test_what_is_not_known_is_called_unknown() -> None:
    assert "unknown" in when(None, NOW)
    assert [dollars(None), count(None), percent(None)] == ["unknown"] * 3
    assert [dollars(0), count(0), percent(0)] == ["$0.00", "0", "0 %"]


def test_a_time_has_its_zone_and_its_distance() -> None:
    told = when((NOW + timedelta(minutes=3)).isoformat(), NOW)
    assert "in 3 min" in told
    assert "12:03:00 UTC" in told


def test_text_is_escaped() -> None:
    assert "<b>" not in table(["x"], [("<b>",)])


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, "abundant"), ({"headroom": None}, "unknown"), ({"state": "invalid"}, "invalid"),
        ({"capacity_state": "critical"}, "critical"), ({"breaker": "open", "out_lane": "p:openai"}, "out"),
        ({"state": "recovering"}, "recovering"), ({"state": "disabled", "breaker": "open"}, "disabled"),
    ],
)  # fmt: skip
def test_a_key_is_in_one_condition(changes: dict[str, Any], told: str) -> None:
    assert pool.condition(key(**changes)) == told


def test_every_state_is_more_than_a_colour() -> None:
    for name, (mark, meaning) in pool.CONDITIONS.items():
        assert mark, name
        assert meaning, name


def test_a_key_with_two_tags_is_in_two_groups_and_one_without_in_none() -> None:
    found = pool.groups([key(tags=["day", "night"]), key(id="k2")], "tags")
    assert [(group.name, len(group.keys)) for group in found] == [("day", 1), ("night", 1), ("none", 1)]


def test_a_bad_day_is_told_in_four_lines() -> None:
    keys = [
        *(key(id=f"n{n}", quota_group="north", state="exhausted", latency_ms=100) for n in range(3)),
        key(id="s1", state="invalid", state_reason="401", latency_ms=100),
        *(key(id=f"w{n}", provider_id="anthropic", latency_ms=6000) for n in range(2)),
    ]
    budget = {
        "id": "team:red", "limit_usd": 10.0, "settled_usd": 9.0, "held_usd": 0.5, "suspense_usd": 0.0,
        "enforcement": "hard", "resets_at": None, "forecast": None,
    }  # fmt: skip
    told = [one.what for one in situation.incidents(keys, [budget], NOW)]
    assert told == [
        "Quota group north is exhausted (3 of 3 keys)", "The provider refuses s1", "Provider anthropic is slow",
        "Budget team:red: 95 % of $10.00 gone",
    ]  # fmt: skip
    assert situation.incidents([key()], [], NOW) == []


def test_a_counter_that_went_back_says_nothing() -> None:
    def sample(seconds: int, ok: float) -> fleet.Sample:
        return fleet.Sample(NOW + timedelta(seconds=seconds), {"ok": ok, "no_eligible_keys": 0.0})

    _, series = fleet.rates([sample(0, 10), sample(2, 30), sample(4, 5)])
    assert series["answered"] == [10.0, None]


def test_metrics_are_read() -> None:
    text = 'apikeyrouter_requests_total{route="chat",outcome="ok"} 7\napikeyrouter_workers 2\n# HELP x y\n'
    sample = fleet.sample_of(text, NOW)
    assert (sample.outcomes, sample.gauges) == ({"ok": 7.0}, {"workers": 2.0})


def test_jains_index_is_one_where_all_get_the_same() -> None:
    assert fleet.jain([3, 3, 3]) == pytest.approx(1)
    assert fleet.jain([1, 0, 0, 0]) == pytest.approx(0.25)
    assert fleet.jain([]) is None


def test_the_first_budget_to_block_is_the_one_that_is_used_up_first() -> None:
    def budget(name: str, hours: float | None, **changes: Any) -> dict[str, Any]:
        at = None if hours is None else (NOW + timedelta(hours=hours)).isoformat()
        forecast = {"used_up_at": at, "earliest": at, "latest": None, "burn_per_hour": "1"}
        told = {"id": name, "enforcement": "hard", "remaining_usd": 1.0, "resets_at": None, "forecast": forecast}
        return {**told, **changes}

    told = money.first_to_block([budget("later", 9), budget("sooner", 2), budget("soft", 1, enforcement="soft")], NOW)
    assert "sooner" in told
    assert "refuses requests now" in money.first_to_block([budget("full", None, remaining_usd=0.0)], NOW)


def test_spend_of_many_is_the_largest_and_the_others() -> None:
    usage = [{"team": f"t{n}", "day": "2030-01-01", "cost_usd": float(n)} for n in range(10)]
    series = money.series(usage, "team", ["2030-01-01"], money.cost_of)
    assert len(series) == money.SERIES_MAX + 1
    assert sum(told[0] for told in series.values()) == 45
    assert series["the others"] == [3.0]


def test_advice_follows_from_the_forecast() -> None:
    lane: dict[str, Any] = {"id": "g:a:*", "blocked_until": None, "breaker": "closed", "limits": []}
    limit = {
        "name": "rpd", "counts": "requests", "capacity": 100, "used": 50, "remaining": 50, "learned": False,
        "full_again_at": (NOW + timedelta(hours=10)).isoformat(),
        "forecast": {"probability": 0.9, "expected_at": (NOW + timedelta(hours=2)).isoformat(), "earliest_at": None,
                     "latest_at": None, "per_hour": 25.0},
    }  # fmt: skip
    assert "throttle to 20 %" in headroom.advice(lane, limit, NOW)
    assert headroom.advice(lane, {**limit, "forecast": None}, NOW) == "–"
    assert "wait until it is full again" in headroom.advice(lane, {**limit, "remaining": 0}, NOW)


@pytest.mark.parametrize(
    ("text", "kind", "shift"),
    [
        ("sk-1\nsk-2", "text/csv", -1), ("provider_id,key_material\nopenai,sk-1", "text/csv", 0),
        ('\ufeff [{"key_material": "sk-1"}]', "application/json", 0),
        ('{"key_material": "sk-1"}', "application/x-ndjson", 0),
    ],
)  # fmt: skip
def test_keys_to_import_come_in_four_forms(text: str, kind: str, shift: int) -> None:
    made, body, told = key_import.body_of(text)
    assert (made, told) == (kind, shift)
    assert body.endswith(text)


def test_every_row_of_an_import_has_a_result_and_the_refused_come_first() -> None:
    rows = [
        {"line": 2, "outcome": "created", "id": "key_1", "reason": None},
        {"line": 3, "outcome": "refused", "id": None, "reason": "no provider 'x', <b>, \"y\""},
        {"line": 4, "outcome": "unchanged", "id": "key_2", "reason": None},
    ]
    answer = {"rows": rows, "created": 1, "updated": 0, "unchanged": 1, "refused": 1, "dry_run": False}
    told = key_import.imported(answer, -1)
    assert told.index("✕ refused") < told.index("✓ registered")
    assert re.findall(r'data-label="line">(\d+)', told) == ["2", "1", "3"]
    assert "&lt;b&gt;" in told
    assert "✓ would be registered" in key_import.imported({**answer, "dry_run": True}, 0)
    many = {**answer, "rows": [{**rows[0], "line": n} for n in range(1005)]}
    assert "and 5 more rows" in key_import.imported(many, 0)
    assert len(key_import.rows_as_csv(many, 0).splitlines()) == 1006
    assert key_import.rows_as_csv(answer, -1).splitlines()[2] == '2,refused,,"no provider \'x\', <b>, ""y"""'


@pytest.mark.parametrize(
    ("settled", "state"), [(7.9, "settled"), (8.0, "constrained"), (9.0, "critical"), (10.3, "exhausted")]
)
def test_the_bar_of_a_budget_tells_how_near_its_end_is(settled: float, state: str) -> None:
    budget = {
        "id": "team:red", "scope": "team", "limit_usd": 10.0, "settled_usd": settled, "held_usd": 0.0,
        "suspense_usd": 0.0, "remaining_usd": 10 - settled, "unpriced_requests": 0, "enforcement": "soft",
        "resets_at": None, "forecast": None,
    }  # fmt: skip
    assert f'<i class="is-{state}"' in money.tree([budget], NOW)


def worker(**changes: Any) -> dict[str, Any]:
    """A worker that is well."""
    told: dict[str, Any] = {
        "id": "ab12cd", "host": "one", "pid": 7, "version": "1.0", "state": "normal", "started_at": NOW.isoformat(),
        "heard_at": NOW.isoformat(), "config_version": 3, "decisions_per_second": 5.0, "open_requests": 1, "waiting": 0,
        "waiting_longest_ms": 0, "reserve_p50_us": 400, "reserve_p99_us": 900, "clock_offset_ms": 2,
        "clock_suspected": False, "unsettled": 0, "memory_bytes": 90 << 20, "cpu_share": 0.2,
    }  # fmt: skip
    return {**told, **changes}


def test_workers_that_need_somebody_come_first_and_say_why() -> None:
    found = [
        worker(),
        worker(id="000001", state="lost"),
        worker(id="000002", clock_suspected=True, reserve_p50_us=None),
    ]
    told = deployment.workers(found, NOW)
    assert told.index("000001") < told.index("ab12cd")
    assert all(text in told for text in ("✕ lost", "in doubt", "none asked", "0.4 ms / 0.9 ms", "90 MiB"))


def test_workers_that_began_together_are_one_deployment() -> None:
    later = (NOW + timedelta(minutes=5)).isoformat()
    found = [worker(), worker(id="000001"), worker(id="000002", started_at=later, version="1.1", state="lost")]
    told = [text for _, text in deployment.deployments(found)]
    assert told == ["2 workers began, 1.0", "1 worker began, 1.1", "worker 000002 lost"]


def test_a_problem_is_told_in_full_and_warnings_when_asked_for() -> None:
    found: list[dict[str, Any]] = [
        {"check": "eviction", "verdict": "problem", "found": "allkeys-lru", "remedy": "noeviction"},
        {"check": "persistence", "verdict": "warning", "found": "none", "remedy": "appendonly"},
        {"check": "redis", "verdict": "ok", "found": "Valkey", "remedy": None},
    ]
    told = deployment.banner(found)
    before, _, after = told.partition("<details>")
    assert "allkeys-lru" in before
    assert "appendonly" in after
    assert "Valkey" not in told
    assert deployment.banner(found[2:]) == ""
    assert "Valkey" in deployment.findings(found)


def test_keys_that_fared_alike_at_once_are_one_line() -> None:
    def moved(seconds: int, name: str, before: str | None, after: str) -> dict[str, Any]:
        at = (NOW + timedelta(seconds=seconds)).isoformat()
        return {"timestamp": at, "entity_id": name, "from_state": before, "to_state": after}

    found = [*(moved(0, f"k{n}", None, "available") for n in range(9)), moved(60, "a", "available", "exhausted"),
             moved(61, "b", "available", "exhausted"), moved(300, "a", "available", "exhausted")]  # fmt: skip
    told = [text for _, text in fleet.changes([], found)]
    assert sorted(told) == ["9 keys registered", "a exhausted", "a, b exhausted"]


def test_marks_stand_at_the_next_point_of_the_chart() -> None:
    samples = [fleet.Sample(NOW + timedelta(seconds=3 * n)) for n in range(4)]
    happened = [(NOW + timedelta(seconds=1), "one"), (NOW + timedelta(seconds=2), "two"), (NOW - timedelta(1), "old")]
    assert fleet.marks(happened, samples) == [("12:00:03", "two and 1 more")]


def test_rows_of_limits_are_read_as_they_are_written() -> None:
    rows = setup.read_rows("rpm=50, headroom=0.05\n\nrpd=9, kind=calendar, timezone=UTC")
    assert rows == [{"rpm": 50, "headroom": 0.05}, {"rpd": 9, "kind": "calendar", "timezone": "UTC"}]
    assert setup.read_rows(setup.rows_as_text(rows)) == rows
    for wrong in ("rpm", "rpm=", "=5", "rpm=x", " \n"):
        with pytest.raises(ValueError, match=r"line 1|a row is wanted"):
            setup.read_rows(wrong)


def attempt(**changes: Any) -> dict[str, Any]:
    """An attempt that was answered."""
    told: dict[str, Any] = {
        "key_id": "k1", "provider_id": "openai", "model": "m", "reservation_id": "00", "worker": "ab12cd",
        "failure": "", "status": 200, "probe": False, "reserve_us": 900, "upstream_us": 250_000,
        "expected_input_tokens": 10, "expected_output_tokens": 64, "expected_cost": "0.02", "cost": "0.01",
        "cost_estimated": False,
    }  # fmt: skip
    return {**told, **changes}


def decision(**changes: Any) -> dict[str, Any]:
    """A request that was answered at once."""
    told: dict[str, Any] = {
        "id": "r1", "request_id": "r1", "selected_key_id": "k1", "selected_provider_id": "openai", "model": "m",
        "objective": {"primary": "fairness"}, "explanation": "", "confidence": 1.0, "timestamp": NOW.isoformat(),
        "candidates": [], "policy_ids": [], "snapshot_age_ms": 3, "attempts": 1, "outcome": "ok", "client": "shop",
        "team": None, "stream": False, "tried": [attempt()], "waited_us": 0, "upstream_us": 250_000,
        "first_token_us": None, "overhead_us": 1_200, "total_us": 251_200, "input_tokens": 9, "output_tokens": 12,
        "cost": "0.01", "cost_estimated": False, "text": "in words",
    }  # fmt: skip
    return {**told, **changes}


def test_a_retry_that_was_absorbed_is_no_outage() -> None:
    tried = [attempt(failure="rate_limit_error", status=429, cost="0"), attempt(key_id="k2")]
    told = decisions.explained(decision(attempts=2, tried=tried))
    assert "↷ absorbed: rate limit error" in told
    assert "is-bad" not in told
    failed = decisions.explained(decision(attempts=1, outcome="rate_limit_error", tried=tried[:1], cost=None))
    assert "✕ rate limit error" in failed


def test_an_explained_request_tells_its_time_and_the_estimate_against_what_was_used() -> None:
    told = decisions.explained(decision())
    assert "251 ms in all: reserve 0.9 ms, at the provider 250 ms, here 1.2 ms" in told
    assert "admitted for 10 + 64 tokens, $0.02; used 9 + 12 tokens, $0.01" in told
    assert "what was used is not known" in decisions.explained(decision(input_tokens=None))
    assert "nothing was sent" in decisions.explained(decision(tried=[], total_us=0))


def test_what_a_provider_said_is_cut_to_its_first_sentence_on_a_tile() -> None:
    told = key(state="exhausted", state_reason="You exceeded your quota. Read the docs: https://example.com.")
    assert pool.why(told) == "You exceeded your quota"
    assert pool.why(told, whole=True).endswith("example.com.")


def last_error(**changes: Any) -> dict[str, Any]:
    """A failure of three minutes ago."""
    told = {"category": "rate_limit_error", "meaning": "cool", "status": 429, "model": "m", "request_id": "r&1"}
    return {**told, "at": (NOW - timedelta(minutes=3)).isoformat(), **changes}


def test_a_tile_tells_its_limit_its_last_error_who_took_it_out_and_when_it_is_back() -> None:
    until = NOW + timedelta(minutes=5)
    out = key(state="throttled", state_reason="too fast", state_until=until.isoformat(), last_error=last_error())
    moved = {"entity_id": "k1", "from_state": "available", "to_state": "throttled", "actor": "ann"}
    known: dict[str, Any] = {}
    pool.with_actors([out], [moved], known)
    card = pool.tiles([out], "card", NOW)[0]
    assert "back <time" in card
    assert "by ann" in card
    assert "last error rate limit 429, 3 min ago" in card
    dot = pool.tiles([out], "dot", NOW)[0]
    for told in ("too fast", "by ann", told_at(until), "no limit is known", "last error rate limit 429"):
        assert told in dot
    assert pool.tiles([out], "dot", NOW + timedelta(seconds=9))[0] == dot  # else every look would send 2,000 anew
    facts = pool.key_facts(out, [], NOW)
    assert "rate limit error, cool, status 429 of m" in facts
    assert "/decisions?explain=r%261" in facts
    again = key(state="throttled", state_reason="too fast", state_until=until.isoformat())
    pool.with_actors([again], [], known)
    assert pool.who(again) == "by ann"  # what was found once is known while nothing has changed
    other = key(state="disabled", state_reason="")
    pool.with_actors([other], [], known)
    assert pool.who(other) == ""


def lane(id_: str, **limit: Any) -> dict[str, Any]:
    """A lane with one limit, half used."""
    told: dict[str, Any] = {
        "name": "rpd", "counts": "requests", "capacity": 100, "used": 50, "remaining": 50, "learned": False,
        "full_again_at": (NOW + timedelta(hours=10)).isoformat(), "forecast": None,
    }  # fmt: skip
    return {"id": id_, "kind": "quota_group", "blocked_until": None, "breaker": "closed", "limits": [{**told, **limit}]}


def in_lane(id_: str, group: str, **changes: Any) -> dict[str, Any]:
    """A key of a quota group, as the pool tells it."""
    return key(id=id_, quota_group=group, lanes=[f"k:{id_}", f"g:{group}:*", "p:openai"], **changes)


def test_a_pool_is_out_when_none_of_its_keys_serves_and_says_how_long_to_wait() -> None:
    soon, later = ((NOW + timedelta(minutes=n)).isoformat() for n in (5, 50))
    keys = [
        in_lane("a1", "a", state="exhausted", state_until=later), in_lane("b1", "b"),
        in_lane("a2", "a", state="throttled", state_until=soon),
    ]  # fmt: skip
    lanes = [lane("g:a:*"), lane("g:b:*")]
    first, second = pools.pools(keys, lanes, "quota_group")
    assert (first.name, first.serving, first.back_at) == ("a", 0, datetime.fromisoformat(soon))
    assert "wait until 12:05 UTC" in pools.advice(first, NOW)
    assert "✕ out: 0 of 2" in pools.pools_table([first], NOW)
    assert pools.advice(second, NOW) == "–"
    (whole,) = pools.pools(keys, lanes, "provider_id")
    assert whole.serving == 1
    assert pools.share_left(whole.limits["rpd"]) == 0.25  # nothing is left of a lane whose keys are all out
    assert "the others take what 2 keys cannot" in pools.advice(whole, NOW)
    assert pools.lanes_out(keys) == {"g:a:*": datetime.fromisoformat(soon)}
    assert "none of its keys serves: wait" in headroom.lanes(lanes, NOW, out=pools.lanes_out(keys))


def test_waiting_helps_no_pool_whose_keys_are_refused_or_switched_off() -> None:
    keys = [in_lane("a1", "a", state="invalid"), in_lane("a2", "a", state="disabled")]
    (found,) = pools.pools(keys, [lane("g:a:*")], "quota_group")
    assert "waiting does not help" in pools.advice(found, NOW)
    assert "rotate or enable them" in headroom.advice(lane("g:a:*"), lane("")["limits"][0], NOW, pools.lanes_out(keys))


def test_a_pool_that_runs_out_before_it_refills_is_throttled() -> None:
    forecast = {"probability": 0.9, "expected_at": (NOW + timedelta(hours=2)).isoformat(), "earliest_at": None,
                "latest_at": None, "per_hour": 25.0}  # fmt: skip
    keys = [in_lane("a1", "a"), in_lane("b1", "b")]
    (found,) = pools.pools(keys, [lane("g:a:*", forecast=forecast), lane("g:b:*", forecast=forecast)], "provider_id")
    assert "throttle to 20 %" in pools.advice(found, NOW)
    assert "50 an hour, 600 % of the even pace" in pools.pools_table([found], NOW)
    empty = [lane("g:a:*", remaining=0), lane("g:b:*", remaining=0)]
    assert "when the first lane is full again" in pools.advice(pools.pools(keys, empty, "provider_id")[0], NOW)
    one_lasts = [lane("g:a:*", forecast=forecast), lane("g:b:*", forecast={**forecast, "expected_at": None})]
    assert "not before it refills" in pools.pools_table(pools.pools(keys, one_lasts, "provider_id"), NOW)


def test_keys_without_known_limits_make_a_pool_of_unknown_headroom() -> None:
    (found,) = pools.pools([in_lane("a1", "a", models=["m"])], [], "models")
    assert found.binding is None
    told = pools.pools_table([found], NOW)
    assert told.count("unknown") >= 4
    assert "0 %" not in told


def test_estimates_are_held_against_what_was_used() -> None:
    expected = {"input_tokens": 10, "output_tokens": 90, "cost": "0.20"}
    told = {"model": "m", "outcome": "ok", "input_tokens": 10, "output_tokens": 40, "cost": "0.10",
            "cost_estimated": False, "expected": expected}  # fmt: skip
    guessed, refused = {**told, "cost_estimated": True}, {**told, "outcome": "denied", "expected": None}
    shown = money.against_actual([told, told, guessed, refused])
    assert re.findall(r">([^<>]+)</td>", shown) == ["m", "2", "200", "100", "50 %", "$0.40", "$0.20", "50 %"]
    assert "no request has told" in money.against_actual([refused])


def test_usage_by_day_is_drawn_with_what_happened_on_it() -> None:
    days = ["2030-01-01", "2030-01-02"]
    usage = [{"day": days[1], "served": 5, "denied": 1, "failed": 0}]
    assert fleet.by_day(usage, days) == {"answered": [0, 5], "denied here": [0, 1], "failed": [0, 0]}
    at = datetime(2030, 1, 2, 3, tzinfo=UTC)
    marks = fleet.marks_by_day([(at, "one"), (at + timedelta(hours=1), "two"), (at - timedelta(days=9), "old")], days)
    assert marks == [(days[1], "two and 1 more")]


def test_the_audit_log_tells_who_changed_what_from_what_to_what() -> None:
    entry = {"at": NOW.isoformat(), "actor": "<b>ann</b>", "role": "operate", "action": "budget.updated",
             "id": "team:red", "details": {"changed": {"limit_usd": [7.5, 9], "name": [None, "x"]}}}  # fmt: skip
    told = fleet.audit_log([entry, {**entry, "details": {"works": True}}], NOW)
    assert "limit_usd: 7.5 → 9; name: none → x" in told
    assert "&lt;b&gt;ann&lt;/b&gt; (operate)" in told
    assert "works: True" in told
    assert "nothing was changed yet" in fleet.audit_log([], NOW)
