"""Who takes part in the demo: organisations with several keys and request limits far below the offered load."""

from typing import Any

from apikeyrouter.commands.quickstart import MODELS, router_config_for
from apikeyrouter.simulator.config import parse_config

__all__ = ["BUDGET_SCOPE", "CONTROL_KEY", "CONTROL_MODEL", "CONTROL_ORGANISATION", "router_config", "simulator_config"]

CONTROL_ORGANISATION = "control"
CONTROL_KEY = "sk-sim-control-1"
CONTROL_MODEL = MODELS["openai"]
BUDGET_SCOPE = "global:demo"
LEASE_MS = 5_000
"""Short, so that what a killed worker held is seen to come back within the run."""
_LATENCY = {"dist": "lognormal", "mean": 120, "sigma": 0.4}


def simulator_config(*, seed: int = 1) -> dict[str, Any]:
    """Three OpenAI organisations and one Anthropic one behind the router; one more that the router does not know.

    `north` fails a few requests with a server error, so that there is something to fail over from.
    """
    organisations = [
        _organisation("north", keys=3, rpm=1_200, burst=300),
        _organisation("south", keys=3, rpm=900, burst=225),
        _organisation("east", keys=2, rpm=600, burst=150),
        _organisation("west", keys=2, rpm=900, burst=225, dialect="anthropic"),
        _organisation(CONTROL_ORGANISATION, keys=1, rpm=300, burst=40),
    ]
    failures = [{"name": "server_error", "organisation": "north", "probability": 0.01}]
    return {"organisations": organisations, "failures": failures, "seed": seed, "journal_length": 0}


def router_config(url: str) -> dict[str, Any]:
    """The router's configuration file: the same limits, and one hard budget that everything is booked in."""
    data = simulator_config()
    data["organisations"] = [one for one in data["organisations"] if one["id"] != CONTROL_ORGANISATION]
    budget = {"name": "demo", "scope": "global", "limit_usd": 100, "period": "total", "enforcement": "hard"}
    return router_config_for(parse_config(data), url, budgets=[budget], routing={"lease_ms": LEASE_MS})


def _organisation(name: str, *, keys: int, rpm: int, burst: int, dialect: str = "openai") -> dict[str, Any]:
    prefix = "sk-ant-sim" if dialect == "anthropic" else "sk-sim"
    return {
        "id": name,
        "dialect": dialect,
        "keys": [{"key": f"{prefix}-{name}-{n}", "id": f"{name}-{n}"} for n in range(1, keys + 1)],
        "limits": [{"rpm": rpm, "burst": burst, "kind": "bucket"}],
        "latency_ms": _LATENCY,
        "tokens_per_second": 400,
        "tokens_per_chunk": 4,
    }
