"""What a policy would change: for one request, and for the requests that were served lately. Pure."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from apikeyrouter.domain.components.catalogue import Catalogue
from apikeyrouter.domain.components.policy_constraints import Constraints
from apikeyrouter.domain.components.pool import Option, Pool
from apikeyrouter.domain.models.call import Facts
from apikeyrouter.domain.models.cost_estimate import dollars
from apikeyrouter.domain.models.policy import PolicyImpact
from apikeyrouter.domain.models.routing_decision import RoutingObjective
from apikeyrouter.domain.models.system_error import InvalidRequestError

__all__ = ["Choose", "Rules", "impact_of"]

REFUSED_TOLD_MAX = 20
"""How many of the requests that would be refused are named."""
_CONTEXT = frozenset({"model", "provider_id", "team", "client", "objective"})
Choose = Callable[[Pool, RoutingObjective | None], Option | None]
"""The option of a pool that would be tried first under an objective (None: the default), None where there is none."""


class Rules(Protocol):
    """What applies to whom."""

    def __call__(
        self, *, client: str | None, team: str | None, provider_id: str | None, model: str
    ) -> Constraints | None:
        """The constraints of a request, None for none."""
        ...


@dataclass(slots=True)
class _Replay:
    """What would have become of the recent requests."""

    requests: int = 0
    moved: int = 0
    refused: list[str] = field(default_factory=list)
    refusals: int = 0
    before: int = 0
    after: int = 0


def impact_of(
    catalogue: Catalogue, choose: Choose, before: Rules, after: Rules, context: Mapping[str, Any],
    recent: Iterable[Facts],
) -> PolicyImpact:  # fmt: skip
    """The impact of going from the rules before to those after."""
    told = _context_impact(catalogue, choose, before, after, context) if context else {}
    replay = _Replay()
    for facts in recent:
        if facts.attempts and facts.outcome == "ok":
            _replay(replay, catalogue, choose, after, facts)
    return PolicyImpact(
        **told, requests=replay.requests, would_be_moved=replay.moved, would_be_refused=replay.refusals,
        refused_requests=replay.refused, cost_before=dollars(replay.before), cost_after=dollars(replay.after),
    )  # fmt: skip


def _context_impact(
    catalogue: Catalogue, choose: Choose, before: Rules, after: Rules, context: Mapping[str, Any]
) -> dict[str, Any]:
    unknown = sorted(set(context) - _CONTEXT)
    if unknown or "model" not in context:
        reason = f"is not known; there are {', '.join(sorted(_CONTEXT))}" if unknown else "is required"
        raise InvalidRequestError(reason, field=f"context.{unknown[0] if unknown else 'model'}")
    model, provider_id = str(context["model"]), context.get("provider_id")
    team, client = context.get("team"), context.get("client")
    stated = context.get("objective")
    objective = None if stated is None else RoutingObjective.read(stated)
    pools = [
        catalogue.pool(
            model, provider_id, "", team, rules(client=client, team=team, provider_id=provider_id, model=model)
        )
        for rules in (before, after)
    ]
    chosen = [choose(pool, objective) for pool in pools]
    return {
        "keys_before": _keys(pools[0]),
        "keys_after": _keys(pools[1]),
        "excluded": {one.key_id: one.why for one in reversed(pools[1].barred) if one.key_id not in _keys(pools[1])},
        "selected_before": None if chosen[0] is None else chosen[0].key.id,
        "selected_after": None if chosen[1] is None else chosen[1].key.id,
    }


def _keys(pool: Pool) -> list[str]:
    return list(dict.fromkeys(option.key.id for option in pool.options))


def _replay(replay: _Replay, catalogue: Catalogue, choose: Choose, after: Rules, facts: Facts) -> None:
    """One request that was served: with the same key, with another one, or not at all."""
    try:
        constraints = after(client=facts.client, team=facts.team, provider_id=facts.pinned, model=facts.model)
        operation = facts.operation if facts.dialect else ""
        pool = catalogue.pool(facts.model, facts.pinned, facts.dialect, facts.team, constraints, operation=operation)
    except InvalidRequestError:
        return  # what served it is no longer there; nothing can be said
    replay.requests += 1
    served = facts.attempts[-1]
    same = next((o for o in pool.options if o.key.id == served.key_id and o.model == served.model), None)
    affordable = [option for option in pool.options if _fits(option, constraints, facts)]
    option = same if same is not None and same in affordable else None
    if option is None and affordable:
        first = choose(pool, None)
        option = first if first in affordable else affordable[0]
    if option is None:
        replay.refusals += 1
        if len(replay.refused) < REFUSED_TOLD_MAX:
            replay.refused.append(facts.request_id)
        replay.before += facts.cost_nanousd or 0
        return
    replay.moved += option is not same
    now = _cost(option, facts)
    if facts.cost_nanousd is not None and now is not None:
        replay.before += facts.cost_nanousd
        replay.after += facts.cost_nanousd if option is same else now


def _cost(option: Option, facts: Facts) -> int | None:
    return None if option.price is None or facts.usage is None else option.price.cost(facts.usage)


def _fits(option: Option, constraints: Constraints | None, facts: Facts) -> bool:
    """Whether the request as it was would have kept within what policies let it cost there."""
    if constraints is None:
        return True
    limits = constraints.objective(None, RoutingObjective(), retry=False).constraints
    most = limits.get("max_cost_per_request")
    caps = [cap for cap in (option.cost_max_nanousd, None if most is None else int(most * 10**9)) if cap is not None]
    cost = _cost(option, facts)
    return not caps or (cost is not None and cost <= min(caps))
