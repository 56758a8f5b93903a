"""Export and import: everything that was configured through the API, as one document. A backup, and its way back.

Counters are in neither: what was spent and used stays in the ledger as it is.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence, Set
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import Field

from apikeyrouter.domain.components.policy_checks import check_policy
from apikeyrouter.domain.interfaces.state_store import KEYS_PAGE, StateQuery
from apikeyrouter.domain.models.api_key import APIKey, KeyChange
from apikeyrouter.domain.models.budget import Budget
from apikeyrouter.domain.models.client import Client
from apikeyrouter.domain.models.edge import EdgeModel
from apikeyrouter.domain.models.policy import Policy
from apikeyrouter.domain.models.system_error import ApiKeyRouterError, InvalidRequestError
from apikeyrouter.infrastructure.config.stated import StatedLimits, StatedProvider
from apikeyrouter.serving.providers import adapters_of
from apikeyrouter_proxy.access import Refused
from apikeyrouter_proxy.admin_keys import AdminKey
from apikeyrouter_proxy.management.desk import AdminDesk, Desk, Input
from apikeyrouter_proxy.webhooks import Webhook

__all__ = ["routes"]

VERSION = 1
SECTION_MAX = 100_000
COMPLAINTS_MAX = 50

routes = APIRouter()
Section = Annotated[list[dict[str, Any]], Field(max_length=SECTION_MAX)]


class Document(Input):
    """What an export gives. Without secrets, keys, clients, admin keys and webhooks cannot be made again."""

    version: Literal[1]
    exported_at: str | None = None
    secrets: bool = False
    providers: Section = Field(default_factory=list)
    keys: Section = Field(default_factory=list)
    limits: Section = Field(default_factory=list)
    clients: Section = Field(default_factory=list)
    budgets: Section = Field(default_factory=list)
    policies: Section = Field(default_factory=list)
    admin_keys: Section = Field(default_factory=list)
    webhooks: Section = Field(default_factory=list)


class Import(Input):
    """A document to take in. `replace`: where there is such a one already, the document's goes in its place; else what
    there is stays. `dry_run`: only say what would be done."""

    document: Document
    replace: bool = False
    dry_run: bool = False


async def _nothing() -> None:
    """Nothing is left to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    """One thing to take in, from this `place` of the document. A `key` is written with those beside it."""

    kind: str
    id: str
    exists: bool
    write: Callable[[], Awaitable[object]] = _nothing
    key: APIKey | None = None
    place: tuple[str, int] = ("", 0)


@routes.get("/export")
async def export(
    desk: AdminDesk,
    secrets: Annotated[bool, Query(description="Key material as ciphertext, tokens as hashes: a backup")] = False,
) -> dict[str, Any]:
    """Everything that was made through the API or in code. What the configuration file declares is in the file."""
    router, config = desk.router, desk.runtime.config
    of_file = {key.id for key in config.keys}
    keys = [key for key in await router.key_manager.list_keys() if key.id not in of_file]
    rules = router.catalogue.budget_rules()
    budgets = [one for one in await router.cost_controller.list_budgets() if rules[one.id].source == "code"]
    declared = {policy.id for policy in (*config.policies, *router.client_policies())}
    policies = [policy for policy in await router.policy_engine.list_policies() if policy.id not in declared]
    clients = list((await router.list_clients()).values())
    await desk.note("config", "export", "exported", {"secrets": secrets})
    return {
        "version": VERSION, "exported_at": datetime.now(UTC).isoformat(), "secrets": secrets,
        "providers": [
            {**one.model_dump(mode="json"), "connections_max": one.connections_max}
            for one in router.stated_providers.values()
        ],
        "keys": [_told(key, {"encrypted_material"}, secrets) for key in keys],
        "limits": [one.model_dump(mode="json") for one in router.stated_limits.values()],
        "clients": [_told(one, {"token_sha256", "old_token_sha256", "old_token_until"}, secrets) for one in clients],
        "budgets": [budget.model_dump(mode="json", exclude={"current_spending", "resets_at"}) for budget in budgets],
        "policies": [policy.model_dump(mode="json") for policy in policies],
        "admin_keys": [_told(key, {"token_sha256"}, secrets) for key in desk.runtime.admin_keys.named.values()],
        "webhooks": [_told(hook, {"sealed_secret"}, secrets) for hook in desk.runtime.webhooks.named.values()],
    }  # fmt: skip


def _told(entity: EdgeModel, secret: set[str], secrets: bool) -> dict[str, Any]:
    return entity.model_dump(mode="json", exclude=None if secrets else secret)


@routes.post("/import")
async def take_in(desk: AdminDesk, told: Import) -> dict[str, Any]:
    """Take a document in: checked as a whole first, and nothing is done where anything is wrong.

    A failure of the store in the middle leaves what was done until then; the same import completes it.
    """
    async with desk.turn():
        steps = await _steps(desk, told.document)
        outcomes = ["made" if not step.exists else "replaced" if told.replace else "kept" for step in steps]
        counts: dict[str, Counter[str]] = {name: Counter() for name in ("made", "replaced", "kept")}
        for step, outcome in zip(steps, outcomes, strict=True):
            counts[outcome][step.kind] += 1
        done = {**{name: dict(count) for name, count in counts.items()}, "dry_run": told.dry_run}
        if not told.dry_run:
            await _write(desk, [step for step, outcome in zip(steps, outcomes, strict=True) if outcome != "kept"])
            await desk.note("config", "import", "imported", done)
    entries = [
        {"section": step.place[0], "index": step.place[1], "id": step.id, "outcome": outcome}
        for step, outcome in zip(steps, outcomes, strict=True)
    ]
    return {"entries": entries, **done}


async def _write(desk: Desk, steps: Iterable[_Step]) -> None:
    """Do what is to be done, in order; keys a page at a time."""
    keys: list[APIKey] = []
    for step in steps:
        if step.key is not None:
            keys.append(step.key)
            continue
        await _put_keys(desk, keys)
        keys = []
        await step.write()
    await _put_keys(desk, keys)


async def _put_keys(desk: Desk, keys: Sequence[APIKey]) -> None:
    def put(key: APIKey, _: APIKey | None) -> KeyChange:
        return KeyChange(key=key)

    for start in range(0, len(keys), KEYS_PAGE):
        page = {key.id: key for key in keys[start : start + KEYS_PAGE]}
        await desk.router.state_store.change_keys({key_id: partial(put, key) for key_id, key in page.items()})
        await desk.router.key_manager.refresh_keys(list(page))


async def _steps(desk: Desk, document: Document) -> list[_Step]:
    """What is to be done, in order. Raises Refused with every complaint."""
    complaints: list[str] = []
    steps: list[_Step] = []
    coming = frozenset(str(entry.get("id")) for entry in document.providers) | desk.router.catalogue.providers.keys()
    ids = [str(entry.get("id")) for entry in document.keys]
    found: list[APIKey] = await desk.router.state_store.query_state(StateQuery("APIKey", ids=ids)) if ids else []
    known = {key.id for key in found}
    readers: tuple[tuple[str, list[dict[str, Any]], Callable[[Desk, dict[str, Any]], Awaitable[_Step]]], ...] = (
        ("providers", document.providers, _provider),
        ("keys", document.keys, partial(_key, providers=coming, known=known)),
        ("limits", document.limits, _limits), ("clients", document.clients, partial(_client, providers=coming)),
        ("budgets", document.budgets, _budget), ("policies", document.policies, _policy),
        ("admin_keys", document.admin_keys, _admin_key), ("webhooks", document.webhooks, _webhook),
    )  # fmt: skip
    await desk.router.list_clients()
    await desk.runtime.admin_keys.refresh()
    await desk.runtime.webhooks.refresh()
    for section, entries, read in readers:
        for index, entry in enumerate(entries):
            if index % KEYS_PAGE == KEYS_PAGE - 1:
                await asyncio.sleep(0)
            try:
                steps.append(replace(await read(desk, entry), place=(section, index)))
            except (ApiKeyRouterError, Refused) as exc:
                complaints.append(f"{section}[{index}]: {getattr(exc, 'detail', None) or exc}")
    if complaints:
        more = f" … and {len(complaints) - COMPLAINTS_MAX} more" if len(complaints) > COMPLAINTS_MAX else ""
        raise Refused(400, "import_refused", "; ".join(complaints[:COMPLAINTS_MAX]) + more)
    return steps


async def _provider(desk: Desk, entry: dict[str, Any]) -> _Step:
    provider = StatedProvider.parse(entry)
    adapters_of({provider.id: provider.record()})
    if provider.base_url is not None:
        await desk.runtime.webhooks.outbound.check_resolved(provider.base_url, field="base_url")
    of_file = desk.runtime.config.providers.get(provider.id)
    if of_file is not None and not of_file.is_plain:
        raise InvalidRequestError(f"{provider.id!r} is declared in the configuration file", field="id")
    exists = provider.id in desk.router.stated_providers
    return _Step(kind="provider", id=provider.id, exists=exists, write=lambda: desk.router.configure_provider(provider))


async def _limits(desk: Desk, entry: dict[str, Any]) -> _Step:
    limits = StatedLimits.parse(entry)
    if desk.router.is_limited_by_file(limits.lane_id):
        raise InvalidRequestError(f"{limits.lane_id!r} is limited by the configuration file", field="quota_group")
    exists = limits.lane_id in desk.router.stated_limits
    return _Step(kind="limit", id=limits.lane_id, exists=exists, write=lambda: desk.router.configure_limits(limits))


async def _key(desk: Desk, entry: dict[str, Any], *, providers: Set[str], known: Set[str]) -> _Step:
    key = APIKey.parse(entry)
    if not key.encrypted_material:
        raise InvalidRequestError("is without its material; export with secrets=true", field="encrypted_material")
    if key.provider_id not in providers:
        raise InvalidRequestError(f"provider {key.provider_id!r} is not registered", field="provider_id")
    desk.router.vault().decrypt(key.encrypted_material, key_id=key.id)
    return _Step(kind="key", id=key.id, exists=key.id in known, key=key)


async def _client(desk: Desk, entry: dict[str, Any], *, providers: Set[str]) -> _Step:
    if "token_sha256" not in entry:
        raise InvalidRequestError("is without its token's hash; export with secrets=true", field="token_sha256")
    client = Client.parse(entry)
    if client.name in desk.runtime.plane.clients.file_names:
        raise InvalidRequestError(f"{client.name!r} is declared in the configuration file", field="name")
    unknown = set(client.providers or ()).difference(providers)
    if unknown:
        raise InvalidRequestError(f"provider {min(unknown)!r} is not registered", field="providers")
    return _Step(
        kind="client",
        id=client.name,
        exists=client.name in desk.router.clients,
        write=lambda: desk.router.configure_client(client),
    )


async def _budget(desk: Desk, entry: dict[str, Any]) -> _Step:
    budget = Budget.parse(entry)
    rule = desk.router.catalogue.budget_rules().get(budget.id)
    if rule is not None and rule.source != "code":
        raise InvalidRequestError(f"{budget.id!r} is declared elsewhere", field="id")

    async def write() -> None:
        await desk.router.cost_controller.create_budget(
            budget.scope, budget.limit, budget.period, budget.enforcement_mode, budget.scope_id, name=budget.name,
            timezone=budget.timezone, unpriced=budget.unpriced, flat=budget.flat, suspense=budget.suspense,
            suspense_after_seconds=budget.suspense_after_seconds,
        )  # fmt: skip

    return _Step(kind="budget", id=budget.id, exists=rule is not None, write=write)


async def _policy(desk: Desk, entry: dict[str, Any]) -> _Step:
    policy = Policy.parse(entry)
    errors, _ = check_policy(policy, providers=desk.router.catalogue.providers, keys=desk.router.catalogue.keys)
    if errors:
        raise InvalidRequestError("; ".join(errors))
    if policy.id in {one.id for one in desk.runtime.config.policies}:
        raise InvalidRequestError(f"{policy.id!r} is declared in the configuration file", field="id")
    known = await desk.router.policy_engine.get_policy(policy.id)
    return _Step(
        kind="policy", id=policy.id, exists=known is not None, write=lambda: desk.router.policy_engine.configure(policy)
    )


async def _admin_key(desk: Desk, entry: dict[str, Any]) -> _Step:
    key = AdminKey.parse(entry)
    keys = desk.runtime.admin_keys
    return _Step(kind="admin_key", id=key.name, exists=key.name in keys.named, write=lambda: keys.put(key))


async def _webhook(desk: Desk, entry: dict[str, Any]) -> _Step:
    hook, hooks = Webhook.parse(entry), desk.runtime.webhooks
    hooks.outbound.check(hook.url)
    desk.router.vault().decrypt(hook.sealed_secret, key_id=f"webhook:{hook.name}")
    return _Step(kind="webhook", id=hook.name, exists=hook.name in hooks.named, write=lambda: hooks.put(hook))
