"""The management plane under `/api/v1`: one module a resource, on what they share (`desk.py`)."""

from fastapi import APIRouter, Depends

from apikeyrouter_proxy.access import require
from apikeyrouter_proxy.admin_keys import Role
from apikeyrouter_proxy.management import (
    admin_keys,
    audit,
    budgets,
    clients,
    configuration,
    decisions,
    fleet,
    key_import,
    keys,
    limits,
    policies,
    pool,
    providers,
    reservations,
    state,
    transfer,
    usage,
    webhooks,
    whoami,
)

__all__ = ["aliases", "management"]

_RESOURCES = (
    keys, key_import, clients, budgets, limits, policies, providers, decisions, reservations, usage, state, audit,
    admin_keys, configuration, transfer, webhooks, pool, fleet, whoami,
)  # fmt: skip
_ANY_ROLE = [Depends(require(Role.READ))]

management = APIRouter(prefix="/api/v1", tags=["management"], dependencies=_ANY_ROLE)
"""Every route below takes an admin key; those that change something ask for a larger role."""
aliases = APIRouter(tags=["management"], dependencies=_ANY_ROLE)
"""The documents' short names: `POST /keys`, `POST /policies`, `GET /state`."""

for resource in _RESOURCES:
    management.include_router(resource.routes)
for named in (keys, policies, state):
    aliases.include_router(named.aliases)
