"""`apikeyrouter demo --incident`: a bad day, to be read off the operator's page.

One organisation's credit runs out, one key was revoked by its provider, one provider is slow, and a team's budget is
nearly spent. It lasts until somebody ends it, or `--seconds` are over.
"""

import asyncio
import contextlib
import random
import secrets
from collections.abc import Callable
from typing import Any

import aiohttp

from apikeyrouter.commands.dashboard import running_dashboard
from apikeyrouter.commands.demo import stage
from apikeyrouter.commands.quickstart import MODELS, router_config_for
from apikeyrouter.simulator import SimulatorProcess
from apikeyrouter.simulator.config import parse_config

__all__ = ["run"]

WORKERS = 2
PAUSE_SECONDS = (0.06, 0.24)
ANSWER_SECONDS_MAX = 30.0
CREDIT_REQUESTS = 60
DEARER = 1000
"""Times the usual prices, so that a minute of demo costs dollars."""
TEAM, TEAM_BUDGET = "search", "team:search:monthly"
SPENT_SHARE = 0.88
WARM_UP_SECONDS = 15.0
SLOWED_SECONDS = (20.0, 40.0)
"""How long the team's clients rest between requests once its budget is tight."""
CALLERS: tuple[tuple[str, str, str, int], ...] = (
    ("shop", "web", "openai", 3), ("mobile", "web", "anthropic", 1), ("search", TEAM, "openai", 1),
    ("summaries", TEAM, "anthropic", 1),
)  # fmt: skip
"""Clients: name, team, which provider's dialect, how many requests at a time."""
PROMPTS = ("Which of these products fits a rainy day?", "Summarise this ticket.", "Translate to Finnish: good evening.")


def simulator_config() -> dict[str, Any]:
    """Four organisations: `north` has little credit, a key of `south` is revoked, `west` is slow."""
    minute = {"rpm": 3_000, "kind": "bucket"}
    return {
        "organisations": [
            _organisation("north", 3, limits=[minute]),
            _organisation("south", 3, limits=[{"rpm": 240, "tpm": 12_000, "kind": "bucket"}], revoked=2),
            _organisation("east", 4, limits=[{"rpm": 900, "kind": "bucket"}, {"concurrency": 20}]),
            _organisation("west", 2, limits=[minute], dialect="anthropic", latency_ms=2_600),
        ],
        "failures": [{"name": "billing", "organisation": "north", "skip": CREDIT_REQUESTS}],
        "prices": prices(),
        "journal_length": 0,
    }


def router_config(url: str) -> dict[str, Any]:
    """The same limits; clients of two teams; a hard budget over all and one for a team."""
    clients = [{"name": name, "token": f"token-of-the-{name}-client", "team": team} for name, team, _, _ in CALLERS]
    budgets = [
        {"name": "daily", "scope": "global", "limit_usd": 50, "period": "daily", "enforcement": "hard"},
        {"name": "weekly", "scope": "provider", "scope_id": "openai", "limit_usd": 25, "period": "weekly",
         "enforcement": "soft"},
    ]  # fmt: skip
    config = router_config_for(parse_config(simulator_config()), url, budgets=budgets, clients=clients)
    for key in config["keys"]:
        key["metadata"] = {"tier": "pro" if key["quota_group"] in ("north", "west") else "free"}
    config["prices"] = [{"model": model, **price} for model, price in prices().items()]
    return config


def prices() -> dict[str, dict[str, float]]:
    """What the models cost on this day, in dollars per million tokens."""
    return {
        MODELS["openai"]: {"input": 0.15 * DEARER, "output": 0.6 * DEARER},
        MODELS["anthropic"]: {"input": 1.0 * DEARER, "output": 5.0 * DEARER},
    }


def run(*, seconds: float | None, port: int, tell: Callable[[str], None]) -> int:
    """The bad day; the exit code. `tell` hears where the page is."""
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_perform(seconds, port, tell))
    return 0


async def _perform(seconds: float | None, port: int, tell: Callable[[str], None]) -> None:
    key = f"mk-{secrets.token_urlsafe(24)}"
    tell("starting simulated providers, the service and the operator's page …")
    async with stage.embedded_server() as embedded, SimulatorProcess(simulator_config()) as simulator:
        config, environ = router_config(simulator.url), {"MANAGEMENT_API_KEY": key}
        service = stage.running_service(embedded, config, workers=WORKERS, environ=environ)
        async with service as (_, listening):
            with running_dashboard(listening["url"], key, port=port) as link:
                tell(f"The operator's page (this link works once): {link}")
                tell(f"The service: {listening['url']}; management key: {key}")
                await _load(listening["url"], key, seconds)


async def _load(url: str, key: str, seconds: float | None) -> None:
    timeout, tight = aiohttp.ClientTimeout(total=ANSWER_SECONDS_MAX), asyncio.Event()
    async with aiohttp.ClientSession(url, timeout=timeout) as session, asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(_call_for_ever(session, name, provider, tight if team == TEAM else None))
            for name, team, provider, at_a_time in CALLERS
            for _ in range(at_a_time)
        ]
        tasks.append(group.create_task(_tighten_the_budget(session, key, tight)))
        if seconds is not None:
            await asyncio.sleep(seconds)
            for task in tasks:
                task.cancel()


async def _call_for_ever(
    session: aiohttp.ClientSession, client: str, provider: str, tight: asyncio.Event | None
) -> None:
    dice = random.Random(client)  # noqa: S311 (a load, not a secret)
    path = {"openai": "/v1/chat/completions", "anthropic": "/v1/messages"}[provider]
    headers = {"x-api-key": f"token-of-the-{client}-client", "anthropic-version": "2023-06-01"}
    while True:
        body = {
            "model": MODELS[provider], "max_tokens": 64,
            "messages": [{"role": "user", "content": dice.choice(PROMPTS)}],
        }  # fmt: skip
        with contextlib.suppress(aiohttp.ClientError, TimeoutError):
            async with session.post(path, json=body, headers=headers) as answer:
                await answer.read()
        slowed = tight is not None and tight.is_set()
        await asyncio.sleep(dice.uniform(*(SLOWED_SECONDS if slowed else PAUSE_SECONDS)))


async def _tighten_the_budget(session: aiohttp.ClientSession, key: str, tight: asyncio.Event) -> None:
    """A budget of which most is gone: it counts for a while, then its limit is set near to what was counted."""
    headers, path = {"X-API-Key": key}, f"/api/v1/budgets/{TEAM_BUDGET}"
    body = {"scope": "team", "scope_id": "search", "limit_usd": 100, "period": "monthly", "enforcement": "hard"}
    async with session.post("/api/v1/budgets", json=body, headers=headers) as made:
        made.raise_for_status()
    await asyncio.sleep(WARM_UP_SECONDS)
    async with session.get(path, headers=headers) as answer:
        spent = (await answer.json())["settled_usd"]
    changed = {"limit_usd": round(max(spent, 0.01) / SPENT_SHARE, 2)}
    async with session.patch(path, json=changed, headers=headers) as answer:
        answer.raise_for_status()
    tight.set()


def _organisation(
    name: str, keys: int, *, limits: list[dict[str, Any]], revoked: int = 0, dialect: str = "openai",
    latency_ms: int = 180,
) -> dict[str, Any]:  # fmt: skip
    prefix = "sk-ant-sim" if dialect == "anthropic" else "sk-sim"
    return {
        "id": name, "dialect": dialect, "limits": limits, "latency_ms": latency_ms,
        "keys": [
            {"key": f"{prefix}-{name}-{n}", "id": f"{name}-{n}", "disabled": n == revoked} for n in range(1, keys + 1)
        ],
    }  # fmt: skip
