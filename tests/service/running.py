"""A service in this process, over real sockets: what tests start, and how they wait."""

import asyncio
import contextlib
import functools
import itertools
import os
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import uvicorn
import yaml
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI

from apikeyrouter.simulator import SimulatorProcess
from apikeyrouter_proxy.http_protocol import ServiceProtocol
from apikeyrouter_proxy.main import Service, create_app
from apikeyrouter_proxy.runtime import Runtime
from tests.service.described import Description

MASTER_KEY = "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="
MANAGEMENT_KEY = "management-key-of-the-tests"
WAIT_SECONDS_MAX = 20.0
_namespaces = itertools.count()


async def wait_until(done: Callable[[], Awaitable[bool]]) -> None:
    """Return once `done()` holds. Errors: TimeoutError after WAIT_SECONDS_MAX."""
    async with asyncio.timeout(WAIT_SECONDS_MAX):
        while not await done():
            await asyncio.sleep(0.02)


async def until_ready(process: asyncio.subprocess.Process, url: str) -> None:
    """Return once the server process answers at `url` that it is ready."""
    async with httpx.AsyncClient() as client:

        async def ready() -> bool:
            assert process.returncode is None, "the server did not start"
            with contextlib.suppress(httpx.TransportError):
                return (await client.get(f"{url}/health/ready")).status_code == 200
            return False

        await wait_until(ready)


@dataclass(slots=True, kw_only=True)
class Running:
    """A service that answers at `url`. `log` is its access log."""

    url: str
    app: Service
    server: uvicorn.Server
    log: Path

    @property
    def runtime(self) -> Runtime:
        """The running service's inside."""
        assert self.app.runtime is not None
        return self.app.runtime

    def openai(self, token: str = "none-needed", **options: Any) -> AsyncOpenAI:
        """The official SDK, without retries."""
        return AsyncOpenAI(**{"api_key": token, "base_url": f"{self.url}/v1", "max_retries": 0, **options})

    def anthropic(self, token: str = "none-needed", **options: Any) -> AsyncAnthropic:
        """The official SDK, without retries."""
        return AsyncAnthropic(**{"api_key": token, "base_url": self.url, "max_retries": 0, **options})

    def http(self, **options: Any) -> httpx.AsyncClient:
        """A plain client. Every answer is held against the service's own description."""
        hooks = {"response": [described().check]}
        return httpx.AsyncClient(base_url=self.url, timeout=WAIT_SECONDS_MAX, **{"event_hooks": hooks, **options})

    def operator(self) -> httpx.AsyncClient:
        """A plain client with the management key."""
        return self.http(headers={"X-API-Key": MANAGEMENT_KEY})

    async def count(self, line: str) -> int:
        """The value of one sample in `/metrics`, e.g. `apikeyrouter_inflight`; 0 when it is not there."""
        async with self.http() as client:
            text = (await client.get("/metrics")).text
        values = [row.rpartition(" ")[2] for row in text.splitlines() if row.startswith(line) and row[0] != "#"]
        return sum(int(value) for value in values)


@functools.cache
def described() -> Description:
    """What the service says of itself, made once."""
    return Description(create_app({}).openapi())


def providers_of(simulator: SimulatorProcess) -> dict[str, Any]:
    """The providers section of a configuration: both dialects of the simulator."""
    return {
        "openai": {"adapter": "openai", "base_url": simulator.openai_url},
        "anthropic": {"adapter": "anthropic", "base_url": simulator.anthropic_url},
    }


@contextlib.asynccontextmanager
async def running_service(
    redis_url: str, config: Mapping[str, Any], *, environ: Mapping[str, str] | None = None, http: Any = ServiceProtocol
) -> AsyncIterator[Running]:
    """A service with a namespace of its own, stopped (and drained) at exit. `http`: as uvicorn has it."""
    with tempfile.TemporaryDirectory(prefix="akr-service-") as directory:
        path, log = Path(directory) / "config.yaml", Path(directory) / "access.log"
        path.write_text(yaml.safe_dump(dict(config)))
        told = environ_for(redis_url, path, log) | dict(environ or {})
        app = create_app({name: value for name, value in told.items() if value})
        settings = uvicorn.Config(
            app, port=0, http=http, log_level="warning", access_log=False, lifespan="on", ws="none"
        )
        server = uvicorn.Server(settings)
        task = asyncio.create_task(_serve(server))
        await _started(server, task)
        port = server.servers[0].sockets[0].getsockname()[1]
        try:
            yield Running(url=f"http://127.0.0.1:{port}", app=app, server=server, log=log)
        finally:
            server.should_exit = True
            await task


def fresh_namespace() -> dict[str, str]:
    """What makes services share one namespace, which nobody else has."""
    return {"APIKEYROUTER_NAMESPACE": f"test-{os.getpid()}-{next(_namespaces)}"}


def environ_for(redis_url: str, config: Path, log: Path) -> dict[str, str]:
    """The environment of a service under test; nothing of the developer's own gets in."""
    return {
        "REDIS_URL": redis_url,
        **fresh_namespace(),
        "APIKEYROUTER_CONFIG": str(config),
        "APIKEYROUTER_ENCRYPTION_KEY": MASTER_KEY,
        "MANAGEMENT_API_KEY": MANAGEMENT_KEY,
        "PROXY_ACCESS_LOG_FILE": str(log),
        "PROXY_DRAIN_SECONDS": "10",
    }


async def _serve(server: uvicorn.Server) -> None:
    """uvicorn leaves the process when it cannot start; a test only fails."""
    try:
        await server.serve()
    except SystemExit as exc:
        raise RuntimeError("the service did not start; its log says why") from exc


async def _started(server: uvicorn.Server, task: "asyncio.Task[None]") -> None:
    async def ready() -> bool:
        if task.done():
            await task
        return server.started

    await wait_until(ready)
