"""Requests that somebody else's words send us on: never to an address of this machine or network, unless allowed."""

import ipaddress
import socket
from collections.abc import Mapping
from urllib.parse import urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver

from apikeyrouter.domain.models.system_error import InvalidRequestError

__all__ = ["Outbound", "is_public"]

ANSWER_SECONDS_MAX = 10.0
URL_LENGTH_MAX = 2048
REMEDY = "PROXY_PRIVATE_URLS=true allows it"


def is_public(host: str) -> bool:
    """Whether an address belongs to nobody's own network; names and anything unreadable do not."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    found = getattr(address, "ipv4_mapped", None) or getattr(address, "sixtofour", None) or address
    return bool(found.is_global and not found.is_multicast and not found.is_reserved)


class _PublicOnly(AbstractResolver):
    """Resolves names, and refuses those that stand for a private address; what is connected to is what was checked."""

    def __init__(self) -> None:
        self._inner = ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """The public addresses of a name. Raises OSError when one of them is not public."""
        found = await self._inner.resolve(host, port, family)
        if not found or not all(is_public(one["host"]) for one in found):
            raise OSError(f"{host} stands for a private address; {REMEDY}")
        return found

    async def close(self) -> None:
        """Nothing to let go of."""


class Outbound:
    """Posts to URLs that were given through the management API. Follows no redirect, uses no proxy."""

    def __init__(self, *, private: bool) -> None:
        self._private = private
        self._session: aiohttp.ClientSession | None = None

    def check(self, url: str, *, field: str = "url") -> str:
        """The URL, if it may be used as far as can be told now. Raises InvalidRequestError."""
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError as exc:
            raise InvalidRequestError("is not a URL", field=field) from exc
        if parts.scheme not in ("http", "https") or not host or port == 0 or len(url) > URL_LENGTH_MAX:
            raise InvalidRequestError(
                "must be a URL that starts with http:// or https:// and names a host", field=field
            )
        if parts.username or parts.password:
            raise InvalidRequestError("must hold no user or password", field=field)
        if not self._private and (_is_literal(host) or host.endswith("localhost")) and not is_public(host):
            raise InvalidRequestError(f"stands for a private address; {REMEDY}", field=field)
        return url

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> tuple[int, str]:
        """Status and ""; or 0 and what went wrong. The answer's body is not read."""
        try:
            self.check(url)
            async with self._opened().post(
                url, data=body, headers=dict(headers), allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=ANSWER_SECONDS_MAX),
            ) as answer:  # fmt: skip
                return answer.status, ""
        except InvalidRequestError as exc:
            return 0, str(exc)
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as exc:
            return 0, f"{type(exc).__name__}: {exc}"[:300]

    async def close(self) -> None:
        """Let go of connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            resolver = None if self._private else _PublicOnly()
            connector = aiohttp.TCPConnector(resolver=resolver, use_dns_cache=False)
            self._session = aiohttp.ClientSession(
                connector=connector, trust_env=False, cookie_jar=aiohttp.DummyCookieJar()
            )
        return self._session


def _is_literal(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host.replace(".", "").isdigit() or host.startswith("0x")
    return True
