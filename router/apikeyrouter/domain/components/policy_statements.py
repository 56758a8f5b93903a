"""Statements: the rules of policies in the order of their precedence, and what each says of one option. Pure.

The narrower scope comes first, then the higher priority, then the smaller id: the order in which policies were
registered means nothing.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from apikeyrouter.domain.components.policy_rules import MATTERS, RuleSet
from apikeyrouter.domain.components.pool import Option
from apikeyrouter.domain.models.policy import Policy, PolicyEnforcement, PolicyScope

__all__ = ["COST", "OPTION_SCOPES", "RANKS", "REQUEST_RANK", "SUCCESS", "Statement", "made_of", "standing"]

RANKS = {
    PolicyScope.Default: 0, PolicyScope.Global: 1, PolicyScope.Provider: 2, PolicyScope.Model: 3, PolicyScope.Key: 4,
    PolicyScope.Team: 5, PolicyScope.Client: 6,
}  # fmt: skip
"""The higher, the narrower."""
REQUEST_RANK = 7
OPTION_SCOPES = frozenset({PolicyScope.Provider, PolicyScope.Model, PolicyScope.Key})
"""Scopes that speak of what may serve, not of who asks."""
COST, SUCCESS = "max_cost_per_request", "min_success_rate"
_WORDS = {"providers": "provider", "models": "model", "keys": "key", "regions": "region", "tiers": "tier"}


@dataclass(frozen=True, slots=True, eq=False)
class Statement:
    """One mapping of rules of one policy. `rank`: of its scope, or of a request's own policy."""

    policy: Policy
    rules: RuleSet
    rank: int
    index: int

    @property
    def order(self) -> tuple[int, int, str, int]:
        """Ascending from what prevails to what yields."""
        return -self.rank, -self.policy.priority, self.policy.id, self.index

    @property
    def hard(self) -> bool:
        """Whether narrower policies cannot replace it."""
        return self.policy.enforcement is PolicyEnforcement.Hard

    @property
    def of_options(self) -> bool:
        """Whether it speaks of some options only."""
        return self.policy.scope in OPTION_SCOPES

    @property
    def matters(self) -> Iterator[str]:
        """What it limits."""
        rules = self.rules
        yield from (matter for matter in MATTERS if matter in rules.allowed or matter in rules.denied)
        if rules.cost_max_nanousd is not None:
            yield COST
        if rules.success_min is not None:
            yield SUCCESS

    def concerns(self, option: Option, asked: str) -> bool:
        """Whether it speaks of this option of a request for the model `asked`."""
        scope, target = self.policy.scope, self.policy.scope_id
        if scope is PolicyScope.Provider:
            return option.provider.id == target
        if scope is PolicyScope.Model:
            return target in (option.model, asked)
        return scope is not PolicyScope.Key or option.key.id == target

    def against(self, matter: str, option: Option, asked: str) -> str:
        """What it has against an option in a matter of names, in words; "" for nothing."""
        names = tuple(name for name in names_of(option, matter, asked) if name is not None)
        word = _WORDS[matter]
        denied, allowed = self.rules.denied.get(matter), self.rules.allowed.get(matter)
        if denied is not None and denied.has(*names):
            return f"{told(self.policy)} denies {word} {' or '.join(dict.fromkeys(names))}"
        if allowed is not None and not allowed.has(*names):
            has = f"{word} {names[0]}" if names else f"no {word}"
            if matter == "keys":
                has = "none of them"
            return f"{told(self.policy)} allows {matter} {allowed}, and this is {has}"
        return ""


def names_of(option: Option, matter: str, asked: str) -> tuple[str | None, ...]:
    """What an option is called in a matter; a model by the name that was asked for, too."""
    if matter == "providers":
        return (option.provider.id,)
    if matter == "models":
        return (option.model, asked) if asked != option.model else (asked,)
    if matter == "keys":
        return (option.key.id,)
    return (tier_of(option),) if matter == "tiers" else (region_of(option),)


def tier_of(option: Option) -> str | None:
    """The tier that a key's metadata declares."""
    return _text(option, "account_tier") or _text(option, "tier")


def region_of(option: Option) -> str | None:
    """The region that a key's metadata declares."""
    return _text(option, "region")


def _text(option: Option, name: str) -> str | None:
    value = option.key.metadata.get(name)
    return value if isinstance(value, str) else None


def told(policy: Policy) -> str:
    """A policy in a sentence: its id and whom it is for."""
    return f"policy {policy.id!r} ({policy.scope.value}{f' {policy.scope_id}' if policy.scope_id else ''})"


def made_of(policy: Policy, rules: Iterable[RuleSet], *, of_request: bool = False) -> list[Statement]:
    """A policy's statements."""
    rank = REQUEST_RANK if of_request else RANKS[policy.scope]
    return [Statement(policy, one, rank, index) for index, one in enumerate(rules)]


def standing(statements: Iterable[Statement], option: Option, asked: str) -> Iterator[tuple[Statement, str]]:
    """(statement, matter) for everything that holds for an option, soft rules that were replaced left out.

    `statements` are in order. A soft rule yields to what a policy before it says in the same matter.
    """
    decided: dict[str, str] = {}
    for statement in statements:
        if not statement.concerns(option, asked):
            continue
        for matter in statement.matters:
            by = decided.setdefault(matter, statement.policy.id)
            if statement.hard or by == statement.policy.id:
                yield statement, matter
