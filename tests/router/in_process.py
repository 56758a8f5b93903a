"""Simulated providers in this process: no child, no control port; what they billed is read from their own objects."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from apikeyrouter.simulator.app import SimulatedProviders
from apikeyrouter.simulator.config import parse_config
from apikeyrouter.simulator.http_server import serve
from apikeyrouter.simulator.process import BASES

__all__ = ["LocalSimulator", "local_simulator"]


class LocalSimulator:
    """Where they are, and their journal."""

    def __init__(self, providers: SimulatedProviders, port: int) -> None:
        self.providers = providers
        self.url = f"http://127.0.0.1:{port}"

    def base_url(self, dialect: str) -> str:
        """The base URL of a dialect."""
        return self.url + BASES[dialect]

    def billed(self, organisation: str) -> list[int]:
        """Nano-dollars of each request of an organisation, in the order in which they arrived."""
        entries = self.providers.journal.as_dict()["entries"]
        return [entry["cost_nanousd"] for entry in entries if entry["organisation"] == organisation]


@asynccontextmanager
async def local_simulator(config: Mapping[str, Any]) -> AsyncIterator[LocalSimulator]:
    """Listens on a free port of loopback until the context ends."""
    providers = SimulatedProviders(parse_config(config))
    server, connections = await serve(providers.handle, host="127.0.0.1", port=0)
    try:
        yield LocalSimulator(providers, server.sockets[0].getsockname()[1])
    finally:
        server.close()
        for connection in list(connections):
            connection.abort()
