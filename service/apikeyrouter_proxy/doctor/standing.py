"""The doctor of a running service: what is wrong with this deployment, as of some seconds ago."""

import asyncio
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from apikeyrouter.infrastructure.config.environment import provider_keys
from apikeyrouter.router import ApiKeyRouter
from apikeyrouter_proxy.doctor.examination import left_in, of_configuration, of_encryption_key, of_server
from apikeyrouter_proxy.doctor.findings import Finding, problem
from apikeyrouter_proxy.doctor.surroundings import Surroundings

if TYPE_CHECKING:
    from apikeyrouter_proxy.runtime import Runtime

__all__ = ["Examined", "StandingDoctor"]

BELIEVED_SECONDS = 20.0
SECONDS_MAX = 10.0
Examined = tuple[datetime, list[Finding]]


class StandingDoctor:
    """Examines at most once in BELIEVED_SECONDS, in a thread of its own: requests are served meanwhile."""

    def __init__(self, runtime: "Runtime", environ: Mapping[str, str], redis_url: str | None) -> None:
        self._runtime, self._environ, self._redis_url = runtime, environ, redis_url
        self._lock = asyncio.Lock()
        self._told: Examined | None = None
        self._until = 0.0

    async def findings(self) -> Examined:
        """What was found, and when. Never fails: what stops an examination is a finding."""
        async with self._lock:
            if self._told is None or time.monotonic() >= self._until:
                found = await asyncio.to_thread(
                    asyncio.run, _examined(self._around(), self._redis_url, self._runtime.router)
                )
                self._told, self._until = (datetime.now(UTC), found), time.monotonic() + BELIEVED_SECONDS
        return self._told

    def _around(self) -> Surroundings:
        runtime = self._runtime
        return Surroundings(
            environ=self._environ, settings=runtime.settings, router=runtime.router.settings,
            keys=tuple(provider_keys(self._environ)), config=runtime.config, config_path=runtime.settings.config,
        )  # fmt: skip


async def _examined(around: Surroundings, redis_url: str | None, router: ApiKeyRouter) -> list[Finding]:
    keepers = [books.keeper for books in router.books.cells]
    found = [
        *of_configuration(around, registered=len(router.catalogue.keys)),
        *(left for keeper in keepers if keeper.directory for left in left_in(keeper.directory, keeper.ledger)),
        of_encryption_key(around, embedded=redis_url is None),
    ]
    if redis_url is None:
        remedy = "name a Redis (REDIS_URL), or let serve start its own: workers would each count for themselves"
        return [problem("redis", "none: state is this process's own, and forgotten with it", remedy), *found]
    try:
        async with asyncio.timeout(SECONDS_MAX):
            return [*(await of_server(redis_url, around, embedded=False)), *found]
    except TimeoutError:
        remedy = "look at the server: what is asked here takes milliseconds"
        return [problem("redis", f"no answer within {SECONDS_MAX:g} s", remedy), *found]
