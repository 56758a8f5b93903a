"""A pool as policies see it: without what they refuse, in their order of preference, held in their budgets. Pure."""

from collections.abc import Callable, Sequence

from apikeyrouter.domain.components.policy_constraints import Constraints, Verdict
from apikeyrouter.domain.components.pool import Option, Pool
from apikeyrouter.domain.models.accounting import ScopeConfig
from apikeyrouter.domain.models.ranking import Barred

__all__ = ["narrowed"]

BudgetsOf = Callable[[str], Sequence[ScopeConfig]]
"""The budgets of a policy."""
RateOf = Callable[[Option], int]
"""A number that is equal for options on which a request costs the same."""


def narrowed(pool: Pool, constraints: Constraints, *, budgets_of: BudgetsOf, rate_of: RateOf) -> Pool:
    """The pool under constraints. What is refused, and by whom, is kept in `barred`, for explanations."""
    asked = pool.model
    kept: list[Option] = []
    barred: list[Barred] = []
    for option in pool.options:
        verdict = constraints.verdict(option, asked)
        if verdict.refused:
            where = option.key.id, option.provider.id, option.model
            barred.extend(Barred(*where, policy_id, why) for policy_id, why in verdict.refused)
            continue
        budgets = [scope for policy in constraints.spending(option, asked) for scope in budgets_of(policy)]
        kept.append(_changed(option, verdict, budgets, rate_of))
    if constraints.places:
        kept = _placed(kept, constraints)
    made = Pool(asked, kept, pool.turns.under(constraints.policy_ids))
    made.constraints, made.barred = constraints, tuple(barred)
    made.capped = any(option.cost_max_nanousd is not None for option in kept)
    if constraints.shadows:
        found = ((option, constraints.watched(option, asked)) for option in kept)
        made.watched = {option: shadows for option, shadows in found if shadows}
        made.emptied = frozenset(
            shadow for shadow in constraints.shadows if all(shadow in made.watched.get(option, ()) for option in kept)
        )
    return made


def _changed(option: Option, verdict: Verdict, budgets: Sequence[ScopeConfig], rate_of: RateOf) -> Option:
    """The option with what the policies ask of it; itself where that is nothing."""
    if not budgets and verdict.cost_max_nanousd is None and not verdict.success_min:
        return option
    made = option.changed(
        scopes=tuple(dict.fromkeys((*option.scopes, *(scope.id for scope in budgets)))),
        hard=option.hard or any(scope.hard for scope in budgets), cost_max_nanousd=verdict.cost_max_nanousd,
        success_min=verdict.success_min,
    )  # fmt: skip
    made.rate = rate_of(made)
    return made


def _placed(options: Sequence[Option], constraints: Constraints) -> list[Option]:
    """The options with the places that the preferences give them, counted from 0."""
    places = [constraints.placed(option) for option in options]
    numbers = {place: number for number, place in enumerate(sorted(set(places)))}
    return [
        option if option.rank == numbers[place] else option.changed(rank=numbers[place])
        for option, place in zip(options, places, strict=True)
    ]
