"""The upstream HTTP client for the hot path: our own connections, httptools for what comes back.

Imported where httptools is there (`transports.py`). Foreign errors are mapped here and in `lean_connection.py`.
"""

import asyncio
import ssl as ssl_module
from collections import Counter, deque
from collections.abc import Callable
from types import TracebackType
from typing import Self

from apikeyrouter.domain.interfaces.wire import UpstreamRequest
from apikeyrouter.infrastructure.adapters.dialing import open_socket
from apikeyrouter.infrastructure.adapters.lean_connection import LeanConnection
from apikeyrouter.infrastructure.adapters.request_head import Origin, RequestHeads, says_length
from apikeyrouter.infrastructure.adapters.transport import (
    DEFAULT_TIMEOUTS,
    ConnectFailed,
    NoPlace,
    Response,
    Timeouts,
    Transport,
    UpstreamTimeout,
)
from apikeyrouter.infrastructure.security.addresses import AddressRefused

__all__ = ["LeanTransport"]

IDLE_CONNECTIONS_MAX = 4096
"""Most connections per origin that are kept while nobody uses them."""


class LeanTransport:
    """`Transport` over asyncio and httptools.

    Connections belong to the event loop that made them: on another loop, as in a forked process, it begins anew.
    TLS is verified, compressed answers are decompressed. What goes through a proxy goes through aiohttp.

    `admits`: whether an address may be connected to, asked of what a name stands for when a connection is made; None:
    any. Behind a proxy, names are the proxy's. `connections_max`: most connections to one origin; who finds all of them
    in use waits in line, first come, first served, as long as for a first byte; None: as many as there are calls.
    """

    def __init__(
        self,
        *,
        trust_env: bool = True,
        ssl: ssl_module.SSLContext | bool = True,
        admits: Callable[[str], bool] | None = None,
        connections_max: int | None = None,
    ) -> None:
        self._admits = admits
        self._connections_max = connections_max
        self._trust_env = trust_env
        self._ssl = ssl
        self._context: ssl_module.SSLContext | None = None
        self._heads = RequestHeads(trust_env=trust_env)
        self._pool: _Pool | None = None
        self._other: tuple[asyncio.AbstractEventLoop, Transport] | None = None

    async def send(self, request: UpstreamRequest, *, timeouts: Timeouts = DEFAULT_TIMEOUTS) -> Response:
        """Send one request; returns once status and headers are there. Raises TransportError."""
        target = self._heads.target(request.url)
        if target.delegated:
            return await self._delegate().send(request, timeouts=timeouts)
        pool = self._bound()
        head, body = self._heads.head(request, target), request.body
        head = b"%bcontent-length: %d\r\n\r\n" % (head, len(body)) if says_length(request) else head + b"\r\n"
        deadline = None if timeouts.total is None else pool.loop.time() + timeouts.total
        connection = pool.take(target.origin)
        response = None if connection is None else connection.begin(head, body, timeouts, deadline)
        if response is None:
            connection = await self._connect(pool, target.origin, timeouts, deadline)
            response = connection.begin(head, body, timeouts, deadline)
        if response is None:
            raise ConnectFailed("no connection to the provider (closed at once)")
        return await response.begun()

    async def close(self) -> None:
        """Close every connection. Idempotent."""
        pool, self._pool = self._pool, None
        other, self._other = self._other, None
        if pool is not None:
            pool.close()
            await asyncio.sleep(0)  # the sockets close in the loop's next turn
        if other is not None:
            await other[1].close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _bound(self) -> "_Pool":
        """This event loop's connections. Another loop's are left to it: it may run in another thread or process."""
        loop = asyncio.get_running_loop()
        if self._pool is None or self._pool.loop is not loop:
            self._pool = _Pool(loop) if self._connections_max is None else _BoundedPool(loop, self._connections_max)
        return self._pool

    def _delegate(self) -> Transport:
        loop = asyncio.get_running_loop()
        if self._other is None or self._other[0] is not loop:
            from apikeyrouter.infrastructure.adapters.http_transport import AiohttpTransport

            most = self._connections_max or 0
            self._other = (
                loop, AiohttpTransport(trust_env=self._trust_env, ssl=self._ssl, connections_per_host_max=most)
            )  # fmt: skip
        return self._other[1]

    async def _connect(
        self, pool: "_Pool", origin: Origin, timeouts: Timeouts, deadline: float | None
    ) -> LeanConnection:
        phase = "connect"
        try:
            tls = self._tls() if origin.tls else None
            waited_for = await pool.place(origin, timeouts.first_byte, deadline)
            if waited_for is not None:
                return waited_for
            left = None if deadline is None else deadline - pool.loop.time()
            limits = [seconds for seconds in (timeouts.connect, left) if seconds is not None]
            if timeouts.connect is None or min(limits) < timeouts.connect:
                phase = "total"
            async with asyncio.timeout(min(limits, default=None)):
                return await pool.dial(origin, tls, self._admits)
        except TimeoutError as exc:
            raise UpstreamTimeout(phase, sent=False) from exc
        except AddressRefused as exc:
            raise ConnectFailed("no connection to the provider (its name stands for a private address)") from exc
        except (OSError, ValueError) as exc:  # TLS failures are OSErrors, a name that is none is a ValueError
            raise ConnectFailed(f"no connection to the provider ({type(exc).__name__})") from exc

    def _tls(self) -> ssl_module.SSLContext:
        if isinstance(self._ssl, ssl_module.SSLContext):
            return self._ssl
        if self._context is None:
            context = self._context = ssl_module.create_default_context()
            context.set_alpn_protocols(["http/1.1"])
            if not self._ssl:
                context.check_hostname, context.verify_mode = False, ssl_module.CERT_NONE
        return self._context


class _Pool:
    """The connections of one event loop. The one that was used last is used first, so that the others may go."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._idle: dict[object, dict[LeanConnection, None]] = {}
        self._all: set[LeanConnection] = set()
        self._closed = False

    def take(self, origin: Origin) -> LeanConnection | None:
        """A connection that is open; None when there is none."""
        idle = self._idle.get(origin)
        while idle:
            connection, _ = idle.popitem()
            if connection.is_usable():
                return connection
            connection.end(None)
        return None

    async def place(self, origin: Origin, seconds: float | None, deadline: float | None) -> LeanConnection | None:
        """Wait until a connection may be made, or one comes free: that one. At most `seconds`, and until `deadline`.

        Raises NoPlace, UpstreamTimeout.
        """
        return None

    def take_back(self, connection: LeanConnection) -> None:
        """Keep a connection whose exchange is over."""
        idle = self._idle.setdefault(connection.origin, {})
        if len(idle) >= IDLE_CONNECTIONS_MAX:
            connection.end(None)
        else:
            idle[connection] = None

    def forget(self, connection: LeanConnection) -> None:
        """The connection is closed."""
        self._all.discard(connection)
        idle = self._idle.get(connection.origin)
        if idle is not None:
            idle.pop(connection, None)
            if not idle:
                del self._idle[connection.origin]

    async def dial(
        self, origin: Origin, tls: ssl_module.SSLContext | None, admits: Callable[[str], bool] | None
    ) -> LeanConnection:
        """A new connection. Raises OSError, ValueError."""
        opened = await open_socket(origin.host, origin.port, admits=admits)
        _, connection = await self.loop.create_connection(
            lambda: LeanConnection(self.loop, self, origin), sock=opened, ssl=tls,
            server_hostname=origin.host if tls is not None else None,
        )  # fmt: skip
        self._all.add(connection)
        if self._closed:
            connection.end(None)
            raise ConnectionAbortedError("the transport was closed")
        return connection

    def close(self) -> None:
        """Close every connection; exchanges under way fail."""
        self._closed = True
        for connection in tuple(self._all):
            connection.end(None)


class _BoundedPool(_Pool):
    """The same with at most so many connections to an origin.

    A connection holds a place from when it is dialled or taken until its exchange is over; the next in line gets the
    place, and the connection with it where that is kept.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, most: int) -> None:
        super().__init__(loop)
        self._most = most
        self._used: Counter[Origin] = Counter()
        self._busy: dict[LeanConnection, Origin] = {}
        self._lines: dict[Origin, deque[asyncio.Future[LeanConnection | None]]] = {}

    def take(self, origin: Origin) -> LeanConnection | None:
        """As `_Pool` says, unless somebody waits in line."""
        connection = None if origin in self._lines else super().take(origin)
        if connection is not None:
            self._used[origin] += 1
            self._busy[connection] = origin
        return connection

    async def place(self, origin: Origin, seconds: float | None, deadline: float | None) -> LeanConnection | None:
        """As `_Pool` says: None is a place, which whoever dials holds."""
        until = None if seconds is None else self.loop.time() + seconds
        while origin in self._lines or self._used[origin] >= self._most:
            connection = await self._in_line(origin, until, deadline)
            if connection is None or connection.is_usable():
                return connection
            if self._busy.pop(connection, None) is not None:  # it broke on its way here, and its place is ours
                connection.end(None)
                return None
        idle = self._idle.get(origin)
        if idle and self._used[origin] + len(idle) >= self._most:
            next(iter(idle)).end(None)
        self._used[origin] += 1
        return None

    async def dial(
        self, origin: Origin, tls: ssl_module.SSLContext | None, admits: Callable[[str], bool] | None
    ) -> LeanConnection:
        """As `_Pool` says, in a place that is held."""
        try:
            connection = await super().dial(origin, tls, admits)
            if connection.closed:
                raise ConnectionAbortedError("closed at once")
        except BaseException:
            self._pass_on(origin)
            raise
        self._busy[connection] = origin
        return connection

    def take_back(self, connection: LeanConnection) -> None:
        """Hand it to the next in line, or keep it."""
        origin = self._busy[connection]
        following = self._next(origin)
        if following is not None:
            following.set_result(connection)
            return
        del self._busy[connection]
        self._leave(origin)
        super().take_back(connection)

    def forget(self, connection: LeanConnection) -> None:
        """The connection is closed, and its place is free."""
        super().forget(connection)
        origin = self._busy.pop(connection, None)
        if origin is not None:
            self._pass_on(origin)

    async def _in_line(self, origin: Origin, until: float | None, deadline: float | None) -> LeanConnection | None:
        place: asyncio.Future[LeanConnection | None] = self.loop.create_future()
        self._lines.setdefault(origin, deque()).append(place)
        limits = [limit for limit in (until, deadline) if limit is not None]
        try:
            async with asyncio.timeout_at(min(limits, default=None)):
                return await place
        except BaseException as exc:
            self._step_out(origin, place)
            if isinstance(exc, TimeoutError):
                late = deadline is not None and (until is None or deadline <= until)
                raise (UpstreamTimeout("total", sent=False) if late else NoPlace()) from exc
            raise

    def _step_out(self, origin: Origin, place: "asyncio.Future[LeanConnection | None]") -> None:
        """Whoever waited goes without what he was given, if anything: it is the next one's."""
        if place.done() and not place.cancelled():
            connection = place.result()
            if connection is None:
                self._pass_on(origin)
            elif connection in self._busy:
                self.take_back(connection)
            return
        line = self._lines.get(origin)
        if line is not None and place in line:
            line.remove(place)
            if not line:
                del self._lines[origin]

    def _next(self, origin: Origin) -> "asyncio.Future[LeanConnection | None] | None":
        """The first in line who still waits, out of the line."""
        line = self._lines.get(origin, ())
        while line:
            place = line.popleft()
            if not line:
                del self._lines[origin]
            if not place.done():
                return place
        return None

    def _pass_on(self, origin: Origin) -> None:
        """A place has come free: the next in line has it."""
        following = self._next(origin)
        if following is not None:
            following.set_result(None)
        else:
            self._leave(origin)

    def _leave(self, origin: Origin) -> None:
        self._used[origin] -= 1
        if not self._used[origin]:
            del self._used[origin]
