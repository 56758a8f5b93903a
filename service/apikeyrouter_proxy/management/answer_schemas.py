"""The schemas of what management answers: which models a route answers with, and how they are written."""

import json
from collections.abc import Iterable, Mapping, Set
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, models_json_schema

from apikeyrouter.domain.models.policy import ValidationResult
from apikeyrouter.domain.models.state_summary import StateSummary
from apikeyrouter_proxy.management.answers import (
    OPTIONAL,
    AdminKeyMade,
    AdminKeyPage,
    AdminKeyShown,
    AuditPage,
    BudgetPage,
    BudgetShown,
    ClientMade,
    ClientPage,
    ClientShown,
    DecisionExplained,
    DecisionPage,
    DeliveryPage,
    EventSent,
    KeyPage,
    KeyShown,
    LanePage,
    LaneShown,
    LedgerAudit,
    PolicyPage,
    PolicyShown,
    PolicyTried,
    Probed,
    ProviderPage,
    ProviderShown,
    Reloaded,
    ReservationPage,
    Resolved,
    SuspensePage,
    Transitions,
    UsagePage,
    WebhookMade,
    WebhookPage,
    WebhookShown,
    WhoAmI,
)
from apikeyrouter_proxy.management.fleet_answers import Findings, StoreShown, WorkerPage
from apikeyrouter_proxy.management.pool_answers import PoolPage
from apikeyrouter_proxy.management.transfer_answers import Exported, Imported, KeysImported

__all__ = ["ANSWERS", "answer_schemas"]

REF = "#/components/schemas/{model}"

ANSWERS: Mapping[tuple[str, str], tuple[Any, ...]] = {
    ("get", "/keys"): (KeyPage,),
    ("post", "/keys"): (KeyShown,),
    ("post", "/keys/import"): (KeysImported,),
    ("get", "/keys/{key_id}"): (KeyShown,),
    ("patch", "/keys/{key_id}"): (KeyShown,),
    ("get", "/keys/{key_id}/transitions"): (Transitions,),
    ("get", "/transitions"): (Transitions,),
    ("post", "/keys/{key_id}/rotate"): (KeyShown,),
    ("post", "/keys/{key_id}/probe"): (Probed,),
    ("get", "/clients"): (ClientPage,),
    ("post", "/clients"): (ClientMade, ClientShown),
    ("get", "/clients/{name}"): (ClientShown,),
    ("patch", "/clients/{name}"): (ClientShown,),
    ("post", "/clients/{name}/rotate"): (ClientMade,),
    ("get", "/budgets"): (BudgetPage,),
    ("post", "/budgets"): (BudgetShown,),
    ("get", "/budgets/{budget_id}"): (BudgetShown,),
    ("patch", "/budgets/{budget_id}"): (BudgetShown,),
    ("get", "/limits"): (LanePage,),
    ("post", "/limits"): (LaneShown,),
    ("get", "/limits/{lane_id}"): (LaneShown,),
    ("patch", "/limits/{lane_id}"): (LaneShown,),
    ("get", "/providers"): (ProviderPage,),
    ("post", "/providers"): (ProviderShown,),
    ("get", "/providers/{provider_id}"): (ProviderShown,),
    ("patch", "/providers/{provider_id}"): (ProviderShown,),
    ("get", "/policies"): (PolicyPage,),
    ("post", "/policies"): (PolicyShown,),
    ("get", "/policies/{policy_id}"): (PolicyShown,),
    ("patch", "/policies/{policy_id}"): (PolicyShown,),
    ("post", "/policies/validate"): (ValidationResult,),
    ("post", "/policies/dry-run"): (PolicyTried,),
    ("get", "/decisions"): (DecisionPage,),
    ("get", "/decisions/{request_id}"): (DecisionExplained,),
    ("post", "/decisions/dry-run"): (DecisionExplained,),
    ("get", "/reservations"): (ReservationPage,),
    ("get", "/suspense"): (SuspensePage,),
    ("post", "/suspense/{reservation_id}/resolve"): (Resolved,),
    ("get", "/usage"): (UsagePage,),
    ("get", "/state"): (StateSummary,),
    ("get", "/pool"): (PoolPage,),
    ("get", "/whoami"): (WhoAmI,),
    ("get", "/workers"): (WorkerPage,),
    ("get", "/store"): (StoreShown,),
    ("get", "/findings"): (Findings,),
    ("get", "/audit"): (AuditPage,),
    ("get", "/audit/ledger"): (LedgerAudit,),
    ("get", "/admin-keys"): (AdminKeyPage,),
    ("post", "/admin-keys"): (AdminKeyMade, AdminKeyShown),
    ("get", "/admin-keys/{name}"): (AdminKeyShown,),
    ("patch", "/admin-keys/{name}"): (AdminKeyShown,),
    ("post", "/admin-keys/{name}/rotate"): (AdminKeyMade,),
    ("get", "/webhooks"): (WebhookPage,),
    ("post", "/webhooks"): (WebhookMade, WebhookShown),
    ("get", "/webhooks/{name}"): (WebhookShown,),
    ("patch", "/webhooks/{name}"): (WebhookShown,),
    ("post", "/webhooks/{name}/test"): (EventSent,),
    ("get", "/webhooks/{name}/deliveries"): (DeliveryPage,),
    ("post", "/webhooks/{name}/deliveries/{event_id}/repeat"): (EventSent,),
    ("post", "/config/reload"): (Reloaded,),
    ("get", "/export"): (Exported,),
    ("post", "/import"): (Imported,),
}
"""By method and path (below `/api/v1`, or without it): what is answered; of several, whichever it is. DELETE answers
nothing."""


class _Generator(GenerateJsonSchema):
    """Whatever has a field has it always, but for what says otherwise."""

    def field_is_required(self, field: Any, total: bool) -> bool:
        updates = field.get("metadata", {}).get("pydantic_js_updates") or {}
        return not field.get("serialization_exclude") and updates.get("description") != OPTIONAL


def answer_schemas(*, taken: Set[str] = frozenset()) -> tuple[dict[tuple[str, str], Any], dict[str, Any]]:
    """The schema of every answer, by method and path; and the components that they name. `taken`: names of others."""
    models = dict.fromkeys(model for told in ANSWERS.values() for model in told)
    named, found = models_json_schema(
        [(model, "serialization") for model in models], ref_template=REF, schema_generator=_Generator
    )
    refs = {model: schema for (model, _), schema in named.items()}
    answers = {"/".join(route): _any_of(refs[model] for model in told) for route, told in ANSWERS.items()}
    text = json.dumps([answers, found["$defs"]])
    for name in taken & found["$defs"].keys():  # what may be sent has fields that may be left out
        text = text.replace(f'"{REF.format(model=name)}"', f'"{REF.format(model=name)}Shown"')
    answers, components = json.loads(text)
    return (
        {route: answers["/".join(route)] for route in ANSWERS},
        {f"{name}Shown" if name in taken else name: schema for name, schema in components.items()},
    )


def _any_of(schemas: Iterable[dict[str, Any]]) -> dict[str, Any]:
    told = list(schemas)
    return told[0] if len(told) == 1 else {"anyOf": told}
