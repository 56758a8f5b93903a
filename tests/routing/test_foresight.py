"""What a dry run foresees is what the ledger says at that moment."""

import asyncio
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from apikeyrouter.domain.components.foresight import foreseen
from apikeyrouter.domain.models.accounting import (
    UNPRICED,
    Admission,
    Breaker,
    Candidate,
    Charge,
    LaneConfig,
    Limit,
    LimitKind,
    Metric,
    Outcome,
    Period,
    ReserveRequest,
    ScopeConfig,
    Settlement,
    UnpricedRule,
)
from apikeyrouter.infrastructure.ledger.ledger import ScriptLedger
from apikeyrouter.infrastructure.ledger.local_engine import LocalEngine

LEASE_US = 86_400_000_000
"""Longer than any walk: what is swept within a reserve shows in no snapshot before it."""
LIMITS = [
    Limit(name="rpm", metric=Metric.REQUESTS, kind=LimitKind.BUCKET, amount=3),
    Limit(name="tpm", metric=Metric.TOKENS, kind=LimitKind.FIXED, amount=300),
    Limit(name="itpm", metric=Metric.INPUT_TOKENS, kind=LimitKind.SLIDING, amount=200),
    Limit(name="concurrency", metric=Metric.CONCURRENCY, kind=LimitKind.CONCURRENCY, amount=2),
]
CHARGES = [
    Charge(input_tokens=10, output_tokens=5, expected_nanousd=100, bound_nanousd=200),
    Charge(input_tokens=90, output_tokens=60, expected_nanousd=500, bound_nanousd=900),
    Charge(input_tokens=500, output_tokens=5, expected_nanousd=100, bound_nanousd=200),
    Charge(input_tokens=1, output_tokens=1, expected_nanousd=UNPRICED, bound_nanousd=UNPRICED),
]


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_what_is_foreseen_is_what_the_ledger_answers(data: st.DataObject) -> None:
    asyncio.run(_walk(data))


async def _walk(data: st.DataObject) -> None:
    clock = [1_800_000_000_000_000]
    ledger = ScriptLedger(LocalEngine(clock_us=lambda: clock[0]))
    await ledger.open()
    lane = LaneConfig(
        id="l", limits=tuple(data.draw(st.lists(st.sampled_from(LIMITS), unique_by=lambda x: x.name))),
        breaker=Breaker(failures=2),
    )  # fmt: skip
    rule = data.draw(st.sampled_from(UnpricedRule))
    scope = ScopeConfig(
        id="s", limit_nanousd=2000, hard=data.draw(st.booleans()), period=Period.TOTAL, unpriced=rule, flat_nanousd=50
    )
    await ledger.put(lanes=[lane], scopes=[scope])
    held: list[bytes] = []
    for number in range(data.draw(st.integers(1, 12))):
        clock[0] += data.draw(st.sampled_from([0, 1_000, 3_000_000, 70_000_000]))
        candidate = Candidate(lanes=("l",), charge=data.draw(st.sampled_from(CHARGES)))
        lanes = {state.id: state for state in await ledger.lanes(["l"])}
        scopes = {state.id: state for state in await ledger.scopes(["s"])}
        loss = foreseen(0, candidate, ("s",), lanes=lanes, budget={"s": scope}.get, scopes=scopes, now_us=clock[0])
        rid = number.to_bytes(16, "big")
        answer: Any = await ledger.reserve(
            ReserveRequest(rid=rid, candidates=(candidate,), scopes=("s",), lease_us=LEASE_US)
        )
        if isinstance(answer, Admission):
            assert loss is None
            held.append(rid)
        elif answer.binding.reason.name != "PROBE_IN_FLIGHT" and (lanes or answer.binding.where == "s"):
            # a probe in flight shows in no snapshot, nor does a lane in which nothing has happened yet
            assert loss is not None
            assert (loss.where, loss.retry_kind.name == "NEVER") == (
                answer.binding.where, answer.binding.retry_kind.name == "NEVER",
            )  # fmt: skip
        action = data.draw(st.sampled_from(["wait", "settle", "fail", "cool"]))
        if action == "cool":
            await ledger.record("l", blocked_for_us=2_000_000)
        elif held and action != "wait":
            failed = action == "fail"
            await ledger.settle(
                Settlement(
                    rid=held.pop(0), input_tokens=5, output_tokens=5, cost_nanousd=150,
                    outcome=Outcome.FAILURE if failed else Outcome.SUCCESS, failed_lanes=int(failed),
                )
            )  # fmt: skip
