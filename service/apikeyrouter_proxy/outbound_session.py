"""The connections of `Outbound`, by aiohttp: what is connected to is what was checked."""

import errno
import socket
from collections.abc import Mapping

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver

from apikeyrouter.infrastructure.security.addresses import is_public
from apikeyrouter_proxy.outbound import REMEDY

__all__ = ["OutboundSession"]

ANSWER_SECONDS_MAX = 10.0


class _PublicOnly(AbstractResolver):
    """Resolves names, and refuses those that stand for a private address."""

    def __init__(self) -> None:
        self._inner = ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """The public addresses of a name. Raises OSError when one of them is not public."""
        found = await self._inner.resolve(host, port, family)
        if not found or not all(is_public(one["host"]) for one in found):
            raise OSError(errno.EACCES, f"{host} stands for a private address; {REMEDY}")
        return found

    async def close(self) -> None:
        """Nothing to let go of."""


class OutboundSession:
    """Posts, without redirects, proxies and cookies."""

    def __init__(self, *, private: bool) -> None:
        connector = aiohttp.TCPConnector(resolver=None if private else _PublicOnly(), use_dns_cache=False)
        self._session = aiohttp.ClientSession(connector=connector, trust_env=False, cookie_jar=aiohttp.DummyCookieJar())

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> tuple[int, str]:
        """Status and ""; or 0 and what went wrong. The answer's body is not read."""
        try:
            async with self._session.post(
                url, data=body, headers=dict(headers), allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=ANSWER_SECONDS_MAX),
            ) as answer:  # fmt: skip
                return answer.status, ""
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as exc:
            return 0, f"{type(exc).__name__}: {exc}"[:300]

    async def close(self) -> None:
        """Let go of connections."""
        await self._session.close()
