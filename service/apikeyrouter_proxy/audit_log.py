"""The audit log: who changed what. Management writes to it, and whoever reads the configuration file again."""

from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from apikeyrouter.infrastructure.config.compiled import CompiledConfig
from apikeyrouter.infrastructure.state_store.records import Records

__all__ = ["AUDIT", "Author", "changes_of", "note"]

AUDIT, AUDIT_KEPT = "audit", 100_000
"""The journal of changes, and how many of them are kept."""
IDS_MAX, ID_LENGTH_MAX = 20, 128
"""Ids that one entry names of a kind and sort of change; the rest is counted."""
Author = tuple[str, str]
"""Whose change it is: an admin key's name and its role; or a signal, a file, and `process`."""


async def note(
    records: Records, author: Author, *, kind: str, id: str, action: str, details: Mapping[str, Any] | None = None
) -> None:
    """Write an entry. Errors: StateStoreUnavailableError."""
    actor, role = author
    entry = {
        "at": datetime.now(UTC).isoformat(), "actor": actor, "role": role, "action": f"{kind}.{action}", "kind": kind,
        "id": id, "details": dict(details or {}),
    }  # fmt: skip
    await records.append(AUDIT, entry, kept=AUDIT_KEPT)


def changes_of(old: CompiledConfig, new: CompiledConfig) -> dict[str, dict[str, list[str]]]:
    """What a configuration file says otherwise: section → added, removed, changed → ids. No values, so no secrets."""
    found = {}
    for section, told in _SECTIONS.items():
        before, after = told(old), told(new)
        difference = {
            "added": _listed(name for name in after if name not in before),
            "removed": _listed(name for name in before if name not in after),
            "changed": _listed(name for name in after if name in before and before[name] != after[name]),
        }
        if any(difference.values()):
            found[section] = {sort: names for sort, names in difference.items() if names}
    return found


def _listed(names: Iterable[str]) -> list[str]:
    listed = sorted(names)
    more = [f"and {len(listed) - IDS_MAX} more"] if len(listed) > IDS_MAX else []
    return [name[:ID_LENGTH_MAX] for name in listed[:IDS_MAX]] + more


_SECTIONS: Mapping[str, Callable[[CompiledConfig], Mapping[str, Any]]] = {
    "providers": lambda config: config.providers,
    "models": lambda config: config.aliases,
    "keys": lambda config: {one.id: one for one in config.keys},
    "limits": lambda config: {one.id: one for one in config.lanes},
    "prices": lambda config: {f"{one.provider_id or '*'}/{one.model}": one for one in config.prices},
    "budgets": lambda config: {one.config.id: one for one in config.budgets},
    "clients": lambda config: {one.name: one for one in config.clients},
    "policies": lambda config: {one.id: one for one in config.policies},
    "routing": lambda config: {name: getattr(config.routing, name) for name in config.routing.__slots__},
}
