"""Three cells, on three primaries of a Cluster, one budget over them, and callers that use all of them."""

from typing import Any

from tests.faults.plan import LEASE_MS

KEYS = ("a1", "b1", "d1")
LIMIT_USD = 0.05
SETTINGS: dict[str, Any] = {
    "cells": [{"name": "north", "quota_groups": ["org-a"]}, {"name": "south", "quota_groups": ["org-b"]}]
}
PARTS: dict[str, Any] = {
    "budgets": [
        {"name": "all", "scope": "global", "limit_usd": LIMIT_USD, "period": "total", "enforcement": "hard"},
    ],
    "routing": {"lease_ms": LEASE_MS},
}
_SHORT = {"parameters": {"max_tokens": 12}}
INTENTS = (
    {"provider_id": "openai", **_SHORT},
    {"provider_id": "other", **_SHORT},
    {"provider_id": "another", "model": "claude-haiku-5", **_SHORT},
)
