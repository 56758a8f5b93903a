"""The demo's figures: what the simulated providers say, what the ledger says, and whether they agree."""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from apikeyrouter.commands.demo.plan import BUDGET_SCOPE, CONTROL_ORGANISATION, LEASE_MS
from apikeyrouter.domain.models.accounting import LaneState, ScopeState
from apikeyrouter.domain.models.system_error import ConfigurationError
from apikeyrouter.infrastructure.ledger.ledger import ScriptLedger

__all__ = ["UTILISATION_GOAL", "Figures", "Offered", "close_figures", "read_books", "wait_for_expired_leases"]

UTILISATION_GOAL = 0.97
LEASE_SECONDS_MAX = LEASE_MS / 1_000 + 10.0
NANOUSD_PER_USD = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Offered:
    """The providers' report at the moment when the load was over, and the sums over the router's organisations."""

    admitted: int
    capacity: int

    @classmethod
    def of(cls, report: Mapping[str, Any]) -> "Offered":
        """From the simulator's report."""
        ours = _ours(report).values()
        return cls(admitted=sum(one["admitted"] for one in ours), capacity=sum(one["request_capacity"] for one in ours))


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """All of it. Money in nano-dollars; `suspense` is what a killed worker left unsettled, as estimates."""

    seconds: float
    workers: int
    offered: int
    admitted: int
    answered: int
    denied: int
    failed: int
    lost: int
    failed_over: int
    over_limit: int
    capacity: int
    utilisation: float
    killed_worker: int | None
    settled_nanousd: int
    held_nanousd: int
    suspense_nanousd: int
    billed_nanousd: int
    books_agree: bool
    overhead_ms_p50: float | None
    overhead_ms_p99: float | None
    control_sent: int
    control_admitted: int
    control_rejected: int
    organisations: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """1 when a limit was exceeded or the books differ."""
        return int(self.over_limit > 0 or not self.books_agree)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


def close_figures(
    *,
    seconds: float,
    workers: int,
    killed: int | None,
    clients: Mapping[str, Any],
    control: Mapping[str, Any],
    offered: Offered,
    report: Mapping[str, Any],
    budget: ScopeState,
) -> Figures:
    """Put it together. `report` is the simulator's last, `budget` the scope that everything was booked in."""
    ours = _ours(report)
    controlled = report["organisations"][CONTROL_ORGANISATION]
    billed = sum(one["cost_nanousd"] for one in ours.values())
    return Figures(
        seconds=seconds,
        workers=workers,
        offered=clients["sent"],
        admitted=sum(one["admitted"] for one in ours.values()),
        answered=clients["answered"],
        denied=clients["denied"],
        failed=clients["failed"],
        lost=clients["lost"],
        failed_over=clients["failed_over"],
        over_limit=sum(one["over_limit"] for one in ours.values()),
        capacity=offered.capacity,
        utilisation=round(offered.admitted / offered.capacity, 4) if offered.capacity else 0.0,
        killed_worker=killed,
        settled_nanousd=budget.settled,
        held_nanousd=budget.held,
        suspense_nanousd=budget.suspense,
        billed_nanousd=billed,
        books_agree=_agree(billed, budget),
        overhead_ms_p50=clients["overhead_ms_p50"],
        overhead_ms_p99=clients["overhead_ms_p99"],
        control_sent=control["sent"],
        control_admitted=controlled["admitted"],
        control_rejected=controlled["over_limit"],
        organisations={
            name: {field: one[field] for field in ("admitted", "over_limit", "request_capacity", "cost_nanousd")}
            for name, one in ours.items()
        },
    )


def _agree(billed: int, budget: ScopeState) -> bool:
    """To the nano-dollar; what a killed worker left is billed but not settled, and its bound stands in suspense."""
    return budget.held == 0 and 0 <= billed - budget.settled <= budget.suspense


async def read_books(ledger: ScriptLedger, lane_ids: list[str]) -> tuple[list[LaneState], ScopeState | None]:
    """The lanes and the one budget as they are now; a budget that nothing was booked in yet is None."""
    lanes = await ledger.lanes(lane_ids)
    return lanes, next(iter(await ledger.scopes([BUDGET_SCOPE])), None)


async def wait_for_expired_leases(ledger: ScriptLedger) -> ScopeState:
    """The budget once nothing is held any more: the service has settled, a killed worker's leases have run out.

    Errors: ConfigurationError when nothing was ever booked.
    """
    deadline = time.monotonic() + LEASE_SECONDS_MAX
    while True:
        await ledger.sweep()
        budget = next(iter(await ledger.scopes([BUDGET_SCOPE])), None)
        if budget is None:
            raise ConfigurationError("nothing was booked: the service served no request; its messages say why")
        if budget.held == 0 or time.monotonic() > deadline:
            return budget
        await asyncio.sleep(0.2)


def _ours(report: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: one for name, one in report["organisations"].items() if name != CONTROL_ORGANISATION}
