"""What is known of slabs beside the store's answers: which calls were admitted from each, when, and what each did cost.

A slab's calls never take more than it holds; none is admitted from it when its two seconds, its lease or the window
that was charged is over; its settlement is the sum of its calls.
"""

from dataclasses import dataclass, field

from apikeyrouter.domain.models.accounting import Charge, LimitKind, ReserveRequest, SlabUse, State
from tests.faults.books import Books, World
from tests.ledger.support import SECOND

USE_US = 2 * SECOND
SLOTS = 6
"""A sliding window is counted in so many."""


@dataclass(slots=True)
class Seen:
    """One slab, and what its calls have of it."""

    request: ReserveRequest
    held_at_us: int
    windows: tuple[int, ...]
    jumps: int
    calls: int = 0
    bound: int = 0
    """Most that its calls may cost: what those that ended did cost, and the bounds of the others."""
    spent: int = 0
    open: dict[bytes, Charge] = field(default_factory=dict)

    @property
    def charge(self) -> Charge:
        """What it holds."""
        return self.request.candidates[0].charge


@dataclass
class SlabAudit:
    """All slabs of a run. `jumps`: how often the store's clock jumped, or the store forgot: no window is sure then."""

    world: World
    slabs: dict[bytes, Seen] = field(default_factory=dict)
    jumps: int = 0
    calls: int = 0
    """Calls that were admitted from slabs."""
    stranded_max: int = 0
    """Most nano-dollars that slabs which took calls still held for none, at once."""

    def held(self, request: ReserveRequest, now_us: int, true_us: int) -> None:
        """The store admitted a slab."""
        self.slabs[request.rid] = Seen(request, true_us, self._windows(request, now_us), self.jumps)

    def take(self, slab: bytes, rid: bytes, charge: Charge, books: Books, *, now_us: int, true_us: int) -> str:
        """A call was admitted from a slab; what is wrong with that, empty when nothing is."""
        seen = self.slabs[slab]
        self.calls += 1
        seen.calls += 1
        seen.bound += charge.bound_nanousd
        seen.open[rid] = charge
        self._note_stranded(true_us)
        name = f"I1 slab {slab.hex()}"
        if seen.bound > seen.charge.bound_nanousd:
            return f"{name} holds {seen.charge.bound_nanousd}, and its calls may cost {seen.bound}"
        if seen.calls > seen.request.calls:
            return f"{name} is of {seen.request.calls} calls, and has {seen.calls}"
        if true_us - seen.held_at_us > USE_US:
            return f"{name} was used {true_us - seen.held_at_us} us after it was held"
        if self.jumps == seen.jumps and self._windows(seen.request, now_us) != seen.windows:
            return f"{name} was used in another window than it was charged to"
        found = books.held_by.get(slab)
        if self.jumps == seen.jumps and (found is None or found.state is not State.OPEN):
            return f"{name} was used when its lease was over"
        return ""

    def ended(self, slab: bytes, rid: bytes, cost_nanousd: int | None) -> None:
        """A call of a slab ended; None: it was released unsent, and the slab has all of it again."""
        seen = self.slabs[slab]
        seen.bound -= seen.open.pop(rid).bound_nanousd
        if cost_nanousd is None:
            seen.calls -= 1
        else:
            seen.spent += cost_nanousd
            seen.bound += cost_nanousd

    def wrong_end(self, slab: bytes, cost_nanousd: int, use: SlabUse) -> str:
        """What is wrong with a slab's settlement; empty when nothing is."""
        seen = self.slabs[slab]
        if seen.open:
            return f"I6 slab {slab.hex()} was settled before {len(seen.open)} of its calls ended"
        if (cost_nanousd, use.calls) != (seen.spent, seen.calls):
            told = f"{use.calls} calls for {cost_nanousd}"
            return f"I6 slab {slab.hex()} was settled as {told}, and had {seen.calls} for {seen.spent}"
        return ""

    def _note_stranded(self, true_us: int) -> None:
        if self.calls % 64 == 0:
            lately = (seen for seen in self.slabs.values() if true_us - seen.held_at_us <= USE_US)
            self.stranded_max = max(self.stranded_max, sum(s.charge.bound_nanousd - s.bound for s in lately))

    def _windows(self, request: ReserveRequest, now_us: int) -> tuple[int, ...]:
        """Numbers of the windows, slots and periods that now is in."""
        candidate = request.candidates[0]
        limits = [limit for lane in candidate.lanes for limit in self.world.lanes[lane].limits]
        fixed = [now_us // limit.period_us for limit in limits if limit.kind is LimitKind.FIXED]
        slots = [now_us // -(-limit.period_us // SLOTS) for limit in limits if limit.kind is LimitKind.SLIDING]
        periods = [self.world.period_start(scope, now_us) for scope in (*request.scopes, *candidate.scopes)]
        return (*fixed, *slots, *periods)
