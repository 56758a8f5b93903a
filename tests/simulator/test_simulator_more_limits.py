"""Who is admitted by the other providers: hand-written arrivals and verdicts, at the boundary ±1."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pytest

from apikeyrouter.simulator.calls import Call, Dialect
from apikeyrouter.simulator.compatible_dialects import AzureDialect, DeepSeekDialect, GroqDialect, MistralDialect
from apikeyrouter.simulator.config import OrganisationConfig
from apikeyrouter.simulator.gemini_dialect import GeminiDialect
from apikeyrouter.simulator.limits import NEVER, InFlight
from apikeyrouter.simulator.organisations import Admission, Charge, Denial, Organisation
from apikeyrouter.simulator.prices import Usage
from apikeyrouter.simulator.tokens import read_markers

SECOND = 1_000_000_000
HOUR = 3_600 * SECOND
MIDNIGHT = 1_795_219_200 * SECOND  # 2026-11-21T00:00:00Z
PACIFIC = int(datetime(2026, 11, 1, tzinfo=ZoneInfo("America/Los_Angeles")).timestamp()) * SECOND  # a day of 25 hours

# Each row: (ns after the origin, model, tokens, input tokens, the limit that refuses and its wait; None: admitted).
Row = tuple[int, str, int, int, tuple[str, int] | None]

GEMINI_RPM: list[Row] = [
    (30 * SECOND, "m", 0, 1, None),
    (30 * SECOND, "m", 0, 1, None),
    (30 * SECOND, "m", 0, 1, ("rpm", 30 * SECOND)),  # a fixed minute, whole at second 00
    (60 * SECOND - 1, "m", 0, 1, ("rpm", 1)),
    (60 * SECOND, "m", 0, 1, None),
]
GEMINI_RPD: list[Row] = [
    (-1, "m", 0, 1, None),  # the last ns before midnight at the Pacific
    (-1, "m", 0, 1, ("rpd", 1)),
    (0, "m", 0, 1, None),
    (24 * HOUR, "m", 0, 1, ("rpd", HOUR)),  # 24 hours later it is 23:00, after the clocks went back
    (25 * HOUR - 1, "m", 0, 1, ("rpd", 1)),
    (25 * HOUR, "m", 0, 1, None),
]
GEMINI_TPM: list[Row] = [
    (0, "m", 0, 101, ("tpm", NEVER)),
    (0, "m", 0, 100, None),  # input alone counts, whatever the cap
    (0, "m", 0, 1, ("tpm", 60 * SECOND)),
    (60 * SECOND, "m", 0, 100, None),
]
AZURE_SLICES: list[Row] = [
    *[(0, "gpt-4o", 0, 0, None) for _ in range(10)],  # 60 a minute: ten in ten seconds
    (0, "gpt-4o", 0, 0, ("rpm", 10 * SECOND)),
    (10 * SECOND - 1, "gpt-4o", 0, 0, ("rpm", 1)),
    *[(10 * SECOND, "gpt-4o", 0, 0, None) for _ in range(10)],
    (10 * SECOND, "gpt-4o", 0, 0, ("rpm", 10 * SECOND)),
    (60 * SECOND, "gpt-4o", 0, 0, None),
]
AZURE_SECOND_SLICES: list[Row] = [
    (0, "gpt-4o", 0, 0, None),
    (0, "gpt-4o", 0, 0, ("rpm", SECOND)),
    (SECOND - 1, "gpt-4o", 0, 0, ("rpm", 1)),
    (SECOND, "gpt-4o", 0, 0, None),
]
GROQ: list[Row] = [
    (0, "m", 6_001, 0, ("tpm", NEVER)),
    (0, "m", 6_000, 0, None),
    (0, "m", 1, 0, ("tpm", 10_000_000)),
    (10_000_000 - 1, "m", 1, 0, ("tpm", 1)),
    (10_000_000, "m", 1, 0, None),  # two of the day's three
    (60 * SECOND, "m", 1, 0, None),
    (60 * SECOND, "m", 1, 0, ("rpd", 28_800 * SECOND - 60 * SECOND)),  # a third of a day for each, continuously
]
MISTRAL: list[Row] = [
    (0, "m", 0, 0, None),  # one a second
    (0, "m", 0, 0, ("rpm", SECOND)),
    (SECOND - 1, "m", 0, 0, ("rpm", 1)),
    (SECOND, "m", 0, 0, None),
]


def organisation(dialect: str, *, born_ns: int, **config: Any) -> Organisation:
    """An organisation with two keys, untouched."""
    plain = {"id": "org", "dialect": dialect, "keys": ["key-1", "key-2"], **config}
    return Organisation(msgspec.convert(plain, OrganisationConfig), prices={}, seed=1, now_ns=born_ns, total=InFlight())


@pytest.mark.parametrize(
    ("dialect", "limits", "origin_ns", "rows"),
    [
        ("gemini", [{"rpm": 2}], MIDNIGHT, GEMINI_RPM),
        ("gemini", [{"rpd": 1}], PACIFIC, GEMINI_RPD),
        ("gemini", [{"tpm": 100}], MIDNIGHT, GEMINI_TPM),
        ("azure", [{"rpm": 60}], MIDNIGHT, AZURE_SLICES),
        ("azure", [{"rpm": 60, "slice_seconds": 1}], MIDNIGHT, AZURE_SECOND_SLICES),
        ("groq", [{"tpm": 6_000, "rpd": 3}], MIDNIGHT, GROQ),
        ("mistral", [{"rpm": 1, "period_seconds": 1}], MIDNIGHT, MISTRAL),
    ],
    ids=["gemini minute", "gemini day", "gemini tokens", "azure", "azure seconds", "groq", "mistral"],
)
def test_each_arrival_gets_the_verdict_written_in_the_table(
    dialect: str, limits: list[dict[str, Any]], origin_ns: int, rows: list[Row]
) -> None:
    org = organisation(dialect, born_ns=origin_ns - 1, limits=limits)
    for number, (after_ns, model, tokens, input_tokens, expected) in enumerate(rows):
        # Gemini's tokens per minute are input tokens, as its dialect charges them.
        charge = Charge(input_tokens if dialect == "gemini" else tokens, input_tokens)
        verdict = org.admit(org.keys[number % 2], model, charge, origin_ns + after_ns)
        told = (verdict.meter.name, verdict.wait_ns) if isinstance(verdict, Denial) else None
        assert told == expected, f"row {number}"


def test_openrouters_day_ends_at_midnight_utc() -> None:
    org = organisation("openrouter", born_ns=MIDNIGHT - 1, limits=[{"rpd": 1}])
    waits = []
    for after_ns in (-1, -1, 0, 24 * HOUR - 1, 24 * HOUR):
        verdict = org.admit(org.keys[0], "m", Charge(0, 0), MIDNIGHT + after_ns)
        waits.append(verdict.wait_ns if isinstance(verdict, Denial) else None)
    assert waits == [None, 1, None, 1, None]


def test_mistrals_output_counts_as_it_is_produced_and_groqs_does_not() -> None:
    for dialect, left in (("mistral", 60), ("groq", 90)):
        org = organisation(dialect, born_ns=MIDNIGHT, limits=[{"tpm": 100}])
        admitted = org.admit(org.keys[0], "m", Charge(10, 10), MIDNIGHT)
        assert isinstance(admitted, Admission)
        admitted.produce(30, MIDNIGHT)
        assert org.meters[0].limit.remaining(MIDNIGHT) == left


def test_a_refusal_costs_nothing_where_the_provider_does_not_say_so() -> None:
    for dialect, admitted in (("openai", False), ("groq", True), ("mistral", True)):
        org = organisation(dialect, born_ns=MIDNIGHT, limits=[{"rpm": 60, "burst": 1}])
        org.admit(org.keys[0], "m", Charge(0, 0), MIDNIGHT)
        org.charge_refused(org.keys[0], "m", MIDNIGHT + SECOND - 1)
        verdict = org.admit(org.keys[0], "m", Charge(0, 0), MIDNIGHT + SECOND)
        assert isinstance(verdict, Admission) is admitted


@pytest.mark.parametrize(
    ("dialect", "tokens"),
    [(GeminiDialect(), 100), (AzureDialect(), 600), (GroqDialect(), 536), (MistralDialect(), 100),
     (DeepSeekDialect(), 600)],
)  # fmt: skip
def test_what_is_charged_at_arrival(dialect: Dialect, tokens: int) -> None:
    made = Call("chat", "m", 100, read_markers("hello"), cap=500)
    made.plan(24)
    made.usage = Usage(100, made.output_tokens, 64)
    assert dialect.charge_tokens(made, organisation(dialect.name, born_ns=MIDNIGHT))[0] == tokens
