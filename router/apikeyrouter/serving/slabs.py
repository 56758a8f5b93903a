"""Slabs: under load a worker holds what a second of requests needs, and admits from it in process (docs/slabs.md).

`Slabs` stands before the ledger while some limit says `slabs: auto`. A request of a kind that comes fast, and whose
first candidate it holds a slab for, is admitted at once; any other asks the ledger as ever. None waits for a slab.
"""

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from math import ceil

from apikeyrouter.domain.components.reservation_ids import new_rid
from apikeyrouter.domain.components.slab_sizes import USE_SECONDS, free_calls, is_ready, takes_slabs
from apikeyrouter.domain.models.accounting import (
    Admission,
    Candidate,
    Charge,
    Denial,
    LaneConfig,
    LaneState,
    ReserveRequest,
    ScopeConfig,
    ScopeState,
)
from apikeyrouter.domain.models.system_error import LedgerError, StaleConfigError
from apikeyrouter.infrastructure.ledger.encoding import capacities
from apikeyrouter.infrastructure.ledger.ledger import ScriptLedger
from apikeyrouter.infrastructure.ledger.windows import window_ends_us
from apikeyrouter.serving.bookkeeping import Bookkeeper, OpenHold
from apikeyrouter.serving.presence import Presence
from apikeyrouter.serving.slab import Slab, metered_of

__all__ = ["Slabs"]

RATE_MIN = 40.0
"""Requests of one kind a second, in one worker, from which on it holds slabs."""
HOLD_SECONDS = 1.0
"""A slab is of as many calls as come in that time, and ROOM more of tokens and money."""
ROOM = 1.2
CALLS_MIN, CALLS_MAX = 8, 8192
LOW_WATER = 0.3
"""Where less than this share of a slab is left, the next one is asked for."""
PAUSE_SECONDS = 1.0
"""After a slab was not to be had, or failed, that kind of request asks the ledger for so long."""
STATES_SECONDS = 0.5
KINDS_MAX = 256
DECAY = 0.7
AMOUNTS_MAX = 2**29
"""Tokens that a slab may hold: four times as many can still be settled."""
Kind = tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...], str, str]


@dataclass(slots=True, eq=False)
class Flow:
    """Requests of one kind: same lanes, same budgets, same principal and pool."""

    like: ReserveRequest
    lanes: tuple[str, ...]
    own: tuple[str, ...]
    slab: Slab | None = None
    following: Slab | None = None
    asking: asyncio.Task[None] | None = None
    not_before: float = 0.0
    per_second: float = 0.0
    sums: list[int] = field(default_factory=lambda: [0] * 7)
    """Since the last tick: calls, metered, input and output tokens, expected, calls again, bounds."""
    means: list[float] = field(default_factory=lambda: [1.0] * 7)

    @property
    def scopes(self) -> tuple[str, ...]:
        """All budgets that these requests are in."""
        return (*self.like.scopes, *self.own)

    def wants(self, now: float) -> bool:
        """Whether another slab should be asked for now."""
        return self.per_second >= RATE_MIN and self.asking is None and self.following is None and now >= self.not_before


class Slabs:
    """The slabs of one worker. One event loop owns it. `lane_config`, `scope_config`: what is declared now."""

    def __init__(
        self,
        ledger: ScriptLedger,
        books: Bookkeeper,
        presence: Presence,
        *,
        lane_config: Callable[[str], LaneConfig],
        scope_config: Callable[[str], ScopeConfig | None],
        now_us: Callable[[], int],
    ) -> None:
        self._ledger, self._books, self._presence = ledger, books, presence
        self._lane_config, self._scope_config, self._now_us = lane_config, scope_config, now_us
        self._flows: dict[Kind, Flow] = {}
        self._held: dict[bytes, Slab] = {}
        self._lanes: dict[str, LaneState] = {}
        self._scopes: dict[str, ScopeState] = {}
        self._states_at = self._ticked_at = 0.0
        self._forgotten = ledger.forgotten
        self.admitted = 0
        """Requests that were admitted from slabs."""
        self.taken = 0
        """Slabs that were held."""

    # --- one request ---------------------------------------------------------------------------------------------

    async def reserve(self, request: ReserveRequest) -> Admission | Denial:
        """Hold the first candidate from a slab, or let the ledger decide. Errors: as the ledger's."""
        candidate = request.candidates[0]
        kind = (candidate.lanes, candidate.scopes, request.scopes, request.principal, request.pool)
        flow = self._flows.get(kind)
        if flow is None:
            if len(self._flows) < KINDS_MAX:
                self._flows[kind] = flow = Flow(request, candidate.lanes, candidate.scopes)
            else:
                return await self._ledger.reserve(request)
        flow.like, charge = request, candidate.charge
        _count(flow.sums, charge)
        if flow.slab is not None and self._take(flow, request, charge):
            return self._admission(flow.slab, request.rid)
        return await self._ledger.reserve(request)

    def _take(self, flow: Flow, request: ReserveRequest, charge: Charge) -> bool:
        slab, now = flow.slab, time.perf_counter()
        if charge.expected_nanousd < 0 or charge.bound_nanousd < 0:
            return False
        while slab is not None:
            version = slab.request.config_version
            if request.config_version < version:
                return False
            if not slab.closed and now < slab.until and request.config_version == version:
                if slab.take(request.rid, charge):
                    if slab.calls < slab.request.calls * LOW_WATER and flow.wants(now):
                        self._ask(flow)
                    return True
                if flow.following is None and slab.calls >= slab.request.calls * LOW_WATER:
                    return False  # a large one; smaller ones still fit
            slab = self._next(flow)
        if flow.wants(now):
            self._ask(flow)
        return False

    def _next(self, flow: Flow) -> Slab | None:
        """The slab in use takes no more; the one behind it comes."""
        if flow.slab is not None:
            flow.slab.close()
            flow.slab.end_if_over()
        flow.slab, flow.following = flow.following, None
        return flow.slab

    def _admission(self, slab: Slab, rid: bytes) -> Admission:
        self.admitted += 1
        held = slab.admission
        return Admission(
            stamp=self._ledger.stamp, rid=rid, index=0, deadline_us=held.deadline_us, probe=False,
            soft_exceeded=held.soft_exceeded, losses=(), replayed=False, slab=slab.request.rid,
        )  # fmt: skip

    def joined(self, hold: OpenHold, slab: bytes) -> None:
        """A call that was admitted from that slab is noted: its end is the slab's matter."""
        hold.ended = self._held[slab].ended

    # --- holding -------------------------------------------------------------------------------------------------

    def _ask(self, flow: Flow) -> None:
        flow.asking = asyncio.get_running_loop().create_task(self._hold(flow), name="apikeyrouter.slab")

    async def _hold(self, flow: Flow) -> None:
        """Hold a slab for what comes; where there is none, not again for a while."""
        slab = None
        try:
            slab = await self._held_for(flow)
        except StaleConfigError:
            pass  # requests will come under the configuration that is in force
        except LedgerError:
            self._states_at = 0.0
        finally:
            flow.asking = None
            if slab is None:
                flow.not_before = time.perf_counter() + PAUSE_SECONDS
        if slab is not None:
            if flow.slab is None:
                flow.slab = slab
            else:
                flow.following = slab

    async def _held_for(self, flow: Flow) -> Slab | None:
        lanes = [self._lane_config(id_) for id_ in flow.lanes]
        scopes = [self._scope_config(id_) for id_ in flow.scopes]
        budgets = [scope for scope in scopes if scope is not None]
        limits, now_us = [limit for lane in lanes for limit in lane.limits], self._now_us()
        seconds = min(HOLD_SECONDS, (window_ends_us(limits, budgets, now_us) - now_us) / 1e6)
        calls = min(ceil(flow.per_second * seconds), self._free(flow, lanes, now_us), CALLS_MAX)
        if calls < CALLS_MIN or len(budgets) < len(scopes) or not flow.like.config_version:
            return None
        charge = _charge(flow.means, calls)
        if charge is None:
            return None
        like = flow.like
        request = ReserveRequest(
            rid=new_rid(), candidates=(Candidate(lanes=flow.lanes, scopes=flow.own, charge=charge),),
            scopes=like.scopes, lease_us=like.lease_us, config_version=like.config_version, principal=like.principal,
            weight=like.weight, pool=like.pool, calls=calls,
        )  # fmt: skip
        sent = time.perf_counter()
        answer = await self._ledger.reserve(request)
        if isinstance(answer, Denial):
            self._states_at = 0.0
            return None
        now_us = answer.stamp.now_us
        until = sent + min(USE_SECONDS, (window_ends_us(limits, budgets, now_us) - now_us) / 1e6)
        slab = Slab(self._books, request, answer, until, hard=any(scope.hard for scope in budgets))
        if answer.probe or answer.replayed:  # one call is to probe; or nobody knows in which window it was charged
            slab.close()
            slab.end_if_over()
            return None
        slab.on_end = self._over
        self._held[request.rid] = slab
        self.taken += 1
        return slab

    def _free(self, flow: Flow, lanes: list[LaneConfig], now_us: int) -> int:
        """Of how many calls a slab may be."""
        states: list[LaneState] = []
        if not takes_slabs(lanes):
            return 0
        for lane in lanes:
            state = self._lanes.get(lane.id)
            if state is None or not is_ready(state, capacities(lane), now_us):
                return 0
            states.append(state)
        scopes = [self._scopes[id_] for id_ in flow.scopes if id_ in self._scopes]
        if len(scopes) < len(flow.scopes):
            return 0
        return free_calls(states, scopes, flow.means, holders=self._presence.count)

    def _over(self, slab: Slab) -> None:
        self._held.pop(slab.request.rid, None)
        if slab.worse:
            for flow in self._flows.values():
                if slab in (flow.slab, flow.following):
                    flow.not_before = time.perf_counter() + PAUSE_SECONDS

    # --- four times a second -------------------------------------------------------------------------------------

    async def tick(self, *, wanted: bool) -> None:
        """See how fast requests come, end slabs whose time is over, ask for those that are due. Errors: LedgerError."""
        now = time.perf_counter()
        if not wanted or self._ledger.forgotten != self._forgotten:
            self._forgotten = self._ledger.forgotten
            self.recall()
        self._measure(now)
        for slab in list(self._held.values()):
            if now >= slab.until:
                slab.close()
            slab.end_if_over()
        fast = [flow for flow in self._flows.values() if flow.per_second >= RATE_MIN]
        for flow in self._flows.values():
            while flow.slab is not None and flow.slab.closed:
                self._next(flow)
        if not (wanted and fast):
            self._presence.leave(self)
            return
        await self._look(fast, now)
        for flow in fast:
            if flow.slab is None and flow.wants(now):
                self._ask(flow)

    def _measure(self, now: float) -> None:
        passed, self._ticked_at = now - self._ticked_at, now
        if passed <= 0:
            return
        for kind, flow in list(self._flows.items()):
            count = flow.sums[0]
            rate = count / passed
            flow.per_second = rate if rate > flow.per_second else DECAY * flow.per_second + (1 - DECAY) * rate
            if count:
                flow.means = [total / count for total in flow.sums]
                flow.sums = [0] * 7
            elif flow.per_second < 1 and flow.slab is None and flow.asking is None:
                del self._flows[kind]

    async def _look(self, flows: Iterable[Flow], now: float) -> None:
        """Read what is free, twice a second."""
        if now < self._states_at + STATES_SECONDS:
            return
        await self._presence.be_there(self)
        self._states_at = now
        lanes = dict.fromkeys(id_ for flow in flows for id_ in flow.lanes)
        scopes = dict.fromkeys(id_ for flow in flows for id_ in flow.scopes)
        self._lanes = {state.id: state for state in await self._ledger.lanes(list(lanes))}
        self._scopes = {state.id: state for state in await self._ledger.scopes(list(scopes))} if scopes else {}

    # --- ends ----------------------------------------------------------------------------------------------------

    def recall(self, lanes: Iterable[str] | None = None) -> None:
        """Let no call in from slabs (of these lanes) any more; what is unused goes back when their calls have ended."""
        named = None if lanes is None else set(lanes)
        for flow in self._flows.values():
            if named is None or not named.isdisjoint(flow.lanes):
                flow.not_before = time.perf_counter() + PAUSE_SECONDS
                while flow.slab is not None:
                    self._next(flow)
        for slab in list(self._held.values()):
            slab.end_if_over()

    def begin_anew(self) -> None:
        """What was held is another loop's, or a parent process's."""
        self._flows.clear()
        self._held.clear()

    @property
    def held(self) -> int:
        """Slabs that this worker holds, those included whose last calls have not ended."""
        return len(self._held)

    @property
    def stranded(self) -> tuple[int, int]:
        """Of what it holds no call has, and others cannot: calls, and nano-dollars of the bound."""
        slabs = self._held.values()
        return sum(slab.calls for slab in slabs), sum(slab.bound for slab in slabs)


def _count(sums: list[int], charge: Charge) -> None:
    sums[0] += 1
    sums[1] += metered_of(charge)
    sums[2] += charge.input_tokens
    sums[3] += charge.output_tokens
    sums[4] += charge.expected_nanousd
    sums[5] += 1
    sums[6] += charge.bound_nanousd


def _charge(means: list[float], calls: int) -> Charge | None:
    """What so many calls take; None: more than one settlement can tell, or nobody knows the price."""
    if min(means) < 0:
        return None
    _, metered, told, made, expected, _, bound = (ceil(mean * calls * ROOM) for mean in means)
    if max(metered, told + made) > AMOUNTS_MAX:
        return None
    return Charge(
        input_tokens=told, output_tokens=made, metered_tokens=metered, expected_nanousd=expected, bound_nanousd=bound
    )
