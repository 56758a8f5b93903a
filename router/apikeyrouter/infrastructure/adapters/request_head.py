"""The first bytes of a request: where it goes, and its head as it is written.

What repeats from request to request is made once: the parsed address, and the head of a header tuple.
"""

import re
from typing import NamedTuple

from yarl import URL

from apikeyrouter.domain.interfaces.wire import Headers, UpstreamRequest
from apikeyrouter.infrastructure.adapters.proxies import proxy_for
from apikeyrouter.infrastructure.adapters.transport import ConnectFailed

__all__ = ["Origin", "RequestHeads", "Target"]

TARGETS_MAX = 256
HEADS_MAX = 1024
"""Heads kept; they hold credentials, in memory only, as the requests do that they come from."""

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_BREAKING = re.compile(r"[\r\n\0]")
_WITHOUT_BODY = frozenset({"GET", "DELETE", "OPTIONS"})
"""Methods that say no content-length when they carry no body."""


class Origin(NamedTuple):
    """Where connections lead: those of one origin are interchangeable."""

    host: str
    port: int
    tls: bool


class Target(NamedTuple):
    """One address."""

    origin: Origin
    path: str
    host: str
    """As the host header names it."""
    delegated: bool
    """Whether another client must send it: through a proxy, or with credentials in the address."""


class RequestHeads:
    """Targets and heads of the requests of one transport. Raises ConnectFailed for what must not be written."""

    def __init__(self, *, trust_env: bool) -> None:
        self._trust_env = trust_env
        self._targets: dict[str, Target] = {}
        self._heads: dict[tuple[str, str, Headers], bytes] = {}

    def target(self, url: str) -> Target:
        """Where an address leads; its proxy is looked up once."""
        return self._targets.get(url) or self._new_target(url)

    def head(self, request: UpstreamRequest, target: Target) -> bytes:
        """The request line and all headers except content-length."""
        headers = request.headers
        if type(headers) is not tuple:
            headers = tuple(headers)
        key = (request.method, request.url, headers)
        return self._heads.get(key) or self._new_head(key, target)

    def _new_target(self, url: str) -> Target:
        if len(self._targets) >= TARGETS_MAX:
            self._targets.clear()
        target = self._targets[url] = _parsed(url, trust_env=self._trust_env)
        return target

    def _new_head(self, key: tuple[str, str, Headers], target: Target) -> bytes:
        if len(self._heads) >= HEADS_MAX:
            self._heads.clear()
        method, _, headers = key
        head = self._heads[key] = _encoded(method, target, headers)
        return head


def says_length(request: UpstreamRequest) -> bool:
    """Whether the request has a content-length header."""
    return bool(request.body) or request.method not in _WITHOUT_BODY


def _parsed(text: str, *, trust_env: bool) -> Target:
    if _BREAKING.search(text):
        raise _refused()
    try:
        url = URL(text)
        host, port = url.raw_host, url.port
    except ValueError as exc:
        raise _refused() from exc
    if not host or not port or url.scheme not in ("http", "https"):
        raise ConnectFailed("the provider's URL is not an http(s) address")
    proxy = proxy_for(url) if trust_env else None
    return Target(
        origin=Origin(host, port, url.scheme == "https"), path=url.raw_path_qs or "/",
        host=url.host_port_subcomponent or host, delegated=proxy is not None or url.raw_user is not None,
    )  # fmt: skip


def _encoded(method: str, target: Target, headers: Headers) -> bytes:
    if not _TOKEN.fullmatch(method) or _BREAKING.search(target.path):
        raise _refused()
    lines = [f"{method} {target.path} HTTP/1.1\r\n"]
    if not any(name.lower() == "host" for name, _ in headers):
        lines.append(f"host: {target.host}\r\n")
    for name, value in headers:
        if not _TOKEN.fullmatch(name) or _BREAKING.search(value) or name.lower() == "transfer-encoding":
            raise _refused()
        if name.lower() != "content-length":
            lines.append(f"{name}: {value}\r\n")
    try:
        return "".join(lines).encode()
    except UnicodeEncodeError as exc:
        raise _refused() from exc


def _refused() -> ConnectFailed:
    """Says nothing of what was refused: it may be a credential."""
    return ConnectFailed("the request cannot be sent")
