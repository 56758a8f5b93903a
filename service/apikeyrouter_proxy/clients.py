"""Who may call, and as whom: client tokens, and the rule for services that have none (`contract.md` §2)."""

import hashlib
import hmac
import ipaddress
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from apikeyrouter.domain.components.client_rules import CLIENT
from apikeyrouter.domain.models.client import Client
from apikeyrouter.infrastructure.config.compiled import ClientRecord
from apikeyrouter.infrastructure.surface.problems import refuse
from apikeyrouter.infrastructure.surface.requests import ANYBODY, Caller

__all__ = ["Clients", "is_loopback"]

TOKEN_BYTES_MAX = 4096
PEERS_REMEMBERED_MAX = 4096
_PROXIED = (b"x-forwarded-for", b"forwarded", b"x-real-ip")


class Clients:
    """The clients of the file, and those that were made while running, found by the SHA-256 of their token.

    Tokens themselves are never kept. A file's client wins over one that was made with the same name.
    """

    def __init__(
        self, records: Iterable[ClientRecord] = (), made: Iterable[Client] = (), *, open_to_all: bool = False
    ) -> None:
        of_file = [_caller(record) for record in records]
        self.file_names = frozenset(str(caller.name) for caller in of_file)
        others = [caller for client in made if client.name not in self.file_names for caller in _callers(client)]
        self._by_digest = {caller.digest: caller for caller in (*others, *of_file)}
        self._open = open_to_all
        self._loopback: dict[str, bool] = {}

    def __len__(self) -> int:
        return len(self._by_digest)

    def identify(self, headers: Mapping[bytes, bytes], scope: Mapping[str, Any]) -> Caller:
        """The caller of a request. Raises RequestRefused: 401 for a token, 403 for a place."""
        if self._by_digest:
            return self._by_token(headers)
        if self._open or self._is_local(headers, scope.get("client")):
            return ANYBODY
        raise refuse(
            403,
            "permission_error",
            "remote_caller",
            "no clients are configured, so only callers on this machine are served; configure a client with a token"
            " (clients: in the configuration file), or start with PROXY_OPEN=true",
        )

    def _by_token(self, headers: Mapping[bytes, bytes]) -> Caller:
        token = token_of(headers)
        if token is None:
            raise refuse(
                401,
                "authentication_error",
                "missing_api_key",
                "a client token is needed: Authorization: Bearer <token>",
            )
        digest = hashlib.sha256(token).digest()
        caller = self._by_digest.get(digest)
        if caller is None or not hmac.compare_digest(caller.digest, digest):
            raise refuse(401, "authentication_error", "invalid_api_key", "this client token is not known")
        if caller.refusal:
            raise refuse(403, "permission_error", "client_disabled", caller.refusal)
        if caller.until_seconds and time.time() >= caller.until_seconds:
            raise refuse(401, "authentication_error", "expired_api_key", "this client token has expired")
        return caller

    def _is_local(self, headers: Mapping[bytes, bytes], peer: tuple[str, int] | None) -> bool:
        """On this machine, and neither relayed from elsewhere nor sent by a web page from elsewhere."""
        if peer is not None and not self._peer_is_loopback(peer[0]):
            return False
        if any(name in headers for name in _PROXIED):
            return _relayed_locally(headers)
        origin = headers.get(b"origin")
        return origin is None or _is_local_origin(origin.decode("latin-1"))

    def _peer_is_loopback(self, host: str) -> bool:
        known = self._loopback.get(host)
        if known is None:
            if len(self._loopback) >= PEERS_REMEMBERED_MAX:
                self._loopback.clear()
            known = self._loopback[host] = is_loopback(host)
        return known


def token_of(headers: Mapping[bytes, bytes]) -> bytes | None:
    """The client token: `Authorization: Bearer`, `x-api-key` or `x-goog-api-key`; None when there is none."""
    given = headers.get(b"authorization")
    if given is not None:
        scheme, _, token = given.partition(b" ")
        if scheme.lower() != b"bearer":
            return None
        token = token.strip()
    else:
        token = headers.get(b"x-api-key") or headers.get(b"x-goog-api-key") or b""
    return token if 0 < len(token) <= TOKEN_BYTES_MAX else None


def is_loopback(host: str) -> bool:
    """Whether an address is this machine's own; names and anything unreadable are not."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


def _relayed_locally(headers: Mapping[bytes, bytes]) -> bool:
    """A proxy on this machine says for whom it speaks: every hop must be local too."""
    if b"forwarded" in headers:
        return False
    told = b",".join(headers[name] for name in _PROXIED if name in headers).decode("latin-1")
    return all(is_loopback(part.strip().strip("[]")) for part in told.split(",") if part.strip())


def _is_local_origin(origin: str) -> bool:
    host = origin.partition("://")[2].rpartition(":")[0] or origin.partition("://")[2]
    return host == "localhost" or is_loopback(host.strip("[]"))


def _caller(record: ClientRecord) -> Caller:
    return Caller(
        name=record.name,
        team=record.team,
        models=record.models,
        lanes=(record.lane,) if record.lane else (),
        weight=record.weight,
        digest=bytes.fromhex(record.token_sha256),
        until_seconds=_seconds(record.expires_at),
        priority=record.priority,
    )


def _callers(client: Client) -> Iterator[Caller]:
    """Its token, and the one before for as long as that is taken too."""
    now = Caller(
        name=client.name,
        team=client.team,
        models=None if client.models is None else frozenset(client.models),
        lanes=(f"{CLIENT}{client.name}",) if client.rpm or client.tpm or client.concurrency else (),
        weight=client.weight,
        digest=bytes.fromhex(client.token_sha256),
        until_seconds=_seconds(client.expires_at),
        priority=client.priority,
        refusal="" if client.enabled else "this client is switched off",
    )
    yield now
    if client.old_token_sha256 is not None and client.old_token_until is not None:
        until = min(_seconds(client.old_token_until), now.until_seconds or math.inf)
        yield replace(now, digest=bytes.fromhex(client.old_token_sha256), until_seconds=until)


def _seconds(moment: datetime | None) -> float:
    return 0.0 if moment is None else moment.timestamp()
