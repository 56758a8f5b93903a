"""Which seeds were run at which commit, and what came of them: a file that grows, and what it comes to."""

import json
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.faults.report import Report

SUMS = (
    "reservations",
    "from_slabs",
    "denials",
    "scripts",
    "settlements",
    "over_limit",
    "drift",
    "stuck",
    "lost",
    "leaked",
)
MOST = ("over_budget", "over_bound")
"""Nano-dollars: beyond a hard budget where no write was lost, and beyond the computed bound where writes were."""


def note(path: Path, seeds: range, report: Report) -> None:
    """Add a run to the file; seeds that follow those of the last one, at the same commit, are added to it."""
    records = _read(path)
    told: dict[str, Any] = {"commit": _commit(), "from": seeds.start, "to": seeds.stop - 1}
    told |= {name: report.sums[name] for name in SUMS} | {name: max(0, report.most[name]) for name in MOST}
    told["broken"] = [outcome.plan.seed for outcome in report.failures]
    last = records[-1] if records else {}
    if (last.get("commit"), last.get("to", 0) + 1) == (told["commit"], seeds.start):
        told["from"] = last["from"]
        for name in (*SUMS, "broken"):
            told[name] = last[name] + told[name]
        for name in MOST:
            told[name] = max(last[name], told[name])
        records.pop()
    path.write_text(json.dumps([*records, told], indent=1) + "\n")


def told_records(path: Path) -> Iterable[str]:
    """A line for each run, and what they come to."""
    records = _read(path)
    for record in records:
        broken = f"broken by {record['broken']}" if record["broken"] else "no invariant broken"
        yield (
            f"{record['commit']}  seeds {record['from']} to {record['to']}: {record['reservations']:,} reservations,"
            f" {record['from_slabs']:,} of them from slabs; {broken}"
        )
    sums = {name: sum(record[name] for record in records) for name in SUMS}
    yield f"in all {sums['reservations']:,} reservations, {sums['from_slabs']:,} of them from slabs"
    yield ", ".join(f"{name} {sums[name]}" for name in ("over_limit", "drift", "stuck", "lost", "leaked"))
    most = {name: max((record[name] for record in records), default=0) for name in MOST}
    yield f"nano-dollars over a hard budget {most['over_budget']}, beyond the bound of lost writes {most['over_bound']}"


def _read(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text()) if path.exists() else []


def _commit() -> str:
    asked = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short=7", "HEAD"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"
