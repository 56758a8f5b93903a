"""An httpx client for adapters of one's own: one per event loop, made on first use."""

import asyncio
from typing import TYPE_CHECKING

from apikeyrouter.domain.models.system_error import ConfigurationError

if TYPE_CHECKING:
    import httpx

__all__ = ["HttpClient"]

CONNECT_SECONDS = 5.0
SECONDS_MAX = 120.0


class HttpClient:
    """Opens an `httpx.AsyncClient` for each event loop that asks, and closes this loop's with `close`.

    Args:
        base_url: what relative URLs start from.
        seconds: how long a phase of a request may take; connecting: 5 s.
        transport: an httpx transport, e.g. `httpx.ASGITransport(app)` in tests.
    """

    def __init__(
        self, base_url: str = "", *, seconds: float = SECONDS_MAX, transport: "httpx.AsyncBaseTransport | None" = None
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self._seconds = seconds
        self._transport = transport
        self._client: httpx.AsyncClient | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def open(self) -> "httpx.AsyncClient":
        """This event loop's client. Raises ConfigurationError where httpx is not installed."""
        loop = asyncio.get_running_loop()
        if self._client is None or self._loop is not loop:
            try:
                import httpx
            except ImportError as exc:
                raise ConfigurationError("httpx is needed here: pip install 'apikeyrouter[proxy]'") from exc
            timeout = httpx.Timeout(self._seconds, connect=min(CONNECT_SECONDS, self._seconds))
            self._client = httpx.AsyncClient(
                base_url=self.base_url, timeout=timeout, transport=self._transport, follow_redirects=False
            )
            self._loop = loop
        return self._client

    async def close(self) -> None:
        """Close this loop's client. Idempotent."""
        client, self._client = self._client, None
        if client is not None and self._loop is asyncio.get_running_loop():
            await client.aclose()
