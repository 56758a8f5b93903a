"""Policies: declared intent that routing obeys."""

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from pydantic import Field, model_validator

from apikeyrouter.domain.models.case_folding import CaseFolding
from apikeyrouter.domain.models.edge import EdgeModel
from apikeyrouter.domain.models.money import Dollars, Money
from apikeyrouter.domain.models.request_intent import NAME_LENGTH_MAX
from apikeyrouter.domain.models.system_error import InvalidRequestError

__all__ = [
    "RULES",
    "Policy",
    "PolicyConflict",
    "PolicyCounts",
    "PolicyEnforcement",
    "PolicyImpact",
    "PolicyResult",
    "PolicyScope",
    "PolicyType",
    "ValidationResult",
]

PRIORITY_MAX = 1_000_000
RULES = frozenset(
    {
        "action", "allowed_providers", "allowed_models", "allowed_keys", "allowed_regions", "allowed_tiers",
        "denied_providers", "denied_models", "denied_keys", "denied_regions", "denied_tiers",
        "preferred_models", "max_cost_per_request", "min_success_rate", "prefer_lowest_cost", "prefer_premium_tier",
        "tier_ranks", "fallback_to_reliable", "budget_limit", "budget_window", "objective", "time_windows",
    }
)  # fmt: skip
"""Names of rules that have an effect; `validate_policy` refuses others."""


class PolicyType(CaseFolding):
    """What a policy is about."""

    Routing = "routing"
    Cost = "cost"
    KeySelection = "key_selection"


class PolicyScope(CaseFolding):
    """Whom a policy applies to. `PerTeam` is another name for `Team`, and so on.

    From the widest to the narrowest: default, global, provider, model, key, team, client, and above them all the policy
    that a request brings along. Those of a provider, model or key speak of what may serve; the others of who asks.
    """

    Default = "default"
    Global = "global"
    Provider = "provider"
    Model = "model"
    Key = "key"
    Team = "team"
    Client = "client"
    PerProvider = "provider"
    PerModel = "model"
    PerKey = "key"
    PerTeam = "team"
    PerClient = "client"


class PolicyEnforcement(CaseFolding):
    """How far a policy binds.

    Hard: its limits always hold; narrower policies and the request's own may tighten them, never loosen. Soft: a
    default. A narrower policy on the same matter replaces it, and where it would leave nothing to serve a request, the
    request is served, marked and counted. Shadow: nobody is bound; what it would have done is counted.
    """

    Hard = "hard"
    Soft = "soft"
    Shadow = "shadow"


class Policy(EdgeModel):
    """A named set of rules for a scope.

    `id` is made from the name where it is not given. `scope_value` is another name for `scope_id`. `rules` is a
    mapping or a list of mappings (`docs/policies.md` has them all); rules of one mapping hold in its `time_windows`.
    `priority`: of two policies of one scope that contradict each other, the higher one wins, then the smaller id.
    """

    id: str = Field(min_length=1, max_length=NAME_LENGTH_MAX)
    name: str = Field(min_length=1, max_length=NAME_LENGTH_MAX)
    type: PolicyType = PolicyType.Routing
    scope: PolicyScope = PolicyScope.Global
    scope_id: str | None = Field(default=None, min_length=1, max_length=NAME_LENGTH_MAX)
    rules: dict[str, Any] | list[dict[str, Any]] = Field(default_factory=dict)
    enforcement: PolicyEnforcement = PolicyEnforcement.Hard
    priority: int = Field(default=0, ge=-PRIORITY_MAX, le=PRIORITY_MAX)
    enabled: bool = True

    def __init__(self, /, **data: Any) -> None:  # any: scope_value is a name too, and id may be left out
        super().__init__(**data)

    @model_validator(mode="before")
    @classmethod
    def _other_names(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        given = dict(data)
        value = given.pop("scope_value", None)
        if value is not None and given.setdefault("scope_id", value) != value:
            raise InvalidRequestError("contradicts scope_id", field="scope_value")
        if "id" not in given and isinstance(given.get("name"), str):
            given["id"] = re.sub(r"[^a-z0-9]+", "-", given["name"].casefold()).strip("-") or "policy"
        given.setdefault("name", given.get("id"))
        return given

    @model_validator(mode="after")
    def _scope_is_whole(self) -> "Policy":
        if self.scope not in (PolicyScope.Default, PolicyScope.Global) and self.scope_id is None:
            raise InvalidRequestError(f"is required for scope {self.scope.value!r}", field="scope_id")
        return self

    @property
    def scope_value(self) -> str | None:
        """The same as `scope_id`."""
        return self.scope_id

    @property
    def rule_list(self) -> list[dict[str, Any]]:
        """The rules as a list, whichever way they were given."""
        return [self.rules] if isinstance(self.rules, dict) else self.rules


class PolicyResult(EdgeModel):
    """What a policy says to one request: allowed or not, what it demands, and why in words.

    `policy_ids`: those that spoke (none: it does not apply). `constraints`: its rules that are in force.
    """

    allowed: bool
    policy_ids: list[str] = Field(default_factory=list)
    constraints: dict[str, Any] = Field(default_factory=dict)
    reason: str = ""


class ValidationResult(EdgeModel):
    """Whether something declared is sound; each error names the field."""

    valid: bool
    errors: list[str] = Field(default_factory=list)
    warnings: list[str] = Field(default_factory=list)


class PolicyConflict(EdgeModel):
    """Two policies that contradict each other in one matter, which of them holds, and why in words.

    `holds` None: both hold, and what both allow is left (nothing, when they have nothing in common).
    """

    policy_ids: tuple[str, str]
    matter: str
    holds: str | None
    explanation: str


class PolicyCounts(EdgeModel):
    """What a policy has done in the whole fleet since it was configured, in requests.

    `applied`: it was looked at. `denied`: it refused them, alone or with others. For a shadow policy
    `would_have_denied` and `would_have_moved` (to another key than the one that served); for a soft one `yielded`:
    served although it speaks against it, because nothing else was left.
    """

    applied: int = 0
    denied: int = 0
    would_have_denied: int = 0
    would_have_moved: int = 0
    yielded: int = 0


class PolicyImpact(EdgeModel):
    """What a policy would change.

    For the request of the context: the keys that were candidates, those that would be left, why the others go, and
    which one would be tried first. For the recent requests (`requests` of them; of every process on the store where
    `all_processes`, else of this one): how many would be refused, or served by another key, and what all of them did
    cost and would have cost, in dollars. Costs are of the requests whose price is known before and after. `counts`:
    what the configured policy of the same id has done so far, in the whole fleet.
    """

    keys_before: list[str] = Field(default_factory=list)
    keys_after: list[str] = Field(default_factory=list)
    excluded: dict[str, str] = Field(default_factory=dict)
    selected_before: str | None = None
    selected_after: str | None = None
    requests: int = 0
    all_processes: bool = False
    would_be_refused: int = 0
    would_be_moved: int = 0
    refused_requests: list[str] = Field(default_factory=list)
    cost_before: Money = Decimal(0)
    cost_after: Money = Decimal(0)
    counts: PolicyCounts = Field(default_factory=PolicyCounts)

    @property
    def cost_difference(self) -> Decimal:
        """What the recent requests would have cost more (less, when negative)."""
        return Dollars(self.cost_after - self.cost_before)
