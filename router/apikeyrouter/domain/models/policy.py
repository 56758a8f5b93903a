"""Policies: declared intent that routing obeys."""

import re
from collections.abc import Mapping
from typing import Any

from pydantic import Field, model_validator

from apikeyrouter.domain.models.budget import EnforcementMode
from apikeyrouter.domain.models.case_folding import CaseFolding
from apikeyrouter.domain.models.edge import EdgeModel
from apikeyrouter.domain.models.request_intent import NAME_LENGTH_MAX
from apikeyrouter.domain.models.system_error import InvalidRequestError

__all__ = ["RULES", "Policy", "PolicyImpact", "PolicyResult", "PolicyScope", "PolicyType", "ValidationResult"]

RULES = frozenset(
    {
        "action", "allowed_providers", "allowed_models", "allowed_keys", "allowed_regions", "allowed_tiers",
        "denied_providers", "denied_models", "denied_keys", "denied_regions", "denied_tiers",
        "preferred_models", "max_cost_per_request", "min_success_rate", "prefer_lowest_cost", "prefer_premium_tier",
        "fallback_to_reliable", "budget_limit", "budget_window", "objective", "time_windows",
    }
)  # fmt: skip
"""Names of rules that have an effect; `validate_policy` refuses others."""


class PolicyType(CaseFolding):
    """What a policy is about."""

    Routing = "routing"
    Cost = "cost"
    KeySelection = "key_selection"


class PolicyScope(CaseFolding):
    """Whom a policy applies to. `PerTeam` is another name for `Team`, and so on."""

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


class Policy(EdgeModel):
    """A named set of rules for a scope.

    `id` is made from the name where it is not given. `scope_value` is another name for `scope_id`. `rules` is a
    mapping or a list of mappings. A `hard` policy can be tightened by a request's own policy, never loosened.
    `priority`: the higher one wins where two contradict each other.
    """

    id: str = Field(min_length=1, max_length=NAME_LENGTH_MAX)
    name: str = Field(min_length=1, max_length=NAME_LENGTH_MAX)
    type: PolicyType = PolicyType.Routing
    scope: PolicyScope = PolicyScope.Global
    scope_id: str | None = Field(default=None, min_length=1, max_length=NAME_LENGTH_MAX)
    rules: dict[str, Any] | list[dict[str, Any]] = Field(default_factory=dict)
    enforcement: EnforcementMode = EnforcementMode.Hard
    priority: int = 0
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
        if self.scope is not PolicyScope.Global and self.scope_id is None:
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
    """What policies say to one request: allowed or not, which ones spoke, and the constraints that follow."""

    allowed: bool
    policy_ids: list[str] = Field(default_factory=list)
    constraints: dict[str, Any] = Field(default_factory=dict)
    reason: str = ""


class ValidationResult(EdgeModel):
    """Whether something declared is sound; each error names the field."""

    valid: bool
    errors: list[str] = Field(default_factory=list)
    warnings: list[str] = Field(default_factory=list)


class PolicyImpact(EdgeModel):
    """What a policy would change: the keys that were candidates, those that would be left, and why the others go."""

    keys_before: list[str] = Field(default_factory=list)
    keys_after: list[str] = Field(default_factory=list)
    excluded: dict[str, str] = Field(default_factory=dict)
    selected_before: str | None = None
    selected_after: str | None = None
