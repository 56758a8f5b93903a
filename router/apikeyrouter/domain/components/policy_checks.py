"""Whether a policy is sound, and what it says to one context. Pure."""

from collections.abc import Collection, Iterator, Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any

from apikeyrouter.domain.components.catalogue import Catalogue
from apikeyrouter.domain.components.policy_rules import MATTERS, Names, RuleSet, read_policy, read_rules
from apikeyrouter.domain.components.policy_statements import told
from apikeyrouter.domain.components.policy_windows import in_force
from apikeyrouter.domain.models.cost_estimate import dollars
from apikeyrouter.domain.models.money import Dollars
from apikeyrouter.domain.models.policy import Policy, PolicyResult, PolicyScope
from apikeyrouter.domain.models.system_error import InvalidRequestError

__all__ = ["check_policy", "evaluated"]

_FIELDS = {"providers": "provider_id", "models": "model", "keys": "key_id", "regions": "region", "tiers": "tier"}
"""What each matter is called in a context."""
_WHO = {
    PolicyScope.Provider: "provider_id", PolicyScope.Model: "model", PolicyScope.Key: "key_id",
    PolicyScope.Team: "team", PolicyScope.Client: "client",
}  # fmt: skip
_CONTEXT = frozenset({*_FIELDS.values(), *_WHO.values(), "cost", "success_rate", "at"})


def check_policy(
    policy: Policy, *, providers: Collection[str] | None = None, keys: Collection[str] | None = None
) -> tuple[list[str], list[str]]:
    """(errors, warnings) of a policy. Names are looked up where those that are known are given."""
    known = {name: names for name, names in (("providers", providers), ("keys", keys)) if names is not None}
    errors: list[str] = []
    warnings: list[str] = []
    if not policy.rule_list or not any(policy.rule_list):
        errors.append("rules: must have at least one rule")
    for index, rules in enumerate(policy.rule_list):
        at = f"rules[{index}]" if isinstance(policy.rules, list) else "rules"
        read, wrong = read_rules(rules, at=at)
        errors += wrong
        errors += [f"{at}.{name}: is empty, and would allow nothing" for name in _empty(read)]
        if not wrong:
            warnings += _doubts(policy, read, at)
            warnings += _strangers(read, known, at)
    warnings += _unknown_scope(policy, known)
    return errors, warnings


def _empty(rules: RuleSet) -> Iterator[str]:
    for matter, names in rules.allowed.items():
        if not names.names and not names.patterns:
            yield f"allowed_{matter}"
    if rules.preferred_models == ():
        yield "preferred_models"
    if rules.tier_ranks == ():
        yield "tier_ranks"


def _doubts(policy: Policy, rules: RuleSet, at: str) -> Iterator[str]:
    for matter in MATTERS:
        allowed, denied = rules.allowed.get(matter), rules.denied.get(matter)
        both = sorted(allowed.names & denied.names) if allowed and denied else []
        if both:
            yield f"{at}.allowed_{matter}: {', '.join(both)} is denied by denied_{matter}; the denial holds"
    if rules.tier_ranks is not None and not rules.premium_tier and policy.scope is not PolicyScope.Default:
        yield f"{at}.tier_ranks: ranks count where prefer_premium_tier is set"
    preferring = (rules.preferred_models, rules.premium_tier, rules.objective, rules.lowest_cost)
    if policy.scope is PolicyScope.Key and any(one is not None for one in preferring):
        yield f"{at}: preferences in a policy of one key prefer nothing"
    if rules.windows and not in_force_ever(rules):
        yield f"{at}.time_windows: all of them are over"


def in_force_ever(rules: RuleSet) -> bool:
    """Whether the rules may come into force again."""
    now = datetime.now().astimezone().timestamp()
    return any(window.until > now for window in rules.windows)


def _strangers(rules: RuleSet, known: Mapping[str, Collection[str]], at: str) -> Iterator[str]:
    """Names that nobody has heard of."""
    for verb, lists in (("allowed", rules.allowed), ("denied", rules.denied)):
        for matter, names in lists.items():
            for name in sorted(names.names.difference(known[matter])) if matter in known else ():
                yield f"{at}.{verb}_{matter}: there is no {matter[:-1]} {name!r} (yet)"


def _unknown_scope(policy: Policy, known: Mapping[str, Collection[str]]) -> Iterator[str]:
    matter = {PolicyScope.Provider: "providers", PolicyScope.Key: "keys"}.get(policy.scope, "")
    if matter in known and policy.scope_id not in known[matter]:
        yield f"scope_id: there is no {policy.scope.value} {policy.scope_id!r} (yet)"


def evaluated(policy: Policy, context: Mapping[str, Any], catalogue: Catalogue, now: float) -> PolicyResult:
    """What a policy says to a context. Raises InvalidRequestError for a policy or a context that makes no sense."""
    unknown = sorted(set(context) - _CONTEXT)
    if unknown:
        raise InvalidRequestError(
            f"is not known; there are {', '.join(sorted(_CONTEXT))}", field=f"context.{unknown[0]}"
        )
    facts = _with_key(context, catalogue)
    at = facts.get("at")
    if at is not None and not (isinstance(at, datetime) and at.tzinfo is not None):
        raise InvalidRequestError("must be a datetime with a time zone", field="context.at")
    rules = read_policy(policy)
    if not policy.enabled:
        return PolicyResult(allowed=True, reason=f"{told(policy)} is switched off")
    who = _WHO.get(policy.scope)
    if who is not None and facts.get(who) != policy.scope_id:
        return PolicyResult(allowed=True, reason=f"{told(policy)} does not apply: {who} is {facts.get(who)!r}")
    active = [one for one in rules if in_force(one.windows, now if at is None else at.timestamp())]
    if not active:
        return PolicyResult(allowed=True, reason=f"{told(policy)} is not in force at this time")
    against = [why for one in active for why in _against(policy, one, facts)]
    demands: dict[str, Any] = {}
    for raw, one in zip(policy.rule_list, rules, strict=True):
        demands.update(raw if one in active else {})
    return PolicyResult(
        allowed=not against, policy_ids=[policy.id], constraints=demands, reason="; ".join(against),
    )  # fmt: skip


def _with_key(context: Mapping[str, Any], catalogue: Catalogue) -> dict[str, Any]:
    """The context with what is known of its key."""
    key = catalogue.keys.get(str(context.get("key_id")))
    if key is None:
        return dict(context)
    tier = key.metadata.get("account_tier") or key.metadata.get("tier")
    known = {"provider_id": key.provider_id, "region": key.metadata.get("region"), "tier": tier}
    return {**known, **context}


def _against(policy: Policy, rules: RuleSet, facts: Mapping[str, Any]) -> Iterator[str]:
    for matter, field in _FIELDS.items():
        if field in facts:
            yield from _names_against(policy, rules, matter, facts[field])
    cost, most = facts.get("cost"), rules.cost_max_nanousd
    if cost is not None and most is not None and _number(cost, "cost") * 10**9 > most:
        yield f"{told(policy)} allows {dollars(most)} dollars a request, and this costs {Dollars(str(cost))}"
    success, least = facts.get("success_rate"), rules.success_min
    if success is not None and least is not None and _number(success, "success_rate") < Decimal(str(least)):
        yield f"{told(policy)} asks for a success rate of {least}, and this has {success}"


def _names_against(policy: Policy, rules: RuleSet, matter: str, name: object) -> Iterator[str]:
    named = name if isinstance(name, str) else None
    denied, allowed = rules.denied.get(matter), rules.allowed.get(matter)
    if denied is not None and denied.has(named):
        yield f"{told(policy)} denies {matter[:-1]} {named}"
    elif isinstance(allowed, Names) and not allowed.has(named):
        yield f"{told(policy)} allows {matter} {allowed}, and this is {named or 'none'}"


def _number(value: object, field: str) -> Decimal:
    try:
        number = Decimal(str(value))
    except ArithmeticError:
        number = Decimal("NaN")
    if isinstance(value, bool) or not number.is_finite():
        raise InvalidRequestError("must be a finite number", field=f"context.{field}")
    return number
