"""What management answers: the models behind its description. Imported when somebody asks for that.

Every field is always there, unless it says otherwise, and there are no others. Nothing is validated by these while
answering: a test holds every answer against them.
"""

from datetime import date
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, create_model

from apikeyrouter.domain.models.accounting import LimitKind, Metric, SuspenseRule, UnpricedRule
from apikeyrouter.domain.models.api_key import APIKey, KeyState, StateTransition
from apikeyrouter.domain.models.budget import BudgetForecast, BudgetScope, TimeWindow
from apikeyrouter.domain.models.client import Client
from apikeyrouter.domain.models.policy import Policy, PolicyCounts, PolicyImpact
from apikeyrouter.domain.models.quota_state import LimitForecast
from apikeyrouter.domain.models.routing_decision import RoutingDecision
from apikeyrouter.infrastructure.config.stated import RowName
from apikeyrouter_proxy.admin_keys import AdminKey, RoleName
from apikeyrouter_proxy.webhooks import Webhook, WebhookEvent

Breaker = Literal["closed", "open", "half_open"]
OPTIONAL = "may be left out"
Absent = Annotated[str | None, Field(description=OPTIONAL)]
"""A field that is not always there."""


class Answer(BaseModel):
    """Something of ours: closed."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class Paged(Answer):
    """One page of a list."""

    total: int
    next_cursor: str | None


def without(model: type[BaseModel], name: str, *excluded: str, **added: Any) -> Any:
    """A model of what is shown of an entity: all but some fields, and some more."""
    told = {field: (info.annotation, ...) for field, info in model.model_fields.items() if field not in excluded}
    fields: dict[str, Any] = {**told, **{field: (of, ...) for field, of in added.items()}}
    return create_model(name, __base__=Answer, __doc__=model.__doc__, **fields)


# --- keys --------------------------------------------------------------------------------------------------------

KeyShown: Any = without(APIKey, "KeyShown", "encrypted_material", "unreadable")


class KeyPage(Paged):
    """Keys, oldest first."""

    keys: list[KeyShown]


class Transitions(Answer):
    """What became of a key, or of all, newest first."""

    transitions: list[StateTransition]


class Probed(Answer):
    """What the provider said of a key. `works` null: nothing."""

    key_id: str
    works: bool | None
    state: KeyState
    checked_at: AwareDatetime
    latency_ms: int
    message: str


# --- clients, admin keys, webhooks -------------------------------------------------------------------------------

ClientShown: Any = without(
    Client, "ClientShown", "token_sha256", "old_token_sha256", "created_at", created_at=AwareDatetime | None,
    source=Literal["api", "file"], budget_ids=list[str],
)  # fmt: skip
ClientMade: Any = create_model("ClientMade", __base__=ClientShown, token=(str, ...))
AdminKeyShown: Any = without(AdminKey, "AdminKeyShown", "token_sha256")
AdminKeyMade: Any = create_model("AdminKeyMade", __base__=AdminKeyShown, key=(str, ...))


class LastDelivery(Answer):
    """How the last try went, whichever worker made it. `status`: of the answer, null: there was none."""

    event_id: str
    delivered: bool
    status: int | None
    error: str | None
    attempt: int
    at: AwareDatetime


WebhookShown: Any = without(Webhook, "WebhookShown", "sealed_secret", last_delivery=LastDelivery | None)
WebhookMade: Any = create_model("WebhookMade", __base__=WebhookShown, secret=(str, ...))


class ClientPage(Paged):
    """Clients, by name."""

    clients: list[ClientShown]


class AdminKeyPage(Paged):
    """Admin keys, by name."""

    admin_keys: list[AdminKeyShown]


class WebhookPage(Paged):
    """Webhooks, by name."""

    webhooks: list[WebhookShown]


class EventSent(Answer):
    """The event that is on its way."""

    event_id: str


class Delivery(Answer):
    """One event for one webhook. `next_at`: when it is tried again."""

    event_id: str
    type: WebhookEvent
    state: Literal["waiting", "delivered", "given_up"]
    attempts: int
    status: int | None
    error: str | None
    created_at: AwareDatetime
    tried_at: AwareDatetime | None
    next_at: AwareDatetime | None


class DeliveryPage(Answer):
    """What waits, then what has ended, newest first."""

    deliveries: list[Delivery]
    next_cursor: str | None


# --- budgets, limits, providers, policies ------------------------------------------------------------------------


class BudgetCell(Answer):
    """What of a budget lies in one cell. `granted_usd`: what its home set aside for that cell; `free_usd`: what of it
    is neither spent nor held."""

    cell: str
    granted_usd: float
    settled_usd: float
    held_usd: float
    suspense_usd: float
    free_usd: float


class BudgetShown(Answer):
    """A budget and its books as of now, in dollars. `cells`: by cell, the home first; empty where there is one cell."""

    id: str
    name: str
    scope: BudgetScope
    scope_id: str | None
    limit_usd: float
    period: TimeWindow
    enforcement: Literal["hard", "soft"]
    timezone: str
    unpriced: UnpricedRule
    flat_usd: float | None
    suspense: SuspenseRule
    suspense_after_seconds: int
    source: Literal["code", "file", "policy"]
    settled_usd: float
    held_usd: float
    suspense_usd: float
    remaining_usd: float
    unpriced_usd: float
    unpriced_requests: int
    late_usd: float
    resets_at: AwareDatetime | None
    forecast: BudgetForecast | None
    cells: list[BudgetCell]


class BudgetPage(Paged):
    """Budgets, by id."""

    budgets: list[BudgetShown]


class LimitShown(Answer):
    """One limit of a lane. Spend is in dollars, everything else is counted. `learned`: from a provider's answers.

    `forecast`: null where nobody asked for it, and where nothing is known of its rate."""

    name: str
    counts: Metric
    kind: LimitKind
    capacity: float
    used: float
    remaining: float
    full_again_at: AwareDatetime | None
    learned: bool
    forecast: LimitForecast | None


class WhoAmI(Answer):
    """Whose admin key asks; `version`: of the service that answers."""

    name: str
    role: RoleName
    version: str


class LaneShown(Answer):
    """A lane: what its limits are, what of them is used. `rows`: as they were stated here. `cell`: where it is counted;
    null: there is one cell, or each has a lane of this name."""

    id: str
    kind: Literal["key", "quota_group", "provider", "client"]
    name: str
    models: str | None
    cell: str | None
    source: Literal["file", "api", "other"]
    rows: list[dict[RowName, int | float | str]] | None
    in_flight: int
    breaker: Breaker
    blocked_until: AwareDatetime | None
    requests_total: int
    failures_total: int
    limits: list[LimitShown]


class LanePage(Paged):
    """Lanes, by id."""

    limits: list[LaneShown]


class ProviderShown(Answer):
    """A provider, where it was declared, and how it fares. `breaker`: the state of its circuit."""

    id: str
    adapter: str | None
    base_url: str | None
    options: dict[str, Any]
    timeouts: dict[str, int | None]
    breaker_settings: dict[str, int | None]
    connections_max: int | None
    source: Literal["file", "api", "builtin", "code"]
    keys: int
    breaker: Breaker
    in_flight: int
    requests_total: int
    failures_total: int


class ProviderPage(Paged):
    """Providers, by id."""

    providers: list[ProviderShown]


PolicyShown: Any = without(
    Policy, "PolicyShown", source=Literal["api", "file", "client"], counts=PolicyCounts
)  # fmt: skip
PolicyTried: Any = without(PolicyImpact, "PolicyTried", cost_difference=str)


class PolicyPage(Paged):
    """Policies, by id."""

    policies: list[PolicyShown]


# --- decisions, reservations, usage ------------------------------------------------------------------------------


class Expected(Answer):
    """What the last attempt of a request was admitted for. `cost` null: it has no price."""

    input_tokens: int
    output_tokens: int
    cost: str | None


DecisionShown: Any = without(RoutingDecision, "DecisionShown", "candidates", "tried", expected=Expected | None)
DecisionExplained: Any = without(RoutingDecision, "DecisionExplained", text=str)


class DecisionPage(Paged):
    """Decisions, newest first."""

    decisions: list[DecisionShown]


class ScopeHeld(Answer):
    """What a budget holds. `due_at`: when its rule decides on what is in suspense."""

    id: str
    held_usd: float
    due_at: AwareDatetime | None


class LaneCharge(Answer):
    """What a limit was charged with."""

    lane: str
    limit: str
    amount: int


class SuspendedShown(Answer):
    """A reservation and everything it holds. `worker`: which one made it."""

    id: str
    worker: str
    state: Literal["open", "suspended"]
    created_at: AwareDatetime
    deadline: AwareDatetime
    lanes: list[str]
    held_usd: float
    scopes: list[ScopeHeld]
    charges: list[LaneCharge]


class CallShown(Answer):
    """What a reservation is held for. `attempt`: 1 is the request's first."""

    request_id: str
    model: str
    client: str | None
    attempt: int
    stream: bool


class ReservationShown(SuspendedShown):
    """An open reservation. `call` null: another worker holds it, for less than some seconds."""

    call: CallShown | None


class ReservationPage(Paged):
    """What is held right now."""

    reservations: list[ReservationShown]


class SuspensePage(Paged):
    """What is in suspense."""

    suspense: list[SuspendedShown]
    total_usd: float


class Resolved(Answer):
    """What became of suspended money."""

    id: str
    action: Literal["charge", "refund"]
    cost_usd: float


class UsageSum(Answer):
    """What was used."""

    requests: int
    served: int
    denied: int
    failed: int
    input_tokens: int
    output_tokens: int
    cached_input_tokens: int
    unpriced_requests: int
    estimated_requests: int
    cost_usd: float


class UsageRow(UsageSum):
    """The same of one client, team, key, provider, model, day: of what it was asked `by`. null: nobody's, or none."""

    client: Absent
    team: Absent
    key: Absent
    provider: Absent
    model: Absent
    day: Absent


class UsagePage(Paged):
    """What was used on those days. A row has what it was asked `by`."""

    usage: list[UsageRow]
    since: date
    until: date
    by: list[str]
    sum: UsageSum


# --- the whole ---------------------------------------------------------------------------------------------------


class AuditEntry(Answer):
    """One change: when, by whom, of what, from what to what. `entry`: its place in the journal; `role`: `process`
    where it was no admin key, but a signal or a file."""

    entry: str
    at: AwareDatetime
    actor: str
    role: RoleName | Literal["process"]
    action: str
    kind: str
    id: str
    details: dict[str, Any]


class AuditPage(Answer):
    """Changes, newest first."""

    audit: list[AuditEntry]
    next_cursor: str | None


class DriftShown(Answer):
    """A counter that differs from what reservations add up to."""

    where: str
    counter: str
    counted: int
    recomputed: int


class LedgerAudit(Answer):
    """Whether the books agree: of how many lanes and budgets."""

    lanes: int
    scopes: int
    drift: list[DriftShown]


class Reloaded(Answer):
    """What the configuration file has now."""

    keys: int
    clients: int
    budgets: int
    warnings: list[str]
