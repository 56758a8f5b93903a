"""What policies mean for one request on its way: which apply, when they yield, when they refuse, what they count."""

from collections.abc import Iterable

from apikeyrouter.domain.components.policy_constraints import Constraints
from apikeyrouter.domain.components.policy_engine import PolicyEngine
from apikeyrouter.domain.components.pool import Option, Pool
from apikeyrouter.domain.models.call import Call, Facts, Refusal
from apikeyrouter.domain.models.money import plainly
from apikeyrouter.domain.models.ranking import Exclusion, Ranking
from apikeyrouter.domain.models.system_error import PolicyDeniedError

BARRED_TOLD_MAX = 32
"""How many of the candidates that policies refuse are kept with a request's facts."""
_LIMITS = {"max_cost_per_request": "max_cost_per_request", "min_reliability": "min_success_rate"}
"""What a limit of policies is called as an objective's constraint, and as a rule."""


class Policing:
    """Asks the policy engine for one request. What is not asked costs nothing: see `PolicyEngine.active`."""

    def __init__(self, engine: PolicyEngine) -> None:
        self._engine = engine

    def rules(self, call: Call, *, relaxed: bool) -> Constraints | None:
        """What applies to a call; `relaxed`: without the soft policies, which have yielded."""
        found = self._engine.constraints(
            client=call.client, team=call.team, provider_id=call.provider_id, model=call.model, own=call.policy
        )
        if relaxed and found is not None and found.relaxed is not None:
            return found.relaxed
        return found

    def note(self, rules: Constraints, pool: Pool, facts: Facts) -> None:
        """What a request's facts say about policies: which spoke, and what they refused."""
        if not facts.policies:
            facts.policies = rules.policy_ids
            self._engine.count((*rules.policy_ids, *rules.shadows), "applied")
        facts.barred = pool.barred[:BARRED_TOLD_MAX]

    def yield_soft(self, rules: Constraints, facts: Facts) -> bool:
        """Whether soft policies spoke; they are passed over from now on, which is marked and counted."""
        if rules.relaxed is None:
            return False
        facts.yielded = rules.soft
        self._engine.count(rules.soft, "yielded")
        return True

    def admitted(self, rules: Constraints, pool: Pool, option: Option, expected_nanousd: int, facts: Facts) -> None:
        """What shadow policies would have done to a request that is served by this option."""
        found: dict[str, bool] = {}
        for policy_id, own in rules.shadows.items():
            caps = [cap for one in own if (cap := one.rules.cost_max_nanousd) is not None]
            if policy_id in pool.emptied or (caps and expected_nanousd > min(caps)):
                found[policy_id] = True
            elif policy_id in pool.watched.get(option, ()):
                found[policy_id] = False
        for scope in facts.soft_exceeded:
            kind, _, rest = scope.partition(":")
            policy_id = rest.rpartition(":")[0]
            if kind == "policy" and policy_id in rules.shadows:
                found[policy_id] = True
        for policy_id, refused in found.items():
            self._engine.count((policy_id,), "would_have_denied" if refused else "would_have_moved")
        facts.shadowed = tuple(found.items())

    def denial(self, rules: Constraints, pool: Pool, excluded: Iterable[Exclusion], facts: Facts) -> PolicyDeniedError:
        """The error for a request to which policies leave nothing."""
        reasons = {one.key_id: one.why for one in reversed(pool.barred)}
        refusing = [one.policy_id for one in pool.barred]
        for exclusion in excluded:
            limit = _LIMITS.get(exclusion.constraint)
            limiting = [one.policy.id for one in rules.statements if limit is not None and limit in one.matters]
            names = ", ".join(repr(policy_id) for policy_id in dict.fromkeys(limiting))
            reasons.setdefault(exclusion.key_id, _limited(exclusion, names))
            refusing.extend(limiting)
        found = tuple(dict.fromkeys(refusing))
        self._engine.count(found, "denied")
        if facts.refusal is None:
            facts.refusal = Refusal(ranking=Ranking(objective=(facts.objective, (), (), ()), measures=(), standings=[]))
        return PolicyDeniedError(found, reasons=reasons)


def limits(rules: Constraints, excluded: Iterable[Exclusion]) -> bool:
    """Whether policies limit what excluded the candidates."""
    matters = {matter for one in rules.statements for matter in one.matters}
    return all(_LIMITS.get(exclusion.constraint) in matters for exclusion in excluded)


def _limited(exclusion: Exclusion, names: str) -> str:
    value = "unknown" if exclusion.value is None else plainly(exclusion.value)
    return f"{_LIMITS[exclusion.constraint]} is {plainly(exclusion.bound)} by policy {names}, and this is {value}"
