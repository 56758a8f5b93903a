"""The seam to the upstream HTTP client: one request out, status, headers and a body of chunks back.

A transport never retries, follows no redirect, keeps no cookie: what happens after a failure is the router's decision.
Failures answer the one question that decides retries and billing: may the provider have received the request?
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Protocol

from apikeyrouter.domain.interfaces.wire import UpstreamRequest
from apikeyrouter.domain.models.system_error import ApiKeyRouterError
from apikeyrouter.domain.models.timeouts import Timeouts as Timeouts

BODY_BYTES_MAX = 64 * 1024 * 1024
"""Largest whole answer read, in bytes."""


class TransportError(ApiKeyRouterError):
    """The exchange with a provider failed below HTTP. `sent`: whether the provider may have received the request."""

    sent = True


class ConnectFailed(TransportError):
    """No connection was made: certainly not sent."""

    sent = False


class NoPlace(TransportError):
    """All connections that we allow ourselves to this provider were in use for too long: certainly not sent, and no
    fault of the provider's."""

    sent = False

    def __init__(self) -> None:
        super().__init__("no connection to the provider became free in time (connections_max)")


class SendFailed(TransportError):
    """The connection broke while sending: the provider may have received the request."""


class ResponseLost(TransportError):
    """The connection broke after the request was sent: the provider may have answered and billed."""


class ResponseTooLong(TransportError):
    """A whole answer exceeds the bytes allowed for it."""


class UpstreamTimeout(TransportError):
    """A phase took too long. `phase`: connect, first_byte, first_token, idle or total."""

    def __init__(self, phase: str, *, sent: bool) -> None:
        super().__init__(f"the provider took too long: {phase}")
        self.phase = phase
        self.sent = sent


DEFAULT_TIMEOUTS = Timeouts()


class Response(Protocol):
    """An answer whose body has not been read yet."""

    status: int
    headers: Mapping[str, str]

    async def read(self, max_bytes: int = BODY_BYTES_MAX) -> bytes:
        """The whole body. Raises TransportError; ResponseTooLong beyond `max_bytes`."""
        ...

    def chunks(self) -> AsyncIterator[bytes]:
        """The body as it arrives. Raises TransportError."""
        ...

    async def close(self) -> None:
        """Give up the rest: the connection is dropped unless the body was read to its end. Idempotent."""
        ...


class Pouring(ABC):
    """A body that can be handed on while it arrives, without a task that is woken for every piece of it."""

    __slots__ = ()

    @abstractmethod
    async def pour(self, take: Callable[[bytes], bool]) -> bool:
        """Call `take` with every piece as it comes, until it wants no more (False) or the body has ended (True).

        What `take` declined has been taken all the same. Raises TransportError, and what `take` raises.
        """

    @abstractmethod
    def leave(self) -> None:
        """All that matters has come: what little is left of the body is not waited for, and need not end the
        connection."""


class Transport(Protocol):
    """What the router needs from an HTTP client."""

    async def send(self, request: UpstreamRequest, *, timeouts: Timeouts = DEFAULT_TIMEOUTS) -> Response:
        """Send one request; returns once status and headers are there. Raises TransportError."""
        ...

    async def close(self) -> None:
        """Close every connection. Idempotent."""
        ...
