"""Decisions without consequences: what would be chosen now, and why. Nothing is held, sent or counted."""

import time

from apikeyrouter.domain.components.catalogue import Catalogue
from apikeyrouter.domain.components.explaining import decision_of
from apikeyrouter.domain.components.foresight import foreseen
from apikeyrouter.domain.components.policy_constraints import Constraints
from apikeyrouter.domain.components.pool import Snapshot
from apikeyrouter.domain.components.routing_engine import RoutingEngine
from apikeyrouter.domain.components.stickiness import Sessions
from apikeyrouter.domain.components.token_estimator import TokenEstimator
from apikeyrouter.domain.models.accounting import Admission, Denial, Loss, ReserveRequest
from apikeyrouter.domain.models.call import AttemptFacts, Call, Facts, Refusal
from apikeyrouter.domain.models.ranking import Ranking
from apikeyrouter.domain.models.routing_decision import RoutingDecision
from apikeyrouter.infrastructure.ledger.spread_ledger import AnyLedger
from apikeyrouter.serving.admission import ANY_VERSION, Admissions, Admitted, Refused
from apikeyrouter.serving.housekeeping import cell_now_us
from apikeyrouter.serving.policing import BARRED_TOLD_MAX, Policing
from apikeyrouter.serving.requests import ask_costs, left_out, parsed_for


class Deciding:
    """Answers `dry_run` and `route_request`: the way that requests go, up to a ledger that only looks."""

    def __init__(
        self,
        ledger: AnyLedger,
        catalogue: Catalogue,
        estimator: TokenEstimator,
        snapshot: Snapshot,
        engine: RoutingEngine,
        policing: Policing,
        sessions: Sessions,
    ) -> None:
        self._catalogue, self._snapshot, self._engine, self._policing = catalogue, snapshot, engine, policing
        self._admissions = Admissions(
            _Looking(ledger, catalogue), catalogue, estimator, snapshot, lease_us=0, sessions=sessions
        )  # fmt: skip

    async def __call__(self, call: Call) -> RoutingDecision:
        """What would be chosen for a call now; `selected_key_id` "" where it would be refused.

        Raises:
            InvalidRequestError: no adapter can say the request, or the objective names what there is not.
            ModelNotFoundError: no key serves the model.
            LedgerUnavailableError: the store cannot be reached.
        """
        facts = Facts(
            request_id=call.request_id, operation=call.operation, model=call.model, stream=call.stream, objective="",
            team=call.team, client=call.client, at_us=time.time_ns() // 1000,
            snapshot_age_us=max(0, int((call.started - self._snapshot.taken) * 1e6)) if self._snapshot.taken else 0,
        )  # fmt: skip
        rules = self._policing.rules(call, relaxed=False)
        found = await self._found(call, rules, facts)
        if not isinstance(found, Admitted) and rules is not None and rules.relaxed is not None:
            facts.yielded = rules.soft
            found = await self._found(call, rules.relaxed, facts)
        if isinstance(found, Admitted):
            option = found.option
            facts.attempts.append(
                AttemptFacts(
                    key_id=option.key.id, provider_id=option.provider.id, model=option.model, rid=b"",
                    ranking=found.ranking, place=found.place, losses=found.losses,
                )
            )  # fmt: skip
        else:
            facts.refusal = Refusal(ranking=found.ranking, losses=tuple(loss for _, loss in found.losses))
        return decision_of(facts).model_copy(update={"hold_ids": [], "attempts": 0, "tried": [], "outcome": ""})

    async def _found(self, call: Call, rules: Constraints | None, facts: Facts) -> Admitted | Refused:
        objective = call.objective
        if rules is not None:
            objective = rules.objective(call.objective, self._engine.default, retry=False)
            facts.policies = facts.policies or rules.policy_ids
        plan, parsed = self._engine.plan(objective), parsed_for(call)
        facts.objective = plan.name
        pool = self._catalogue.pool_of(call, rules)
        facts.barred = pool.barred[:BARRED_TOLD_MAX]
        if not pool.options:
            return Refused(losses=[], binding=None, needed_nanousd=0, ranking=Ranking.nobody(plan.key))
        skip = left_out(call, pool, parsed, {})
        await ask_costs(call, pool)
        return await self._admissions.admit(
            call, pool, parsed, plan=plan, skip=skip, version=ANY_VERSION, turn=pool.next_turn
        )


class _Looking:
    """A ledger that looks at lanes and budgets, and holds nothing."""

    def __init__(self, ledger: AnyLedger, catalogue: Catalogue) -> None:
        self._ledger, self._catalogue = ledger, catalogue

    async def reserve(self, request: ReserveRequest) -> Admission | Denial:
        """What a reserve would most likely answer."""
        lane_ids = dict.fromkeys(lane for candidate in request.candidates for lane in candidate.lanes)
        scope_ids = dict.fromkeys([*request.scopes, *(id for each in request.candidates for id in each.scopes)])
        lanes = {lane.id: lane for lane in await self._ledger.lanes(list(lane_ids))}
        scopes = {scope.id: scope for scope in await self._ledger.scopes(list(scope_ids))} if scope_ids else {}
        stamp, now_us, losses = self._ledger.stamp, cell_now_us(self._ledger), list[Loss]()
        for index, candidate in enumerate(request.candidates):
            loss = foreseen(
                index, candidate, request.scopes, lanes=lanes, budget=self._catalogue.budget, scopes=scopes,
                now_us=now_us,
            )  # fmt: skip
            if loss is None:
                return Admission(
                    stamp=stamp, rid=request.rid, index=index, deadline_us=0, probe=False, soft_exceeded=(),
                    losses=tuple(losses), replayed=False,
                )  # fmt: skip
            losses.append(loss)
        return Denial(stamp=stamp, binding=min(losses, key=lambda loss: loss.retry_at_us), losses=tuple(losses))
