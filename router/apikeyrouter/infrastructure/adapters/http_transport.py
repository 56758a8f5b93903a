"""The upstream HTTP client: aiohttp behind the seam of `transport.py`. Foreign errors are mapped here, nowhere else.

Imported when the first transport is made: aiohttp takes longer to import than all the rest.
"""

import ssl as ssl_module
from collections.abc import AsyncIterator, Mapping
from types import TracebackType
from typing import Any, Self

import aiohttp
from yarl import URL

from apikeyrouter.domain.interfaces.wire import UpstreamRequest
from apikeyrouter.infrastructure.adapters.proxies import proxy_for
from apikeyrouter.infrastructure.adapters.transport import (
    BODY_BYTES_MAX,
    DEFAULT_TIMEOUTS,
    ConnectFailed,
    NoPlace,
    ResponseLost,
    ResponseTooLong,
    SendFailed,
    Timeouts,
    TransportError,
    UpstreamTimeout,
)

__all__ = ["AiohttpResponse", "AiohttpTransport"]

CONNECTIONS_MAX = 0
"""0: no limit of the pool's own; there are as many connections as calls, which the caller bounds."""
CONNECTIONS_PER_HOST_MAX = 0
"""0: no limit per host below CONNECTIONS_MAX."""

KEEPALIVE_SECONDS = 30.0
DNS_TTL_SECONDS = 60
LINE_BYTES_MAX = 32 * 1024
"""Longest header line accepted from a provider."""

_URLS_MAX = 256


class AiohttpTransport:
    """`Transport` over aiohttp, for one event loop: the first `send` binds it, another loop needs another transport.

    TLS is verified, compressed answers are decompressed. Proxies come from the environment (`HTTPS_PROXY`, `NO_PROXY`),
    looked up once per origin; aiohttp's own `trust_env` would read the environment per request, and `.netrc` too.

    `connections_max`, `connections_per_host_max`: most connections, 0: as many as there are calls; who finds all in use
    waits in line, as long as for a first byte.
    """

    def __init__(
        self,
        *,
        connections_max: int = CONNECTIONS_MAX,
        connections_per_host_max: int = CONNECTIONS_PER_HOST_MAX,
        trust_env: bool = True,
        ssl: ssl_module.SSLContext | bool = True,
    ) -> None:
        self._connections_max = connections_max
        self._connections_per_host_max = connections_per_host_max
        self._is_bounded = bool(connections_max or connections_per_host_max)
        self._trust_env = trust_env
        self._ssl = ssl
        self._session: aiohttp.ClientSession | None = None
        self._targets: dict[str, tuple[URL, URL | None]] = {}
        self._timeouts: tuple[Timeouts, aiohttp.ClientTimeout] | None = None

    async def send(self, request: UpstreamRequest, *, timeouts: Timeouts = DEFAULT_TIMEOUTS) -> "AiohttpResponse":
        """Send one request; returns once status and headers are there. Raises TransportError."""
        session = self._session or self._open()
        url, proxy = self._targets.get(request.url) or self._target(request.url)
        in_line: list[bool] = []
        try:
            response = await session.request(
                request.method,
                url,
                data=request.body or None,
                headers=request.headers,
                timeout=self._client_timeout(timeouts),
                allow_redirects=False,
                proxy=proxy,
                trace_request_ctx=in_line,
            )
        except Exception as exc:
            if in_line and isinstance(exc, aiohttp.ConnectionTimeoutError):
                raise NoPlace from exc
            raise _mapped(exc, answered=False) from exc
        if timeouts.idle != timeouts.first_byte:
            _set_idle(response, timeouts.idle)
        return AiohttpResponse(response)

    async def close(self) -> None:
        """Close every connection. Idempotent."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _open(self) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(
            limit=self._connections_max,
            limit_per_host=self._connections_per_host_max,
            ttl_dns_cache=DNS_TTL_SECONDS,
            keepalive_timeout=KEEPALIVE_SECONDS,
            ssl=self._ssl,
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            auto_decompress=True,
            skip_auto_headers=("Accept",),
            max_line_size=LINE_BYTES_MAX,
            max_field_size=LINE_BYTES_MAX,
            trace_configs=[_watching_the_line()] if self._is_bounded else None,
        )
        return self._session

    def _target(self, text: str) -> tuple[URL, URL | None]:
        """The parsed URL and its proxy, kept for the next call."""
        url = URL(text)
        if not url.host or url.scheme not in ("http", "https"):
            raise ConnectFailed("the provider's URL is not an http(s) address")
        if len(self._targets) >= _URLS_MAX:
            self._targets.clear()
        target = self._targets[text] = (url, proxy_for(url) if self._trust_env else None)
        return target

    def _client_timeout(self, timeouts: Timeouts) -> aiohttp.ClientTimeout:
        known = self._timeouts
        if known is None or known[0] is not timeouts:
            made = aiohttp.ClientTimeout(
                total=timeouts.total,
                connect=timeouts.first_byte if self._is_bounded else None,  # with waiting for a place
                sock_connect=timeouts.connect,
                sock_read=timeouts.first_byte,
            )
            known = self._timeouts = (timeouts, made)
        return known[1]


class AiohttpResponse:
    """`Response` over aiohttp's."""

    __slots__ = ("_response", "headers", "status")

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self.status = response.status
        self.headers: Mapping[str, str] = response.headers  # looks names up in any case

    async def read(self, max_bytes: int = BODY_BYTES_MAX) -> bytes:
        """The whole body. Raises TransportError; ResponseTooLong beyond `max_bytes`."""
        length = self._response.content_length
        if length is not None and length <= max_bytes and "content-encoding" not in self.headers:
            try:
                return await self._response.read()
            except Exception as exc:
                raise _mapped(exc, answered=True) from exc
        return await self._read_counting(max_bytes)

    async def _read_counting(self, max_bytes: int) -> bytes:
        parts: list[bytes] = []
        size = 0
        async for chunk in self.chunks():
            size += len(chunk)
            if size > max_bytes:
                self._response.close()
                raise ResponseTooLong(f"the answer exceeds {max_bytes} bytes")
            parts.append(chunk)
        return b"".join(parts)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self.chunks()

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it arrives. Raises TransportError."""
        content = self._response.content
        while True:
            try:
                chunk = await content.readany()
            except Exception as exc:
                self._response.close()
                raise _mapped(exc, answered=True) from exc
            if not chunk:
                return
            yield chunk

    async def close(self) -> None:
        """Give up the rest: the connection is dropped unless the body was read to its end. Idempotent."""
        self._response.close()


def _watching_the_line() -> aiohttp.TraceConfig:
    """Tells a call that it waits for a connection to come free: its context is empty unless it does."""

    async def begins(
        session: aiohttp.ClientSession, context: Any, told: aiohttp.TraceConnectionQueuedStartParams
    ) -> None:
        context.trace_request_ctx.append(True)

    async def ends(session: aiohttp.ClientSession, context: Any, told: aiohttp.TraceConnectionQueuedEndParams) -> None:
        context.trace_request_ctx.clear()

    watch = aiohttp.TraceConfig()
    watch.on_connection_queued_start.append(begins)
    watch.on_connection_queued_end.append(ends)
    return watch


_NOT_SENT = (
    aiohttp.ConnectionTimeoutError,
    aiohttp.ClientConnectorError,
    aiohttp.ClientHttpProxyError,
    aiohttp.InvalidURL,
)
"""What aiohttp raises before a byte of the request is written; TLS failures are ClientConnectorErrors."""


def _mapped(exc: Exception, *, answered: bool) -> TransportError:
    """The one place where foreign errors become ours. Texts name the kind only: addresses may be internal."""
    kind = type(exc).__name__
    if isinstance(exc, TransportError):
        return exc
    if isinstance(exc, aiohttp.ConnectionTimeoutError):
        return UpstreamTimeout("connect", sent=False)
    if isinstance(exc, _NOT_SENT):
        return ConnectFailed(f"no connection to the provider ({kind})")
    if isinstance(exc, aiohttp.SocketTimeoutError):
        return UpstreamTimeout("idle" if answered else "first_byte", sent=True)
    if isinstance(exc, TimeoutError):
        return UpstreamTimeout("total", sent=True)
    if isinstance(exc, (ValueError, TypeError)) and not answered and not isinstance(exc, aiohttp.ClientError):
        return ConnectFailed(f"the request cannot be sent ({kind})")
    if isinstance(exc, aiohttp.ClientOSError) and not answered:
        return SendFailed(f"the connection broke while sending ({kind})")
    return ResponseLost(f"the connection broke before the answer was complete ({kind})")


def _set_idle(response: aiohttp.ClientResponse, seconds: float | None) -> None:
    """From now on the read timeout is the one between chunks; it restarts with every byte that arrives.

    Only while the body is not complete: a timer must not outlive the exchange on a connection that is kept.
    """
    connection = response.connection
    protocol = connection.protocol if connection is not None else None
    if protocol is not None and not response.content.is_eof():
        protocol.read_timeout = seconds
        protocol.start_timeout()
