"""A router over simulated providers, and three books that must agree: the caller's, the ledger's, the provider's."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from apikeyrouter.domain.interfaces.state_store import StateStore
from apikeyrouter.domain.models.call import Facts
from apikeyrouter.domain.models.system_response import StreamChunk, SystemResponse
from apikeyrouter.infrastructure.adapters.transport import Timeouts
from apikeyrouter.infrastructure.config.compile import compile_config
from apikeyrouter.infrastructure.config.compiled import CompiledConfig
from apikeyrouter.infrastructure.config.config_file import read_config
from apikeyrouter.router import ApiKeyRouter
from apikeyrouter.simulator import SimulatorProcess

WAIT_SECONDS_MAX = 20.0
MASTER_KEY = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="
SOFT_BUDGET = {"name": "all", "scope": "global", "limit_usd": 1000, "period": "total", "enforcement": "soft"}
SCOPE = "global:all"
SIMULATED: dict[str, Any] = {
    "organisations": [
        {"id": "org-a", "keys": ["sk-sim-house-a-number-1", "sk-sim-house-a-number-2"], "output_tokens": 12},
        {"id": "org-b", "keys": ["sk-sim-house-b-number-1"], "output_tokens": 12},
        {
            "id": "org-c",
            "dialect": "anthropic",
            "keys": ["sk-ant-sim-house-c-1", "sk-ant-sim-house-c-2"],
            "output_tokens": 12,
        },
        {"id": "org-d", "dialect": "anthropic", "keys": ["sk-ant-sim-house-d-1"], "output_tokens": 12},
        {
            "id": "org-s",
            "keys": ["sk-sim-house-slow-1"],
            "output_tokens": 400,
            "tokens_per_second": 40,
            "limits": [{"concurrency": 70}],
        },
    ],
}
KEYS: dict[str, dict[str, Any]] = {
    "a1": {"provider": "openai", "key": "sk-sim-house-a-number-1", "quota_group": "org-a"},
    "a2": {"provider": "openai", "key": "sk-sim-house-a-number-2", "quota_group": "org-a"},
    "b1": {"provider": "other", "key": "sk-sim-house-b-number-1", "quota_group": "org-b"},
    "c1": {"provider": "anthropic", "key": "sk-ant-sim-house-c-1", "quota_group": "org-c"},
    "c2": {"provider": "anthropic", "key": "sk-ant-sim-house-c-2", "quota_group": "org-c"},
    "d1": {"provider": "another", "key": "sk-ant-sim-house-d-1", "quota_group": "org-d"},
    "s1": {"provider": "openai", "key": "sk-sim-house-slow-1", "quota_group": "org-s", "models": ["gpt-4o-mini"]},
}


class Urls(Protocol):
    """Where the simulated providers are."""

    @property
    def openai_url(self) -> str:
        """The base URL of the OpenAI dialect."""
        ...

    @property
    def anthropic_url(self) -> str:
        """The base URL of the Anthropic dialect."""
        ...


def config_of(simulator: Urls, keys: Sequence[str | Mapping[str, Any]], **parts: Any) -> CompiledConfig:
    """A compiled file with these keys (of `KEYS`, or as a file writes them) and a soft global budget.

    `parts` are other sections of it.
    """
    sections: dict[str, Any] = {
        "providers": {
            "openai": {"adapter": "openai", "base_url": simulator.openai_url},
            "other": {"adapter": "openai", "base_url": simulator.openai_url},
            "anthropic": {"adapter": "anthropic", "base_url": simulator.anthropic_url},
            "another": {"adapter": "anthropic", "base_url": simulator.anthropic_url},
        },
        "prices": [
            {"provider": "other", "model": "gpt-4o-mini", "input": 0.15, "output": 0.6},
            {"model": "claude-haiku-5", "input": 1, "output": 5},
        ],
        "keys": [{"id": key, **KEYS[key]} if isinstance(key, str) else dict(key) for key in keys],
        "budgets": [SOFT_BUDGET],
    }
    return compile_config(read_config({**sections, **parts}), environ={})


def intent(text: str = "hello", *, model: str = "gpt-4o-mini", **fields: Any) -> dict[str, Any]:
    """A small chat request."""
    return {"model": model, "messages": [{"role": "user", "content": text}], **fields}


@dataclass(slots=True, kw_only=True)
class House:
    """One router, what it told its listeners, and the simulator it calls."""

    router: ApiKeyRouter
    simulator: SimulatorProcess
    finished: list[Facts] = field(default_factory=list)

    async def route(self, text: str = "hello", **fields: Any) -> SystemResponse:
        """Route one request."""
        return await self.router.route(intent(text, **fields))

    async def stream(self, text: str = "hello", **fields: Any) -> list[StreamChunk]:
        """Route one stream and read it to its end."""
        return [chunk async for chunk in self.router.route_stream(intent(text, **fields))]

    async def apply(self, keys: Sequence[str | Mapping[str, Any]], **parts: Any) -> None:
        """Put a configuration file into force."""
        await self.router.apply(config_of(self.simulator, keys, **parts))

    async def at_rest(self) -> int:
        """Wait until all has ended; nothing may be held, in flight or in drift then. Nano-dollars that were settled."""
        router = self.router
        await until(lambda: router.in_flight == 0)
        assert await router.books.flush(seconds=WAIT_SECONDS_MAX)
        assert router.books.open == {}
        lanes, scopes = router.catalogue.lane_ids(), [scope.id for scope in router.catalogue.budgets()]
        assert [lane.id for lane in await router.ledger.lanes(lanes) if lane.in_flight] == []
        assert await router.ledger.audit(lanes=lanes, scopes=scopes) == []
        states = await router.ledger.scopes([SCOPE])
        assert all((state.held, state.suspense) == (0, 0) for state in states)
        return sum(state.settled for state in states)

    async def billed(self) -> int:
        """Nano-dollars that the providers billed, once nothing is in flight there."""
        totals: dict[str, Any] = {}

        async def quiet() -> bool:
            totals.update((await self.simulator.report())["total"])
            return bool(totals["in_flight"] == 0)

        await until(quiet)
        return int(totals["cost_nanousd"])

    async def seen(self, organisation: str) -> Mapping[str, Any]:
        """What one organisation saw."""
        report = await self.simulator.report()
        found: Mapping[str, Any] = report["organisations"][organisation]
        return found


@asynccontextmanager
async def house(
    simulator: SimulatorProcess,
    store: StateStore,
    keys: Sequence[str | Mapping[str, Any]] = ("a1", "b1"),
    *,
    settings: Mapping[str, Any] | None = None,
    **parts: Any,
) -> AsyncIterator[House]:
    """A house with these keys; closed at exit."""
    router = ApiKeyRouter(state_store=store, config={"encryption_key": MASTER_KEY, **(settings or {})})
    made = House(router=router, simulator=simulator)
    router.on_finished.append(made.finished.append)
    router.timeouts = Timeouts(connect=2.0, first_byte=20.0, idle=20.0, total=20.0)
    async with router:
        await made.apply(keys, **parts)
        yield made


async def until(condition: Callable[[], object] | Callable[[], Awaitable[object]]) -> None:
    """Wait for a condition. Errors: AssertionError when it does not come true."""
    deadline = time.monotonic() + WAIT_SECONDS_MAX
    while time.monotonic() < deadline:
        told = condition()
        if await told if isinstance(told, Awaitable) else told:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"in {WAIT_SECONDS_MAX} s it did not come true: {condition}")
