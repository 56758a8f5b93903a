"""What the worker that dies and the one that lives on have in common."""

from typing import Any

LEASE_MS = 4000
CONCURRENCY = 70
KEYS = ("s1", "b1")
SETTINGS: dict[str, Any] = {}
INTENTS = ({"provider_id": "other"},)
"""What callers ask, in turn."""
PARTS: dict[str, Any] = {
    "limits": [{"quota_group": "org-s", "concurrency": CONCURRENCY}],
    "budgets": [
        {"name": "all", "scope": "global", "limit_usd": 1000, "period": "total", "enforcement": "hard"},
    ],
    "routing": {"lease_ms": LEASE_MS},
}
"""A hard budget: what is held for a request, and goes to suspense with it, is a bound of what it may cost."""
