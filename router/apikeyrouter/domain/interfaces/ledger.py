"""The ledger port: atomic accounting, the same over Redis and in process."""

from collections.abc import Iterable, Sequence
from typing import Protocol

from apikeyrouter.domain.models.accounting import (
    Admission,
    Denial,
    LaneConfig,
    LaneState,
    Observation,
    ReserveRequest,
    ScopeConfig,
    ScopeState,
    Settlement,
    Stamp,
    Transition,
)


class Ledger(Protocol):
    """Every method is one atomic transition, or a bounded number of pages of one.

    Errors: `LedgerUnavailableError` when the store cannot be reached within the deadline,
    `StaleConfigError` when a reserve was made under another configuration than the active one,
    `LedgerConfigError` for contradictory or absurd limits, `LedgerProtocolError` for a cell of another schema.
    """

    @property
    def stamp(self) -> Stamp:
        """Where the last answer stood in the cell's history."""
        ...

    @property
    def forgotten(self) -> int:
        """How often an answer proved that the store forgot writes."""
        ...

    def of_booking(self, *, lanes: Iterable[str] = (), scopes: Iterable[str] = ()) -> int:
        """The number of the cell in which something is booked that nobody asked for; it belongs into its id."""
        ...

    async def open(self) -> Stamp:
        """Connect, load the scripts, make the cell if it is new."""
        ...

    async def close(self) -> None:
        """Flush what is queued and let go of the connection."""
        ...

    async def reserve(self, request: ReserveRequest) -> Admission | Denial:
        """Hold one candidate or nothing. One round trip. Repeating the same rid replays the answer."""
        ...

    async def claim(self, request: ReserveRequest, *, stay_us: int) -> Stamp:
        """Note that this was denied and will be asked for again: who asks in vain keeps its place among principals."""
        ...

    async def settle(self, settlement: Settlement) -> Transition:
        """Book what was really used, in the windows that were charged. More than was held is debt."""
        ...

    async def settle_many(self, settlements: Sequence[Settlement]) -> list[Transition]:
        """`settle` for each, in one pipelined round trip."""
        ...

    async def release(self, rid: bytes, *, sent: bool, failed_lanes: int = 0, latency_us: int = 0) -> Transition:
        """Give back what was certainly not billed. `sent` False also gives back request and token counts."""
        ...

    async def renew(self, rids: Sequence[bytes], *, lease_us: int) -> list[bytes]:
        """Extend leases. Returns the rids that are no longer open: their calls must be aborted."""
        ...

    async def cancel(self, rid: bytes) -> Transition:
        """End an ambiguous reserve; leaves a tombstone even for an unknown rid."""
        ...

    async def reassert(self, request: ReserveRequest, *, index: int) -> Transition:
        """Book an open reservation again after the store forgot it. Checks no limit."""
        ...

    async def acknowledge(self, rids: Sequence[bytes]) -> None:
        """Say that settlements were seen, so that their tombstones may go."""
        ...

    async def sweep(self) -> int:
        """Expire due leases and resolve due suspense, a bounded number; returns how many."""
        ...

    async def record(self, lane: str, *, observations: Sequence[Observation] = (), blocked_for_us: int = 0) -> Stamp:
        """Re-sync a lane with what its provider said; cool it for `blocked_for_us`."""
        ...

    async def restart(self, lane: str, *, limits: Sequence[str] = (), cooling: bool = False) -> Stamp:
        """Let these limits of a lane begin anew, and (`cooling`) the lane cool no more: an operator's word."""
        ...

    async def put(self, *, lanes: Sequence[LaneConfig] = (), scopes: Sequence[ScopeConfig] = ()) -> Stamp:
        """Add or change lanes and scopes in the active configuration. Idempotent: no change, no new version."""
        ...

    async def lanes(self, ids: Sequence[str], *, since_seq: int = 0) -> list[LaneState]:
        """Read-only state of those lanes that changed after `since_seq`."""
        ...

    async def scopes(self, ids: Sequence[str], *, since_seq: int = 0) -> list[ScopeState]:
        """Read-only state of those scopes that changed after `since_seq`."""
        ...
