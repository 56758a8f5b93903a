"""Admission: which options a request may take, what each may cost, and one atomic reserve for the first that fits."""

import time
from collections.abc import Awaitable, Callable, Collection
from itertools import islice
from typing import Protocol

import msgspec

from apikeyrouter.domain.components.catalogue import Catalogue
from apikeyrouter.domain.components.objectives import Plan
from apikeyrouter.domain.components.pool import Option, Pool, Ranked, Snapshot
from apikeyrouter.domain.components.quota_ends import QuotaEnds
from apikeyrouter.domain.components.reservation_ids import new_rid
from apikeyrouter.domain.components.scoring import TYPICAL_TOKENS
from apikeyrouter.domain.components.stickiness import Sessions
from apikeyrouter.domain.components.token_estimator import TokenEstimate, TokenEstimator
from apikeyrouter.domain.interfaces.wire import ParsedRequest
from apikeyrouter.domain.models.accounting import (
    CANDIDATES_MAX,
    UNPRICED,
    Admission,
    Charge,
    Denial,
    Loss,
    Reason,
    ReserveRequest,
    RetryKind,
)
from apikeyrouter.domain.models.call import Call
from apikeyrouter.domain.models.ranking import Ranking, Standing
from apikeyrouter.domain.models.system_error import LedgerRefusedError, LedgerUnavailableError
from apikeyrouter.serving.cell_rounds import of_one_cell
from apikeyrouter.serving.few_places import FewPlaces
from apikeyrouter.serving.offers import FREE_OPERATIONS, Offers, ParsedFor
from apikeyrouter.serving.sticking import Session, Sticking, join, put_first

__all__ = ["ANY_VERSION", "FREE_OPERATIONS", "Admissions", "Admitted", "ParsedFor", "Refused"]

CANDIDATES = 8
"""K: options offered to the first reserve of an attempt."""
ROUNDS_MAX = 200
"""Further rounds of CANDIDATES_MAX options before a denial is final; more keys than that are not looked at."""
ANY_VERSION = 0
_BUDGETS = (Reason.BUDGET, Reason.UNPRICED)
LOSSES_TOLD_MAX = 64
"""Candidates of earlier rounds that a decision tells of."""


class Admitted(msgspec.Struct, kw_only=True, eq=False):
    """A held option, with what was expected of it. `losses` are of the first so many candidates of `ranking`, and
    `place` is the held one's among them. `bounded`: a hard budget holds the bound of its cost."""

    option: Option
    admission: Admission
    request: ReserveRequest
    charge: Charge
    estimate: TokenEstimate
    token_cap: int | None
    bounded: bool
    ranking: Ranking
    place: int
    losses: tuple[Loss, ...]
    operation: str
    parsed: ParsedRequest | None
    session: Session | None = None


class Refused(msgspec.Struct, kw_only=True, eq=False):
    """Nothing was held. `losses` pairs every option that was seen with why it lost; `binding` None: there was none.

    `ranking`: the first candidates, and what the objective's constraints excluded.
    """

    losses: list[tuple[Option, Loss]]
    binding: Loss | None
    needed_nanousd: int
    ranking: Ranking

    @property
    def unpriced(self) -> list[str]:
        """The models that were refused because nobody knows their price, as `provider/model`."""
        refused = (option for option, loss in self.losses if loss.reason is Reason.UNPRICED and option.price is None)
        return list(dict.fromkeys(f"{option.provider.id}/{option.model}" for option in refused))


StandIn = Callable[[ReserveRequest], Awaitable[tuple[ReserveRequest, Admission] | None]]
"""What holds a request without the ledger: under which request, and what; None: it has no room, or may not."""


async def nobody(_request: ReserveRequest) -> None:
    """Without the ledger nothing is held."""


class Reserving(Protocol):
    """What admission asks of a ledger."""

    async def reserve(self, request: ReserveRequest) -> Admission | Denial:
        """Hold one candidate or nothing."""
        ...


class Admissions:
    """Holds capacity and money for calls. Pure but for the ledger it asks."""

    def __init__(
        self,
        ledger: Reserving,
        catalogue: Catalogue,
        estimator: TokenEstimator,
        snapshot: Snapshot,
        *,
        lease_us: int,
        sessions: Sessions | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.sessions = sessions or Sessions()
        self._sticking = Sticking(self.sessions, snapshot)
        self.ledger, self._catalogue, self._estimator, self._snapshot = ledger, catalogue, estimator, snapshot
        self._ends, self._clock = QuotaEnds(catalogue.keys), clock
        self.lease_us = lease_us
        self.stand_in: StandIn = nobody
        """Who may hold something while the store is away."""
        self.few = FewPlaces(snapshot.few)
        """What is about to be free, and is waited for before anything else is held."""
        self.denied: Callable[[ReserveRequest, Loss], None] | None = None
        """Who is told of what was denied, and what bound it."""
        self.config_version = 0
        """The configuration this process decides under; the ledger refuses any other."""

    async def admit(
        self,
        call: Call,
        pool: Pool,
        parsed_for: ParsedFor,
        *,
        plan: Plan,
        skip: Collection[Option],
        version: int,
        turn: int | None = None,
    ) -> Admitted | Refused:
        """Hold the best option with room in every lane and every budget, or find that there is none.

        `version`: of the configuration that the pool is of, `config_version` before it was asked for; ANY_VERSION:
        whichever is in force. `turn`: whose it is among equals; None: the next one's.

        Raises:
            StaleConfigError: another process changed limits or budgets; take them over and decide again.
            InvalidRequestError: the request cannot be put into an option's dialect.
        """
        shared = self._catalogue.shared_scopes(call.team, call.client, pool.constraints)
        most, capped = plan.cost_max_nanousd, pool.capped
        offers = Offers(self._estimator, call, parsed_for, hard=shared.hard, cost_max_nanousd=most, capped=capped)
        now = self._clock()
        session = self._sticking.session(call, pool, plan, parsed_for, now) if pool.caches else None
        ranked = self._ranked(call, pool, plan, offers, now=now, skip=skip, turn=turn, session=session)
        first, further, offered = ranked.ranking, None, pool.offered(call.lanes)
        losses, lost = list[tuple[Option, Loss]](), list[Standing]()
        request: ReserveRequest | None = None
        layout, cell, aside = self._catalogue.layout, 0, list[tuple[Option, Standing]]()
        for _ in range(ROUNDS_MAX):
            if layout is not None and ranked.options:
                cell, ranked, aside = of_one_cell(layout, ranked)
            options = ranked.options
            if options:
                request = ReserveRequest(
                    rid=new_rid(cell), candidates=offers.all(options, offered), scopes=shared.ids,
                    lease_us=self.lease_us, config_version=version, pool=pool.model,
                    principal="" if call.ungated else call.principal, weight=self._catalogue.shares[call.weight],
                )  # fmt: skip
                if self.few.coming:
                    await self.few.before(options)
                try:
                    answer = await self.ledger.reserve(request)
                except LedgerUnavailableError as exc:
                    request, answer = await self._stand_in(request, exc)
                why = self._ends.in_losses(answer.losses, answer.stamp.now_us) if answer.losses else ()
                if isinstance(answer, Admission):
                    return _admitted(ranked, answer, why, request, offers, parsed_for, lost, losses, session)
                losses.extend(zip(options, why, strict=True))
                lost.extend(ranked.ranking.standings)
            if further is None and not aside:
                seen = [*skip, *(option for option, _ in losses)]
                further = pool.rest(plan, seen, snapshot=self._snapshot, now=now)
            ranked = _round(first, aside or list(islice(further or (), CANDIDATES_MAX)))
            if not ranked.options:
                break
            offers.settle(plan, ranked)
        return self._refused(request, losses, offers, first)

    def _refused(
        self, request: ReserveRequest | None, losses: list[tuple[Option, Loss]], offers: Offers, first: Ranking
    ) -> Refused:
        """Nothing was held; `request` is the last of those that were denied."""
        needed = max((offers.details(option)[0].bound_nanousd for option, _ in losses), default=UNPRICED)
        binding = min((loss for _, loss in losses), key=_soonest, default=None)
        if self.denied is not None and request is not None and binding is not None:
            self.denied(request, binding)
        return Refused(losses=losses, binding=binding, needed_nanousd=needed, ranking=first)

    async def _stand_in(
        self, request: ReserveRequest, failure: LedgerUnavailableError
    ) -> tuple[ReserveRequest, Admission]:
        """Hold it without the ledger, where somebody may; else the failure is raised."""
        held = None if isinstance(failure, LedgerRefusedError) else await self.stand_in(request)
        if held is None:
            raise failure
        return held

    def _ranked(
        self,
        call: Call,
        pool: Pool,
        plan: Plan,
        offers: Offers,
        *,
        now: float,
        skip: Collection[Option],
        turn: int | None,
        session: Session | None,
    ) -> Ranked:
        """The first candidates for a call, in the order in which they are offered."""
        tokens = TYPICAL_TOKENS if plan.costs < 0 or not pool.shaped else offers.tokens(pool.samples[0])
        if session is not None and not session.warm and turn is None:
            turn = session.turn
        ranked = pool.rank(
            plan, CANDIDATES, snapshot=self._snapshot, now=now, skip=skip, stream=call.stream, tokens=tokens,
            start=turn,
        )  # fmt: skip
        warm: list[tuple[Option, int]] = []
        if session is not None and session.warm:
            offers.warm = session.warm
            order = pool.order(plan, self._snapshot, now, stream=call.stream, tokens=tokens)
            warm = self._sticking.warm(pool, order, session, skip, now)
            if plan.costs >= 0:
                join(ranked, order, warm)
        if plan.costs >= 0 or plan.cost_max_nanousd is not None or pool.capped:
            offers.settle(plan, ranked)
        if warm:
            if plan.costs < 0:
                put_first(plan, ranked, order, warm, offers)
            told = [offers.warm.get(option.key.quota_group, 0) for option in ranked.options]
            ranked.ranking.cached_tokens = tuple(told)
        return ranked

    def offer(self, call: Call, pool: Pool, option: Option, parsed_for: ParsedFor) -> Charge:
        """What a call would take of an option of the pool. Nothing is held."""
        shared = self._catalogue.shared_scopes(call.team, call.client, pool.constraints)
        return Offers(self._estimator, call, parsed_for, hard=shared.hard).details(option)[0]


def _round(first: Ranking, rows: list[tuple[Option, Standing]]) -> Ranked:
    """A further round of candidates."""
    ranking = Ranking(
        objective=first.objective, measures=first.measures, standings=[standing for _, standing in rows],
        ranked=first.ranked, excluded=first.excluded,
    )  # fmt: skip
    return Ranked([option for option, _ in rows], ranking)


def _admitted(
    ranked: Ranked,
    admission: Admission,
    why: tuple[Loss, ...],
    request: ReserveRequest,
    offers: Offers,
    parsed_for: ParsedFor,
    lost: list[Standing],
    losses: list[tuple[Option, Loss]],
    session: Session | None,
) -> Admitted:
    option, ranking, place = ranked.options[admission.index], ranked.ranking, admission.index
    if lost:
        del lost[LOSSES_TOLD_MAX:]
        ranking.standings = lost + ranking.standings
        if ranking.expected_nanousd:
            ranking.expected_nanousd = (UNPRICED,) * len(lost) + ranking.expected_nanousd
        if ranking.cached_tokens:
            ranking.cached_tokens = (0,) * len(lost) + ranking.cached_tokens
        ranking.equals = 0
        why = (*(loss for _, loss in losses[:LOSSES_TOLD_MAX]), *why)
        place += len(lost)
    charge, estimate, cap = offers.details(option)
    operation, parsed = parsed_for(option)
    return Admitted(
        option=option, admission=admission, request=request, charge=charge, estimate=estimate, token_cap=cap,
        bounded=offers.is_bounded(option), ranking=ranking, place=place, losses=why, operation=operation,
        parsed=parsed, session=session,
    )  # fmt: skip


def _soonest(loss: Loss) -> tuple[bool, int, bool, str]:
    """What ends first binds; of what ends together, or never, a budget, and whichever candidate's turn it is."""
    never = loss.retry_kind is RetryKind.NEVER
    of_budget = loss.reason in _BUDGETS or (loss.reason is Reason.NEVER_FITS and not loss.limit)
    return never, 0 if never else loss.retry_at_us, not of_budget, loss.where
