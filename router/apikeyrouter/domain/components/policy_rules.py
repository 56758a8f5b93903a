"""Rules of policies, read: what each says in types, and every complaint about what makes no sense. Pure."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from fnmatch import fnmatchcase
from typing import Any

from apikeyrouter.domain.components.policy_windows import Window, read_window
from apikeyrouter.domain.models.budget import LIMIT_DOLLARS_MAX, TimeWindow
from apikeyrouter.domain.models.policy import RULES, Policy
from apikeyrouter.domain.models.routing_decision import RoutingObjective
from apikeyrouter.domain.models.system_error import InvalidRequestError

__all__ = ["ACTIONS", "MATTERS", "TIER_RANKS", "Names", "RuleSet", "read_policy", "read_rules"]

MATTERS = ("providers", "models", "keys", "regions", "tiers")
"""What can be allowed and denied."""
TIER_RANKS = ("enterprise", "premium", "scale", "pro", "plus", "standard", "pay-as-you-go", "basic", "free")
"""Tiers from the best down, unless a `tier_ranks` rule says otherwise; unknown ones rank before the last."""
ACTIONS = ("prefer_lowest_cost", "prefer_premium_tier", "fallback_to_reliable")
"""Rules that `action` may name instead of setting them to true."""
LIST_MAX = 10_000
"""Most names in one list."""


@dataclass(frozen=True, slots=True)
class Names:
    """Names and patterns (`gpt-4*`). Regions and tiers are compared without case."""

    names: frozenset[str]
    patterns: tuple[str, ...] = ()
    folds: bool = False

    @classmethod
    def of(cls, told: Iterable[str], *, folds: bool) -> "Names":
        """What a list of names says."""
        texts = [text.casefold() if folds else text for text in told]
        patterns = tuple(sorted({text for text in texts if "*" in text}))
        return cls(frozenset(text for text in texts if "*" not in text), patterns, folds)

    def has(self, *candidates: str | None) -> bool:
        """Whether one of the candidates is meant."""
        for candidate in candidates:
            if candidate is None:
                continue
            name = candidate.casefold() if self.folds else candidate
            if name in self.names or any(fnmatchcase(name, pattern) for pattern in self.patterns):
                return True
        return False

    def __str__(self) -> str:
        return ", ".join([*sorted(self.names), *self.patterns]) or "nothing"


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleSet:
    """One mapping of rules. None: it says nothing about that. Money in nano-dollars."""

    allowed: Mapping[str, Names] = field(default_factory=dict)
    denied: Mapping[str, Names] = field(default_factory=dict)
    preferred_models: tuple[str, ...] | None = None
    cost_max_nanousd: int | None = None
    success_min: float | None = None
    lowest_cost: bool | None = None
    premium_tier: bool | None = None
    tier_ranks: tuple[str, ...] | None = None
    fallback_to_reliable: bool | None = None
    budget_limit: Decimal | None = None
    budget_window: TimeWindow = TimeWindow.Daily
    objective: RoutingObjective | None = None
    windows: tuple[Window, ...] = ()


def read_policy(policy: Policy) -> tuple[RuleSet, ...]:
    """A policy's rules. Raises InvalidRequestError with the first complaint."""
    found = []
    for index, told in enumerate(policy.rule_list):
        rules, errors = read_rules(told, at=f"rules[{index}]" if isinstance(policy.rules, list) else "rules")
        if errors:
            field_, _, reason = errors[0].partition(": ")
            raise InvalidRequestError(reason, field=field_)
        found.append(rules)
    return tuple(found)


def read_rules(told: Mapping[str, Any], *, at: str) -> tuple[RuleSet, list[str]]:
    """One mapping of rules, and every complaint as `<path>: <what is wrong>`."""
    reader = _Reader(told, at)
    rules = reader.read()
    return rules, reader.errors


class _Reader:
    """Reads one mapping; complaints are collected, so that a person sees all of them at once."""

    def __init__(self, told: Mapping[str, Any], at: str) -> None:
        self._told, self._at = told, at
        self.errors: list[str] = []

    def read(self) -> RuleSet:
        """The rules, without those that make no sense."""
        for name in self._told:
            if name not in RULES:
                self._refuse(name, f"is no rule; there are {', '.join(sorted(RULES))}")
        actions = self._actions()
        money = self._number("max_cost_per_request", most=LIMIT_DOLLARS_MAX)
        success = self._number("min_success_rate", most=Decimal(1))
        return RuleSet(
            allowed=self._lists("allowed"), denied=self._lists("denied"),
            preferred_models=self._names("preferred_models"),
            cost_max_nanousd=None if money is None else int(money * 10**9),
            success_min=None if success is None else float(success),
            lowest_cost=self._flag("prefer_lowest_cost", actions), premium_tier=self._flag(ACTIONS[1], actions),
            fallback_to_reliable=self._flag("fallback_to_reliable", actions),
            tier_ranks=self._names("tier_ranks", folds=True), budget_limit=self._budget_limit(),
            budget_window=self._budget_window(), objective=self._objective(), windows=self._windows(),
        )  # fmt: skip

    def _refuse(self, name: str, reason: str) -> None:
        self.errors.append(f"{self._at}.{name}: {reason}")

    def _lists(self, verb: str) -> dict[str, Names]:
        found = {}
        for matter in MATTERS:
            names = self._names(f"{verb}_{matter}")
            if names is not None:
                found[matter] = Names.of(names, folds=matter in ("regions", "tiers"))
        return found

    def _names(self, name: str, *, folds: bool = False) -> tuple[str, ...] | None:
        told = self._told.get(name)
        if told is None:
            return None
        if not isinstance(told, list | tuple | set | frozenset) or not all(
            isinstance(one, str) and one for one in told
        ):
            self._refuse(name, "must be a list of names")
            return None
        if len(told) > LIST_MAX:
            self._refuse(name, f"must have at most {LIST_MAX} names")
            return None
        names = sorted(told) if isinstance(told, set | frozenset) else told
        return tuple(dict.fromkeys(one.casefold() if folds else one for one in names))

    def _number(self, name: str, *, most: Decimal) -> Decimal | None:
        told = self._told.get(name)
        if told is None:
            return None
        try:
            number = Decimal("NaN") if isinstance(told, bool) else Decimal(str(told))
        except ArithmeticError:
            number = Decimal("NaN")
        if not number.is_finite() or not 0 <= number <= most:
            self._refuse(name, f"must be a number between 0 and {most}")
            return None
        return number

    def _actions(self) -> frozenset[str]:
        told = self._told.get("action")
        named = [told] if isinstance(told, str) else [] if told is None else told
        if not isinstance(named, list | tuple) or any(one not in ACTIONS for one in named):
            self._refuse("action", f"must be one of {', '.join(ACTIONS)}, or a list of them")
            return frozenset()
        return frozenset(named)

    def _flag(self, name: str, actions: frozenset[str]) -> bool | None:
        told = self._told.get(name)
        if told is None:
            return True if name in actions else None
        if not isinstance(told, bool):
            self._refuse(name, "must be true or false")
            return None
        if not told and name in actions:
            self._refuse(name, f"contradicts action: {name}")
        return told

    def _budget_limit(self) -> Decimal | None:
        limit = self._number("budget_limit", most=LIMIT_DOLLARS_MAX)
        if limit is not None and limit == 0:
            self._refuse("budget_limit", "must be above 0")
            return None
        if limit is None and "budget_window" in self._told and "budget_limit" not in self._told:
            self._refuse("budget_window", "goes with budget_limit")
        return limit

    def _budget_window(self) -> TimeWindow:
        told = self._told.get("budget_window", TimeWindow.Daily)
        found = told if isinstance(told, TimeWindow) else TimeWindow.lookup(told) if isinstance(told, str) else None
        if found is None:
            self._refuse("budget_window", f"must be one of {', '.join(TimeWindow)}")
        return found or TimeWindow.Daily

    def _objective(self) -> RoutingObjective | None:
        told = self._told.get("objective")
        if told is None:
            return None
        try:
            return RoutingObjective.read(told)
        except InvalidRequestError as exc:
            self._refuse(f"objective.{exc.field}" if exc.field else "objective", exc.reason)
            return None

    def _windows(self) -> tuple[Window, ...]:
        told = self._told.get("time_windows")
        if told is None:
            return ()
        listed = [told] if isinstance(told, Mapping) else told
        if not isinstance(listed, list | tuple) or not listed:
            self._refuse("time_windows", "must be a window, or a list of them")
            return ()
        return tuple(self._each("time_windows", listed, read_window))

    def _each(self, name: str, listed: Iterable[object], read: Callable[[object], Window]) -> Iterable[Window]:
        for index, one in enumerate(listed):
            try:
                yield read(one)
            except ValueError as exc:
                self._refuse(f"{name}[{index}]", str(exc))
