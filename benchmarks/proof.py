"""Proof that the measured work was done: books, metrics, decisions and access lines all equal the requests."""

import asyncio
import time
import urllib.request
from collections.abc import Sequence

from apikeyrouter.domain.models.accounting import LaneState, ScopeState
from apikeyrouter.infrastructure.ledger.ledger import ScriptLedger
from apikeyrouter.infrastructure.ledger.redis_engine import RedisEngine
from benchmarks.payload import COST_NANOUSD
from benchmarks.workers import BUDGETS, GROUP_LANE, Worker

__all__ = ["ProofError", "prove"]

WAIT_SECONDS_MAX = 10.0
LOOK_SECONDS = 0.1
COMPLAINTS_SHOWN_MAX = 2_000


class ProofError(Exception):
    """The counts do not agree, so there is no figure. The text says which."""


def prove(worker: Worker, redis_url: str, *, requests: int, errors: Sequence[str], since_us: int) -> str:
    """One line that says what was proven. `since_us`: when the worker started, in the server's time.

    Errors: ProofError with everything that differs, after waiting for what is written late.
    """
    deadline = time.monotonic() + WAIT_SECONDS_MAX
    while True:
        wrong = [*errors, *_differences(worker, redis_url, requests, since_us)]
        if not wrong:
            return (
                f"{requests:,} requests = settlements, decisions, metrics, access lines; "
                f"{requests * COST_NANOUSD:,} nano-dollars settled in each of {len(BUDGETS)} budgets; "
                "nothing held; no error"
            )
        if errors or time.monotonic() > deadline:
            raise ProofError("; ".join(wrong) + _complaints(worker))
        time.sleep(LOOK_SECONDS)


def _differences(worker: Worker, redis_url: str, requests: int, since_us: int) -> list[str]:
    scopes, lanes = asyncio.run(_books(redis_url, worker.namespace))
    wrong = [told for scope in scopes for told in _of_scope(scope, requests, since_us)]
    if len(scopes) != len(BUDGETS):
        wrong.append(f"{len(scopes)} budgets found instead of {len(BUDGETS)}")
    held = sum(lane.in_flight for lane in lanes)
    counted = {f"requests of lane {lane.id}": lane.requests_total for lane in lanes}
    counted |= _metrics(worker.port)
    assert worker.access_log is not None
    counted["access lines in the file"] = worker.access_log.read_bytes().count(b"\n")
    wrong += [f"{name}: {count}, not {requests}" for name, count in counted.items() if count != requests]
    return [*wrong, f"{held} in flight"] if held else wrong


def _of_scope(scope: ScopeState, requests: int, since_us: int) -> list[str]:
    """A budget whose period began during the run says nothing about the run; the total one always does."""
    expected = requests * COST_NANOUSD
    wrong = []
    if scope.starts_at_us <= since_us and scope.settled != expected:
        wrong.append(f"budget {scope.id}: {scope.settled} settled, not {expected}")
    if scope.held or scope.suspense or scope.late or scope.unpriced_requests:
        wrong.append(f"budget {scope.id}: {scope.held} held, {scope.suspense} in suspense, {scope.late} late")
    return wrong


async def _books(redis_url: str, namespace: str) -> tuple[list[ScopeState], list[LaneState]]:
    ledger = ScriptLedger(RedisEngine(redis_url, namespace=namespace))
    await ledger.open()
    try:
        return await ledger.scopes(BUDGETS), await ledger.lanes([GROUP_LANE])
    finally:
        await ledger.close()


def _metrics(port: int) -> dict[str, int]:
    """What `/metrics` says of the four counters that must equal the requests."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    names = {
        "apikeyrouter_requests_total": 'outcome="ok"',
        "apikeyrouter_attempts_total": "",
        "apikeyrouter_settlements_total": "",
        "apikeyrouter_access_lines_total": "",
    }
    found = dict.fromkeys(names, 0)
    for line in lines:
        name = line.partition("{")[0].partition(" ")[0]
        if name in names and names[name] in line:
            found[name] += int(float(line.rpartition(" ")[2]))
    return {f"metric {name}": count for name, count in found.items()}


def _complaints(worker: Worker) -> str:
    text = worker.complaints.read_text(errors="replace") if worker.complaints is not None else ""
    return f"\nthe worker said:\n{text[-COMPLAINTS_SHOWN_MAX:]}" if text else ""
