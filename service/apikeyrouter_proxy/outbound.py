"""Requests that somebody else's words send us on: never to an address of this machine or network, unless allowed."""

import asyncio
import ipaddress
from collections.abc import Mapping
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from apikeyrouter.domain.models.system_error import InvalidRequestError
from apikeyrouter.infrastructure.security.addresses import is_public

if TYPE_CHECKING:
    from apikeyrouter_proxy.outbound_session import OutboundSession

__all__ = ["Outbound"]

URL_LENGTH_MAX = 2048
REMEDY = "PROXY_PRIVATE_URLS=true allows it"


class Outbound:
    """Posts to URLs that were given through the management API. Follows no redirect, uses no proxy."""

    def __init__(self, *, private: bool) -> None:
        self._private = private
        self._session: OutboundSession | None = None

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

    async def check_resolved(self, url: str, *, field: str = "url") -> str:
        """As `check`, and its name must stand for public addresses as of now. Raises InvalidRequestError."""
        parts = urlsplit(self.check(url, field=field))
        if self._private:
            return url
        try:
            found = await asyncio.get_running_loop().getaddrinfo(parts.hostname, parts.port or 443)
        except OSError as exc:
            raise InvalidRequestError(f"its host cannot be resolved ({exc.strerror or exc})", field=field) from exc
        if not all(is_public(str(address[0])) for *_, address in found):
            raise InvalidRequestError(f"stands for a private address; {REMEDY}", field=field)
        return url

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> tuple[int, str]:
        """Status and ""; or 0 and what went wrong. The answer's body is not read."""
        try:
            self.check(url)
            return await self._opened().post(url, body, headers)
        except InvalidRequestError as exc:
            return 0, str(exc)

    async def close(self) -> None:
        """Let go of connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _opened(self) -> "OutboundSession":
        if self._session is None:
            from apikeyrouter_proxy.outbound_session import OutboundSession  # 8 MB, for workers that send something

            self._session = OutboundSession(private=self._private)
        return self._session


def _is_literal(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host.replace(".", "").isdigit() or host.startswith("0x")
    return True
