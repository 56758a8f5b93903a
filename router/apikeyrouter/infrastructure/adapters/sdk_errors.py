"""What an SDK's exception says of the provider: by the answer that it carries, or by what broke below HTTP. Pure.

For calls that the application makes itself, with a leased key. No SDK is imported: what counts are the attributes that
openai, anthropic, google-genai, httpx and aiohttp share.
"""

import socket
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import msgspec

from apikeyrouter.domain.interfaces.provider_adapter import http_status
from apikeyrouter.domain.interfaces.wire import Wire
from apikeyrouter.domain.models.failure import Failure
from apikeyrouter.infrastructure.adapters.transport import ConnectFailed, ResponseLost, TransportError, UpstreamTimeout

__all__ = ["below_http", "read_answer_of"]

CAUSES_MAX = 8
"""How deep a chain of causes is followed."""
_CONNECTING = frozenset({"ConnectError", "ConnectTimeout", "PoolTimeout", "ClientConnectorError", "ProxyError"})
_TIMED_OUT = frozenset({"TimeoutException", "ServerTimeoutError", "APITimeoutError"})
_BROKEN = frozenset({"TransportError", "ClientConnectionError", "ClientPayloadError", "APIConnectionError"})


def read_answer_of(error: BaseException, wire: Wire, *, secret: str) -> Failure | None:
    """The failure in the answer that an exception carries, in the provider's dialect; None when it carries none.

    An error in the middle of a stream has the status of the stream, 200; what was received by then may be billed.
    """
    body = _body_of(error)
    status = http_status(error)
    if status is None and body is None:
        return None
    failure = wire.classify(status or 200, _headers_of(error), body or b"", known_secrets=(secret,))
    return failure if status is not None and status >= 400 else replace(failure, billed=None)


def below_http(error: BaseException) -> TransportError | None:
    """The exception as one of ours, where it or a cause of it is a connection's trouble; None when it is not."""
    kinds: set[str] = set()
    for each in _causes(error):
        kinds |= {kind.__name__ for kind in type(each).__mro__}
        if isinstance(each, TransportError):
            return each
        if isinstance(each, ConnectionRefusedError | socket.gaierror | ssl.SSLCertVerificationError):
            return ConnectFailed(type(each).__name__)
    if kinds & _CONNECTING:
        return ConnectFailed(type(error).__name__)
    if kinds & _TIMED_OUT or isinstance(error, TimeoutError):
        return UpstreamTimeout("total", sent=True)
    if kinds & _BROKEN or isinstance(error, ConnectionError | ssl.SSLError):
        return ResponseLost(type(error).__name__)
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    each: BaseException | None = error
    for _ in range(CAUSES_MAX):
        if each is None:
            return
        yield each
        each = each.__cause__ or each.__context__


def _body_of(error: BaseException) -> bytes | None:
    """The error's body as the provider sent it, as far as the SDK kept it."""
    for name in ("body", "details"):
        told = getattr(error, name, None)
        if isinstance(told, Mapping):
            return _encoded(told if "error" in told or "message" not in told else {"error": told})
        if isinstance(told, str | bytes) and told:
            return told.encode() if isinstance(told, str) else told
    try:
        return bytes(error.response.content)  # type: ignore[attr-defined]
    except Exception:  # there is none, or nobody read it
        return None


def _encoded(told: Mapping[str, Any]) -> bytes | None:
    try:
        return msgspec.json.encode(dict(told))
    except (TypeError, ValueError, msgspec.MsgspecError):
        return None


def _headers_of(error: BaseException) -> dict[str, str]:
    headers = getattr(getattr(error, "response", None), "headers", None) or getattr(error, "headers", None)
    try:
        return {str(name).lower(): str(value) for name, value in dict(headers or {}).items()}
    except (TypeError, ValueError):
        return {}
