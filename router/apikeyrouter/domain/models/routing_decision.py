"""What routing should optimise for, and what it decided."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from pydantic import AwareDatetime, Field, field_validator

from apikeyrouter.domain.models.case_folding import CaseFolding, fold
from apikeyrouter.domain.models.edge import EdgeModel
from apikeyrouter.domain.models.system_error import InvalidRequestError

__all__ = [
    "CandidateVerdict",
    "Explanation",
    "ObjectiveType",
    "RoutingDecision",
    "RoutingObjective",
    "RoutingStrategy",
    "Tried",
]


class ObjectiveType(CaseFolding):
    """What can be optimised. `Speed` is another name for `Latency`."""

    Cost = "cost"
    Reliability = "reliability"
    Fairness = "fairness"
    Quality = "quality"
    Latency = "latency"
    Speed = "latency"


_FRACTIONS = ("min_reliability", "min_quality")
_AMOUNTS = ("max_cost_per_request", "max_latency_ms")
CONSTRAINTS = frozenset((*_FRACTIONS, *_AMOUNTS))
"""Hard limits an objective may set: fractions 0 … 1, dollars, milliseconds."""


_STRATEGY = re.compile(r"[a-z][a-z0-9_-]{0,63}")
_strategies: dict[str, str] = {}
"""Names of registered strategies, by their folded form. A name is known to the process, its scorer to one router."""


def declare_strategy(name: object) -> str:
    """Make a strategy's name known, so that objectives may name it; the name as it is compared.

    Errors: InvalidRequestError when it is no name, or that of an objective that is built in.
    """
    if not isinstance(name, str) or not _STRATEGY.fullmatch(name.lower()):
        raise InvalidRequestError("must be 1 to 64 letters, digits, - or _, a letter first", field="name")
    if ObjectiveType.lookup(name) is not None:
        raise InvalidRequestError(f"{name!r} is built in", field="name")
    return _strategies.setdefault(fold(name), name.lower())


def known_objective(name: object) -> str | None:
    """The objective that a text names, in any case: an ObjectiveType, or a strategy's name; None: there is none."""
    if not isinstance(name, str):
        return None
    return ObjectiveType.lookup(name) or _strategies.get(fold(name))


def _objective(name: object, *, field: str = "") -> str:
    found = known_objective(name)
    if found is None:
        known = ", ".join((*ObjectiveType, *_strategies.values()))
        raise InvalidRequestError(f"must be one of {known} (or speed)", field=field)
    return found


class RoutingObjective(EdgeModel):
    """An objective with what breaks its ties and what it must not violate.

    `primary` and `secondary` are ObjectiveTypes after construction, or names of registered strategies; plain strings
    in any case are accepted, and one string for `secondary`. `weights` are per objective, ≥ 0 and not all 0: they
    combine the measures they name, and what has none breaks ties. `constraints` exclude candidates: `min_reliability`
    and `min_quality` (0 … 1), `max_cost_per_request` (dollars), `max_latency_ms`. Unknown names are refused.
    """

    primary: str = ObjectiveType.Fairness
    secondary: list[str] = Field(default_factory=list)
    constraints: dict[str, Any] = Field(default_factory=dict)
    weights: dict[str, float] = Field(default_factory=dict)

    def __init__(
        self,
        primary: str = ObjectiveType.Fairness,
        secondary: str | list[str] | None = None,
        constraints: Mapping[str, Any] | None = None,
        weights: Mapping[str, float] | None = None,
        **unknown: Any,
    ) -> None:
        super().__init__(
            primary=primary,
            secondary=[] if secondary is None else secondary,
            constraints={} if constraints is None else constraints,
            weights={} if weights is None else weights,
            **unknown,
        )

    @field_validator("primary", mode="plain")
    @classmethod
    def _known(cls, value: object) -> str:
        return _objective(value)

    @field_validator("secondary", mode="plain")
    @classmethod
    def _one_or_many(cls, value: object) -> list[str]:
        names = [value] if isinstance(value, str) else value
        if not isinstance(names, list | tuple):
            raise InvalidRequestError("must be an objective or a list of objectives")
        return [_objective(name) for name in names]

    @field_validator("weights", mode="after")
    @classmethod
    def _known_weights(cls, value: dict[str, float]) -> dict[str, float]:
        for name, weight in value.items():
            if not 0 <= weight < float("inf"):
                raise InvalidRequestError("must be a finite number, 0 or more", field=name)
        if value and not any(value.values()):
            raise InvalidRequestError("must not all be 0")
        named = {str(_objective(name, field=name)): weight for name, weight in value.items()}
        if len(named) < len(value):
            raise InvalidRequestError("must not name an objective twice")
        return named

    @field_validator("constraints", mode="after")
    @classmethod
    def _known_constraints(cls, value: dict[str, Any]) -> dict[str, Any]:
        return {name: _constraint(name, bound) for name, bound in value.items()}

    @classmethod
    def read(cls, value: "RoutingObjective | Mapping[str, Any] | str | None") -> "RoutingObjective":
        """Whatever `route(objective=…)` takes; None is fairness. Errors: InvalidRequestError."""
        if value is None:
            return cls()
        if isinstance(value, str):
            return cls(primary=value)
        return cls.parse(value)


def _constraint(name: str, bound: object) -> Decimal | float:
    if name not in CONSTRAINTS:
        raise InvalidRequestError(f"is not a known constraint ({', '.join(sorted(CONSTRAINTS))})", field=name)
    if isinstance(bound, bool) or not isinstance(bound, int | float | Decimal | str):
        raise InvalidRequestError("must be a number", field=name)
    try:
        number = Decimal(str(bound))
    except ArithmeticError:
        raise InvalidRequestError("must be a number", field=name) from None
    if not number.is_finite() or number < 0 or (name in _FRACTIONS and number > 1):
        raise InvalidRequestError("must be between 0 and 1" if name in _FRACTIONS else "must be 0 or more", field=name)
    return number if name == "max_cost_per_request" else float(number)


class CandidateVerdict(EdgeModel):
    """How one candidate fared, with the numbers that decided it.

    `outcome`: chosen, outranked, denied (by the ledger), excluded (by a constraint), failed (an attempt before this one
    did), out (cooling, or its breaker is open). `score`: 1 is the best of these candidates, half as good is 0.5; None
    where it was not compared. `parts`: its measures, in the units of their names, and its weight. `turn`: its place
    among equals, 0 is next. `place`: of its target in an alias, lower first. Of a denial: `binding` (lane or budget),
    `limit`, and `retry_at`, None where waiting does not help. `reason` says it in words, "" for the chosen one.
    """

    key_id: str
    provider_id: str
    model: str = ""
    outcome: str = ""
    score: float | None = None
    parts: dict[str, float] = Field(default_factory=dict)
    place: int = 0
    turn: int | None = None
    binding: str = ""
    limit: str = ""
    retry_at: AwareDatetime | None = None
    reason: str = ""


def _now() -> datetime:
    return datetime.now(UTC)


class Tried(EdgeModel):
    """One attempt of a request: on which key, what it was admitted for, how long it took, how it ended.

    `failure` "" : it succeeded. `worker`: the tag of the process that made it (`/api/v1/workers`). Times in
    microseconds: `reserve_us` until capacity was held, `upstream_us` at the provider. `cost` None: not known;
    `expected_cost` None: it has no price.
    """

    key_id: str
    provider_id: str
    model: str = ""
    reservation_id: str = ""
    worker: str = ""
    failure: str = ""
    status: int = 0
    probe: bool = False
    reserve_us: int = 0
    upstream_us: int = 0
    expected_input_tokens: int = 0
    expected_output_tokens: int = 0
    expected_cost: Decimal | None = None
    cost: Decimal | None = None
    cost_estimated: bool = False


class RoutingDecision(EdgeModel):
    """Why a request went where it went; its numbers suffice to recompute the choice (`docs/routing.md`).

    `selected_key_id` "" : nothing was held, or the request was refused. `confidence` 0 … 1: it halves with every ten
    seconds of the snapshot's age, and with no margin to the runner-up. `hold_ids` are the reservations (hex), one per
    attempt. `snapshot_age_ms` is how old the lane states were that ranked the candidates. `outcome`: pending, ok, or a
    failure's category; "" where nothing was to be sent. `tried`: each attempt. Times of the whole are microseconds:
    `waited_us` in the queue, `overhead_us` here, `first_token_us` None where there was none. `input_tokens`,
    `output_tokens` and `cost` are what was used, None: not known.
    """

    id: str
    request_id: str = ""
    selected_key_id: str
    selected_provider_id: str = ""
    model: str = ""
    objective: RoutingObjective = Field(default_factory=RoutingObjective)
    explanation: str = ""
    confidence: float = Field(default=1.0, ge=0, le=1, allow_inf_nan=False)
    timestamp: AwareDatetime = Field(default_factory=_now)
    candidates: list[CandidateVerdict] = Field(default_factory=list)
    policy_ids: list[str] = Field(default_factory=list)
    hold_ids: list[str] = Field(default_factory=list)
    snapshot_age_ms: int = Field(default=0, ge=0)
    attempts: int = Field(default=1, ge=0)
    outcome: str = ""
    client: str | None = None
    team: str | None = None
    stream: bool = False
    tried: list[Tried] = Field(default_factory=list)
    waited_us: int = Field(default=0, ge=0)
    upstream_us: int = Field(default=0, ge=0)
    first_token_us: int | None = None
    overhead_us: int = Field(default=0, ge=0)
    total_us: int = Field(default=0, ge=0)
    input_tokens: int | None = None
    output_tokens: int | None = None
    cost: Decimal | None = None
    cost_estimated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """A decision with its words; `str()` gives them."""

    decision: RoutingDecision
    text: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingStrategy:
    """A way to rank candidates, under the name by which an objective asks for it."""

    name: str
    description: str
    builtin: bool = True
