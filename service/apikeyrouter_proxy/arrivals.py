"""Where a request came from: the peer of its connection, or the client that a trusted proxy in front names.

Only what is told rests on this (access lines, `scope["client"]`); it gives no rights. Who may call without a token is
judged by the connection itself.
"""

import ipaddress
from collections.abc import MutableMapping
from contextvars import ContextVar
from typing import Any

from apikeyrouter.domain.models.system_error import ConfigurationError
from apikeyrouter_proxy.options import ProxyOptions

__all__ = ["PEER", "Arrivals", "open_arrivals"]

PEER: ContextVar[str | None] = ContextVar("peer", default=None)
"""The address that the request under way came from, where access lines show it."""
HOPS_MAX = 32
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def open_arrivals(options: ProxyOptions) -> "Arrivals | None":
    """What looks at each request; None where it is not wanted. Errors: ConfigurationError for a wrong network."""
    if not options.trusted_proxies and not options.access_log_peer:
        return None
    return Arrivals(options.trusted_proxies)


class Arrivals:
    """`trusted`: addresses and networks of proxies, separated by commas."""

    def __init__(self, trusted: str = "") -> None:
        self._trusted = [_network(part.strip()) for part in trusted.split(",") if part.strip()]

    def note(self, scope: MutableMapping[str, Any]) -> None:
        """Put the client's address, and the scheme that it used, into the scope, where a trusted proxy tells them."""
        peer = scope.get("client")
        if peer is None:  # a unix socket
            PEER.set(None)
            return
        if self._trusted and self._is_trusted(peer[0]):
            headers = dict(scope["headers"])
            told = self._client(headers.get(b"x-forwarded-for", b"").decode("latin-1"))
            if told is not None:
                peer = scope["client"] = (told, 0)
            scheme = headers.get(b"x-forwarded-proto", b"").decode("latin-1").strip().lower()
            if scheme in ("http", "https"):
                scope["scheme"] = scheme
        PEER.set(peer[0])

    def _client(self, forwarded: str) -> str | None:
        """The last hop that no trusted proxy stands at: what comes before it, anybody may have made up."""
        for part in reversed(forwarded.split(",")[-HOPS_MAX:]):
            address = part.strip().strip("[]")
            try:
                parsed = ipaddress.ip_address(address)
            except ValueError:
                return None
            if parsed.is_loopback:  # of the proxy's machine, not of ours
                return None
            if not self._is_trusted(address):
                return str(parsed)
        return None

    def _is_trusted(self, address: str) -> bool:
        try:
            parsed = ipaddress.ip_address(address.partition("%")[0])
        except ValueError:
            return False
        parsed = getattr(parsed, "ipv4_mapped", None) or parsed
        return any(parsed.version == network.version and parsed in network for network in self._trusted)


def _network(text: str) -> _Network:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ConfigurationError(f"PROXY_TRUSTED_PROXIES: {text[:64]!r} is no address or network") from None
