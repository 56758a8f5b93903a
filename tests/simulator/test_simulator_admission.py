"""Who is admitted, per dialect: hand-written arrivals against organisations with several limits and keys."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from apikeyrouter.simulator.anthropic_dialect import AnthropicDialect
from apikeyrouter.simulator.calls import Call, Dialect
from apikeyrouter.simulator.config import OrganisationConfig
from apikeyrouter.simulator.limits import NEVER, InFlight
from apikeyrouter.simulator.openai_dialect import OpenAIDialect
from apikeyrouter.simulator.organisations import Admission, Charge, Denial, Organisation
from apikeyrouter.simulator.prices import Usage
from apikeyrouter.simulator.tokens import read_markers

SECOND = 1_000_000_000
MIDNIGHT = 1_795_219_200 * SECOND
OPENAI: Dialect = OpenAIDialect()
ANTHROPIC: Dialect = AnthropicDialect()


def organisation(**config: Any) -> Organisation:
    """An organisation with two keys, untouched at MIDNIGHT."""
    plain = {"id": "org", "keys": ["key-1", "key-2"], **config}
    return Organisation(
        msgspec.convert(plain, OrganisationConfig), prices={}, seed=1, now_ns=MIDNIGHT, total=InFlight()
    )


def arrive(
    org: Organisation, *, after_ns: int = 0, key: int = 0, model: str = "gpt-4o", tokens: int = 0, input_tokens: int = 0
) -> Admission | Denial:
    """One arrival; refused ones are charged as the provider does."""
    now_ns = MIDNIGHT + after_ns
    verdict = org.admit(org.keys[key], model, Charge(tokens, input_tokens), now_ns)
    if isinstance(verdict, Denial):
        org.charge_refused(org.keys[key], model, now_ns)
    return verdict


def bound_by(verdict: Admission | Denial) -> tuple[str, int] | None:
    """The limit that refused and the wait it names; None if admitted."""
    return (verdict.meter.name, verdict.wait_ns) if isinstance(verdict, Denial) else None


def call(*, input_tokens: int, cap: int | None, cached: int = 0, choices: int = 1, natural: int = 24) -> Call:
    """A planned call."""
    made = Call("chat", "m", input_tokens, read_markers("hello"), cap=cap, choices=choices)
    made.plan(natural)
    made.usage = Usage(input_tokens, made.output_tokens, cached)
    return made


# --- what is charged
@pytest.mark.parametrize(
    ("made", "formula", "tokens"),
    [
        (call(input_tokens=100, cap=500), "input_plus_cap", 600),
        (call(input_tokens=100, cap=500, choices=3), "input_plus_cap", 1_600),
        (call(input_tokens=100, cap=None, natural=24), "input_plus_cap", 124),
        (call(input_tokens=100, cap=500, cached=64), "input_plus_cap", 600),  # cached tokens count too
        (call(input_tokens=100, cap=500), "max", 500),
        (call(input_tokens=900, cap=500), "max", 900),
    ],
)
def test_openai_charges_input_and_cap_at_arrival(made: Call, formula: str, tokens: int) -> None:
    assert OPENAI.charge_tokens(made, organisation(charge_formula=formula)) == (tokens, made.input_tokens)


def test_anthropic_charges_uncached_input_and_nothing_for_the_cap() -> None:
    made = call(input_tokens=100, cap=500, cached=64)
    assert ANTHROPIC.charge_tokens(made, organisation(dialect="anthropic")) == (36, 36)


# --- OpenAI
def test_openai_keys_of_one_organisation_share_its_requests() -> None:
    org = organisation(limits=[{"rpm": 3}])
    assert [bound_by(arrive(org, key=number % 2)) for number in range(3)] == [None, None, None]
    assert bound_by(arrive(org, key=0)) == ("rpm", 20 * SECOND)
    assert bound_by(arrive(org, key=1)) == ("rpm", 20 * SECOND)


def test_openai_counts_refused_requests_against_the_request_limit() -> None:
    org = organisation(limits=[{"rpm": 60}])
    for _ in range(60):
        assert bound_by(arrive(org)) is None
    assert bound_by(arrive(org, after_ns=SECOND - 1)) == ("rpm", 1)
    assert bound_by(arrive(org, after_ns=SECOND)) == ("rpm", SECOND - 1)  # the refusal had emptied the bucket
    patient = organisation(limits=[{"rpm": 60}], charge_rejected=False)
    for _ in range(60):
        arrive(patient)
    assert bound_by(arrive(patient, after_ns=SECOND - 1)) == ("rpm", 1)
    assert bound_by(arrive(patient, after_ns=SECOND)) is None


def test_openai_tokens_are_admitted_up_to_the_last_and_a_refusal_takes_none() -> None:
    org = organisation(limits=[{"tpm": 6_000, "rpm": 1_000}])
    assert bound_by(arrive(org, tokens=6_001)) == ("tpm", NEVER)
    assert bound_by(arrive(org, tokens=5_999)) is None
    assert bound_by(arrive(org, tokens=2)) == ("tpm", 10_000_000)  # one is left, one more takes 10 ms
    assert bound_by(arrive(org, tokens=1)) is None
    assert bound_by(arrive(org, tokens=1)) == ("tpm", 10_000_000)
    assert bound_by(arrive(org, after_ns=9_999_999, tokens=1)) == ("tpm", 1)
    assert bound_by(arrive(org, after_ns=10_000_000, tokens=1)) is None


def test_the_limit_that_binds_longest_is_named() -> None:
    org = organisation(limits=[{"rpm": 2}, {"rpd": 2, "kind": "calendar"}])
    assert [bound_by(arrive(org)) for _ in range(2)] == [None, None]
    assert bound_by(arrive(org)) == ("rpd", 86_400 * SECOND)


def test_models_of_a_pool_share_a_limit_and_others_do_not() -> None:
    org = organisation(limits=[{"models": ["gpt-4o", "gpt-4o-mini"], "rpm": 2}, {"models": ["gpt-4"], "rpm": 1}])
    assert bound_by(arrive(org, model="gpt-4o")) is None
    assert bound_by(arrive(org, model="gpt-4o-mini")) is None
    assert bound_by(arrive(org, model="gpt-4o")) == ("rpm", 30 * SECOND)
    assert bound_by(arrive(org, model="gpt-4")) is None
    assert bound_by(arrive(org, model="gpt-4")) == ("rpm", 60 * SECOND)
    assert bound_by(arrive(org, model="other")) is None


def test_a_key_has_limits_of_its_own_beside_the_organisations() -> None:
    org = organisation(keys=[{"key": "a", "limits": [{"rpm": 1}]}, "b"], limits=[{"rpm": 3}], charge_rejected=False)
    assert bound_by(arrive(org, key=0)) is None
    refused = arrive(org, key=0)
    assert isinstance(refused, Denial)
    assert (refused.meter.owner.scope, refused.meter.owner.id) == ("key", "org/1")
    assert [bound_by(arrive(org, key=1)) for _ in range(3)] == [None, None, ("rpm", 20 * SECOND)]


def test_concurrency_is_returned_when_a_request_leaves_and_only_once() -> None:
    org = organisation(limits=[{"concurrency": 2}])
    first, second = arrive(org), arrive(org, key=1)
    assert bound_by(arrive(org)) == ("concurrency", 0)
    assert isinstance(first, Admission)
    assert isinstance(second, Admission)
    first.leave()
    first.leave()
    assert bound_by(arrive(org)) is None
    assert bound_by(arrive(org)) == ("concurrency", 0)
    assert (org.in_flight.now, org.in_flight.peak) == (2, 2)


def test_a_fixed_minute_begins_at_second_zero() -> None:
    org = organisation(limits=[{"rpm": 1, "kind": "fixed"}])
    assert bound_by(arrive(org, after_ns=59 * SECOND)) is None
    assert bound_by(arrive(org, after_ns=60 * SECOND - 1)) == ("rpm", 1)
    assert bound_by(arrive(org, after_ns=60 * SECOND)) is None


def test_a_calendar_row_counts_the_day_of_its_time_zone() -> None:
    org = organisation(limits=[{"rpd": 1, "kind": "calendar", "timezone": "America/Los_Angeles"}])
    assert bound_by(arrive(org)) is None  # 16:00 in California
    assert bound_by(arrive(org, after_ns=8 * 3600 * SECOND - 1)) == ("rpd", 1)
    assert bound_by(arrive(org, after_ns=8 * 3600 * SECOND)) is None


# --- Anthropic
def test_anthropic_output_is_counted_as_it_is_produced_and_makes_debt() -> None:
    org = organisation(dialect="anthropic", limits=[{"output_tpm": 600}])
    first = arrive(org)
    assert isinstance(first, Admission)
    first.produce(599, MIDNIGHT)
    second = arrive(org)  # one token is left: admitted, whatever it may produce
    assert isinstance(second, Admission)
    second.produce(11, MIDNIGHT)
    assert bound_by(arrive(org)) == ("output_tpm", 1_100_000_000)  # ten of debt and one token
    assert bound_by(arrive(org, after_ns=1_099_999_999)) == ("output_tpm", 1)
    assert bound_by(arrive(org, after_ns=1_100_000_000)) is None


def test_anthropic_refusals_cost_nothing() -> None:
    org = organisation(dialect="anthropic", limits=[{"rpm": 60, "input_tpm": 600}])
    assert bound_by(arrive(org, input_tokens=600)) is None
    for _ in range(100):
        assert bound_by(arrive(org, input_tokens=1)) == ("input_tpm", 100_000_000)
    assert bound_by(arrive(org, after_ns=99_999_999, input_tokens=1)) == ("input_tpm", 1)
    assert bound_by(arrive(org, after_ns=100_000_000, input_tokens=1)) is None


def test_anthropic_input_beyond_the_limit_never_fits() -> None:
    org = organisation(dialect="anthropic", limits=[{"input_tpm": 600}])
    assert bound_by(arrive(org, input_tokens=601)) == ("input_tpm", NEVER)


# --- spend
def test_spend_is_admitted_while_a_nano_dollar_is_left() -> None:
    org = organisation(limits=[{"spend_usd": "0.000001", "spend_period_seconds": 600}])
    first = arrive(org)
    assert isinstance(first, Admission)
    first.bill(Usage(1, 1), 999, MIDNIGHT)
    second = arrive(org)
    assert isinstance(second, Admission)
    second.bill(Usage(1, 1), 1, MIDNIGHT + SECOND)
    assert bound_by(arrive(org, after_ns=SECOND)) == ("spend_usd", 599 * SECOND)
    assert bound_by(arrive(org, after_ns=600 * SECOND)) is None


@pytest.mark.parametrize(
    ("model", "usage", "nanousd"),
    [
        ("gpt-4o-mini", Usage(1_000_000, 1_000_000), 750_000_000),
        ("gpt-4o-mini", Usage(1, 0), 150),
        ("gpt-4o-mini", Usage(1_000, 10, cached=500), 75_000 + 37_500 + 6_000),
        ("gpt-4", Usage(7, 3), 210_000 + 180_000),
        ("unpriced", Usage(7, 3), 0),
    ],
)
def test_a_bill_is_exact_to_the_nano_dollar(model: str, usage: Usage, nanousd: int) -> None:
    assert organisation().cost_nanousd(model, usage) == nanousd


def test_a_bill_is_rounded_up_once() -> None:
    org = organisation(prices={"cheap": {"input": "0.000001", "output": "0.0005"}})
    assert org.cost_nanousd("cheap", Usage(1, 0)) == 1
    assert org.cost_nanousd("cheap", Usage(1_000, 0)) == 1
    assert org.cost_nanousd("cheap", Usage(1, 2)) == 2
