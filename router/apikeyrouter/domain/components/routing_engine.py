"""Chooses candidates by objective: `router.routing_engine`."""

from apikeyrouter.domain.components.objectives import Plan, Report, Scorer, Strategies, key_of
from apikeyrouter.domain.models.ranking import ObjectiveKey
from apikeyrouter.domain.models.routing_decision import RoutingObjective, RoutingStrategy
from apikeyrouter.domain.models.system_error import NoEligibleKeysError

__all__ = ["NoEligibleKeysError", "RoutingEngine"]

PLANS_MAX = 256
"""Compiled objectives that are remembered; beyond it the memory starts afresh."""


class RoutingEngine:
    """Plans by objective. One event loop owns it."""

    def __init__(self, report: Report) -> None:
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

    def get_routing_strategies(self) -> list[RoutingStrategy]:
        """What an objective may be called: the five that are built in, then those that were registered."""
        return self._strategies.listed()
