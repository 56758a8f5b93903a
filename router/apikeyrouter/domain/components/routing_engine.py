"""Chooses candidates by objective: `router.routing_engine`."""

import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

from apikeyrouter.domain.components.arguments import checking
from apikeyrouter.domain.components.catalogue import Catalogue
from apikeyrouter.domain.components.explaining import explained, scores
from apikeyrouter.domain.components.objectives import Plan, Report, Scorer, Strategies, key_of
from apikeyrouter.domain.components.pool import Pool, Snapshot
from apikeyrouter.domain.models.api_key import APIKey
from apikeyrouter.domain.models.call import Facts
from apikeyrouter.domain.models.ranking import ObjectiveKey, Ranking
from apikeyrouter.domain.models.request_intent import RequestIntent
from apikeyrouter.domain.models.routing_decision import RoutingDecision, RoutingObjective, RoutingStrategy
from apikeyrouter.domain.models.system_error import InvalidRequestError, NoEligibleKeysError

__all__ = ["NoEligibleKeysError", "RoutingEngine"]

LATENCY_MS_MAX = 86_400_000
PLANS_MAX = 256
"""Compiled objectives that are remembered; beyond it the memory starts afresh."""


Decide = Callable[[RequestIntent, RoutingObjective | str | None], Awaitable[RoutingDecision]]


@checking("evaluate_keys", "explain_decision", "update_routing_feedback")
class RoutingEngine:
    """Which key serves a request, and why. One event loop owns it.

    Args:
        report: told of strategies that fail.
        catalogue, snapshot: what there is, and how its lanes are.
        decide: what would be chosen for a request now.
        facts_of: what happened to a request of this process; None: too old, or unknown.
        on_judging: told when an objective first looks at the quality of answers.
    """

    def __init__(
        self,
        report: Report,
        *,
        catalogue: Catalogue,
        snapshot: Snapshot,
        decide: Decide,
        facts_of: Callable[[str], Facts | None],
        on_judging: Callable[[], None],
    ) -> None:
        self._on_judging = on_judging
        self._catalogue, self._snapshot = catalogue, snapshot
        self._decide, self._facts_of = decide, facts_of
        self._strategies = Strategies(report)
        self._plans: dict[ObjectiveKey, Plan] = {}
        self._recent: dict[int, tuple[RoutingObjective, Plan]] = {}
        self._default = RoutingObjective()

    @property
    def default(self) -> RoutingObjective:
        """The objective of requests that name none."""
        return self._default

    @default.setter
    def default(self, objective: RoutingObjective | str) -> None:
        self._default = RoutingObjective.read(objective)

    def plan(self, objective: RoutingObjective | None) -> Plan:
        """An objective, compiled; the same plan for equal objectives, so that they share their orders.

        Raises:
            InvalidRequestError: it names a strategy that is not registered with this router.
        """
        if objective is None:
            objective = self._default
        known = self._recent.get(id(objective))
        if known is not None and known[0] is objective:
            return known[1]
        key = key_of(objective)
        plan = self._plans.get(key)
        if plan is None:
            plan = self._strategies.compile(objective)
            if plan.judges:
                self._on_judging()
            if len(self._plans) >= PLANS_MAX:
                self._plans.clear()
            self._plans[key] = plan
        if len(self._recent) >= PLANS_MAX:
            self._recent.clear()
        self._recent[id(objective)] = (objective, plan)
        return plan

    def register_strategy(
        self, name: str, scorer: Scorer, description: str = "", *, overwrite: bool = False
    ) -> RoutingStrategy:
        """Make a scorer usable as an objective, by its name, wherever an objective is named.

        `scorer` takes a `CandidateView` and returns a finite number, the higher the better. It is called for every
        option of a pool when what is known of the lanes moves, a few times a second: it must be quick, and not wait.
        Where it raises, or returns what is no number, that candidate comes last, and that is reported.

        Raises:
            InvalidRequestError: the name is no name, is taken, or is built in; or the scorer cannot be called.
        """
        known = self._strategies.register(name, scorer, description, overwrite=overwrite)
        self._plans.clear()
        self._recent.clear()
        return RoutingStrategy(name=known, description=description, builtin=False)

    async def route_request(
        self, request: RequestIntent | Mapping[str, Any], objective: RoutingObjective | str | None = None
    ) -> RoutingDecision:
        """Which key would serve this request now, and why; nothing is held or sent.

        Raises:
            InvalidRequestError: the request or the objective is wrong.
            ModelNotFoundError: no key serves the model.
            NoEligibleKeysError: none of them has room; the decision says why.
        """
        decision = await self._decide(RequestIntent.parse(request), objective)
        if not decision.selected_key_id:
            reasons = {verdict.key_id: verdict.reason for verdict in decision.candidates}
            raise NoEligibleKeysError(decision.explanation, reasons=reasons)
        return decision

    async def evaluate_keys(
        self,
        eligible_keys: Iterable[APIKey | str],
        objective: RoutingObjective | str | None = None,
        *,
        model: str | None = None,
    ) -> dict[str, float]:
        """How good each key is under an objective, compared with the best of them: 1, and half as good is 0.5.

        `model`: what they would serve, which prices and declared qualities depend on; without one, a key is compared
        by its best model. A key that a constraint excludes scores 0; turns alone score 1.

        Raises:
            InvalidRequestError: a key is not registered or does not serve the model, or the objective is wrong.
        """
        ids = [key if isinstance(key, str) else _id_of(key) for key in eligible_keys]
        plan = self.plan(None if objective is None else RoutingObjective.read(objective))
        options = [option for key_id in ids for option in self._catalogue.options_of(key_id, model)]
        pool, now = Pool(model or "", options, always=True), time.perf_counter()
        order = pool.order(plan, self._snapshot, now)
        standings = order.standings(0, len(order.options))
        ranking = Ranking(objective=plan.key, measures=plan.measures, ranked=plan.ranked, standings=standings)
        found = dict.fromkeys(ids, 0.0)
        for standing, score in zip(standings, scores(ranking), strict=True):
            found[standing.key_id] = max(found[standing.key_id], score)
        return found

    def explain_decision(self, decision: RoutingDecision) -> str:
        """A decision in words: what was chosen by which numbers, and why each of the others was not."""
        return explained(decision)

    async def update_routing_feedback(
        self, decision_id: str, success: bool, metrics: Mapping[str, Any] | None = None
    ) -> None:
        """Learn what became of an answer. It counts from the next order on, within a quarter of a second.

        A failure counts against the key's reliability for some minutes, and the answer's quality, 0 or 1 unless
        `metrics` says otherwise, for some hours. `metrics`: `quality` (0 … 1), `latency_ms` (as the caller saw it).

        Raises:
            InvalidRequestError: this process does not remember the request, nothing served it, or a metric is none.
        """
        quality, latency_ms = _read_metrics(metrics or {}, success)
        facts = self._facts_of(decision_id)
        if facts is None or not facts.attempts:
            raise InvalidRequestError(f"no request {decision_id!r} that was served is remembered", field="decision_id")
        served, now = facts.attempts[-1], time.perf_counter()
        seen = self._catalogue.observations.of(served.key_id, served.model)
        seen.judged(quality, now)
        if not success:
            seen.blame(now)
        if latency_ms is not None:
            seen.answered(latency_ms * 1000, stream=facts.stream, now=now)

    def get_routing_strategies(self) -> list[RoutingStrategy]:
        """What an objective may be called: the five that are built in, then those that were registered."""
        return self._strategies.listed()


def _read_metrics(metrics: Mapping[str, Any], success: bool) -> tuple[float, float | None]:
    unknown = sorted(set(metrics) - {"quality", "latency_ms"})
    if unknown:
        raise InvalidRequestError("is not a known metric (quality, latency_ms)", field=f"metrics.{unknown[0]}")
    quality, latency_ms = metrics.get("quality"), metrics.get("latency_ms")
    if quality is not None and not (_is_number(quality) and 0 <= quality <= 1):
        raise InvalidRequestError("must be between 0 and 1", field="metrics.quality")
    if latency_ms is not None and not (_is_number(latency_ms) and 0 < latency_ms <= LATENCY_MS_MAX):
        raise InvalidRequestError("must be a positive number of milliseconds", field="metrics.latency_ms")
    return float(success) if quality is None else float(quality), None if latency_ms is None else float(latency_ms)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _id_of(key: object) -> str:
    if not isinstance(key, APIKey):
        raise InvalidRequestError(f"must be keys or their ids, not {type(key).__name__}", field="eligible_keys")
    return key.id
