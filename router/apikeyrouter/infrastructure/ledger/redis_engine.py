"""The scripts on Redis or Valkey, over one pipelined connection.

Concurrent calls share the connection: what is asked within one turn of the event loop leaves in one write, and replies
come back in order. Nothing is retried here except what certainly did not run (no such function, LOADING and the like);
whoever made the reservation id decides what an ambiguous answer means.
"""

import asyncio
import ssl
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast
from urllib.parse import parse_qs, unquote, urlsplit

import hiredis

from apikeyrouter.domain.models.system_error import LedgerConfigError, LedgerProtocolError, LedgerUnavailableError
from apikeyrouter.infrastructure.ledger.engine import Argument, Reply, cell_keys
from apikeyrouter.infrastructure.ledger.scripts import load_library

PENDING_MAX = 10_000
CONNECT_TIMEOUT_S = 2.0
_NOT_EXECUTED = ("LOADING", "BUSY", "READONLY", "CLUSTERDOWN", "MASTERDOWN", "NOREPLICAS", "MISCONF", "OOM", "TRYAGAIN")
_CACHE_MAX = 256
_NO_FUNCTION = "ERR Function not found"
_packed = cast("Callable[[tuple[str | bytes | int, ...]], bytes]", hiredis.pack_command)
"""One command as the protocol has it. (The package's own stub takes a tuple of one word only.)"""


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """Where a server is and how to be let in. Prints without the password."""

    host: str
    port: int
    path: str | None
    username: str | None
    password: str | None
    database: int
    tls: bool
    verify: bool

    def __repr__(self) -> str:
        where = f"unix://{self.path}" if self.path else f"{'rediss' if self.tls else 'redis'}://{self.host}:{self.port}"
        return f"{where}/{self.database}"


def parse_redis_url(url: str) -> RedisAddress:
    """`redis://`, `rediss://` and `unix://` URLs.

    Raises:
        LedgerConfigError: another scheme, or a port or database that is no number.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("redis", "rediss", "unix"):
        raise LedgerConfigError(
            f"Redis URL: scheme {parts.scheme!r} is not supported; use redis://, rediss:// or unix://"
        )
    query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
    path = unquote(parts.path) if parts.scheme == "unix" else None
    database = query.get("db") or ("0" if path else parts.path.strip("/") or "0")
    try:
        return RedisAddress(
            host=parts.hostname or "127.0.0.1", port=parts.port or 6379, path=path,
            username=unquote(parts.username) if parts.username else query.get("username"),
            password=unquote(parts.password) if parts.password else query.get("password"), database=int(database),
            tls=parts.scheme == "rediss", verify=query.get("ssl_cert_reqs", "required") != "none",
        )  # fmt: skip
    except ValueError as exc:
        raise LedgerConfigError("Redis URL: the port and the database must be numbers") from exc


class _Connection(asyncio.Protocol):
    """One connection: writes what was asked in a turn of the loop at once, hands replies out in order."""

    def __init__(self, loop: asyncio.AbstractEventLoop, timeout_s: float) -> None:
        self._loop, self.timeout_s = loop, timeout_s
        self._reader = hiredis.Reader(notEnoughData=Ellipsis)
        self._waiting: deque[asyncio.Future[object]] = deque()
        self._due: deque[float] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._outgoing: list[bytes] = []
        self._transport: asyncio.Transport | None = None
        self.closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's own class is no subclass of it

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        try:
            while (reply := self._reader.gets()) is not Ellipsis:
                future = self._waiting.popleft()
                self._due.popleft()
                if not future.done():
                    future.set_result(reply)
        except (hiredis.ProtocolError, IndexError) as exc:
            self._fail(f"the server's answer is not Redis protocol: {exc}")

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(f"connection lost: {exc or 'closed by the server'}")

    def _fail(self, why: str) -> None:
        self.closed = True
        if self._transport is not None:
            self._transport.abort()
        if self._timer is not None:
            self._timer.cancel()
        self._due.clear()
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_exception(LedgerUnavailableError(f"Redis: {why}"))

    def send(self, command: bytes) -> asyncio.Future[object]:
        future: asyncio.Future[object] = self._loop.create_future()
        if self.closed or len(self._waiting) >= PENDING_MAX:
            why = "connection lost" if self.closed else "too many calls wait"
            future.set_exception(LedgerUnavailableError(f"Redis: {why}"))
            return future
        self._waiting.append(future)
        self._due.append(self._loop.time() + self.timeout_s)
        if self._timer is None:
            self._timer = self._loop.call_at(self._due[0], self._expire)
        self._outgoing.append(command)
        if len(self._outgoing) == 1:
            self._loop.call_soon(self._flush)
        return future

    def answer_within(self, timeout_s: float) -> None:
        """From now on a call may take so long. Called while nothing waits."""
        self.timeout_s = timeout_s
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expire(self) -> None:
        """End the waiting for what is overdue; its reply, if it still comes, is thrown away in its turn."""
        self._timer = None
        now = self._loop.time()
        for future, due in zip(self._waiting, self._due, strict=True):
            if due > now:
                self._timer = self._loop.call_at(due, self._expire)
                return
            if not future.done():
                future.set_exception(LedgerUnavailableError("Redis did not answer within the deadline"))

    def _flush(self) -> None:
        if self._transport is not None and not self.closed:
            self._transport.write(b"".join(self._outgoing))
        self._outgoing.clear()

    def close(self) -> None:
        self._fail("closed")


class RedisEngine:
    """Runs the scripts of one cell on a server. Bound to the event loop that opened it.

    `timeout_s` is how long one call may take before it counts as unanswered (it may still run).
    """

    def __init__(
        self,
        url: str,
        *,
        namespace: str = "apikeyrouter",
        cell: str = "main",
        timeout_s: float = 0.15,
        virtual_time: bool = False,
    ) -> None:
        self.address = parse_redis_url(url)
        self._namespace, self._cell, self._timeout_s = namespace, cell, timeout_s
        self._library = load_library(virtual_time=virtual_time)
        self._heads: dict[tuple[str, str], tuple[bytes, int]] = {}
        self._connection: _Connection | None = None
        self._connecting: asyncio.Lock | None = None
        self._closed = False

    async def open(self) -> None:
        """Connect, refuse a server that evicts, load the library."""
        self._closed = False
        await self._connected()

    async def close(self) -> None:
        """Close the connection; calls under way end with LedgerUnavailableError."""
        self._closed = True
        if self._connection is not None:
            self._connection.close()

    async def run(self, name: str, args: Sequence[Argument], *, pool: str = "") -> Reply:
        """Run one script. One round trip; a server that lost its scripts gets them again first."""
        reply = await self._call(name, args, pool)
        if isinstance(reply, hiredis.ReplyError) and str(reply).startswith(_NO_FUNCTION):
            await self._load(await self._connected())
            reply = await self._call(name, args, pool)
        if isinstance(reply, list):
            return reply
        text = str(reply)
        if isinstance(reply, hiredis.ReplyError) and text.startswith(_NOT_EXECUTED):
            raise LedgerUnavailableError(f"Redis refused: {text}")
        raise LedgerProtocolError(f"script {name} failed: {text}")

    async def _call(self, name: str, args: Sequence[Argument], pool: str) -> object:
        connection = self._connection
        if connection is None or connection.closed:
            connection = await self._connected()
        head, count = self._heads.get((name, pool)) or self._head(name, pool)
        words = _words_of(tuple(args)) if args else b""
        return await connection.send(b"*%d\r\n%b%b" % (count + len(args), head, words))

    def _head(self, name: str, pool: str) -> tuple[bytes, int]:
        """What every call of a script begins with, packed once (FCALL, function, keys), and how many words that is."""
        if len(self._heads) > _CACHE_MAX:
            self._heads.clear()
        script = self._library.scripts[name]
        keys = cell_keys(self._namespace, self._cell, script.keys, pool=pool)
        words = ("FCALL", script.function, str(len(keys)), *keys)
        head = self._heads[name, pool] = (_words_of(words), len(words))
        return head

    async def _connected(self) -> _Connection:
        if self._closed:
            raise LedgerUnavailableError("Redis: the ledger is closed")
        if self._connecting is None:
            self._connecting = asyncio.Lock()
        async with self._connecting:
            if self._connection is None or self._connection.closed:
                self._connection = await self._connect()
            return self._connection

    async def _connect(self) -> _Connection:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                connection = await self._dial()
                try:
                    await self._greet(connection)
                except BaseException:
                    connection.close()
                    raise
                connection.answer_within(self._timeout_s)
                return connection
        except (OSError, TimeoutError, ssl.SSLError) as exc:
            raise LedgerUnavailableError(f"Redis at {self.address!r} cannot be reached: {exc or 'timed out'}") from exc

    async def _dial(self) -> _Connection:
        loop, at = asyncio.get_running_loop(), self.address

        def make() -> _Connection:
            return _Connection(loop, CONNECT_TIMEOUT_S)

        if at.path:
            _, connection = await loop.create_unix_connection(make, at.path)
            return connection
        context = None
        if at.tls:
            context = ssl.create_default_context()
            if not at.verify:
                context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        _, connection = await loop.create_connection(make, at.host, at.port, ssl=context)
        return connection

    async def _greet(self, connection: _Connection) -> None:
        at = self.address
        if at.password:
            await self._expect_ok(connection, *filter(None, ("AUTH", at.username, at.password)))
        if at.database:
            await self._expect_ok(connection, "SELECT", str(at.database))
        await self._refuse_eviction(connection)
        await self._load(connection)

    async def _refuse_eviction(self, connection: _Connection) -> None:
        """A server that evicts keys would forget what was spent. Where CONFIG is forbidden, it is not known."""
        reply = await connection.send(_packed(("CONFIG", "GET", "maxmemory-policy")))
        policy = reply[1].decode() if isinstance(reply, list) and len(reply) == 2 else "noeviction"
        if policy.startswith("allkeys"):
            connection.close()
            raise LedgerConfigError(
                f"Redis at {self.address!r} evicts keys (maxmemory-policy {policy}), so spent budgets would be"
                " forgotten; run: CONFIG SET maxmemory-policy noeviction"
            )

    async def _load(self, connection: _Connection) -> None:
        """Give the server the library, unless it has it: loading is refused while memory is full, settling is not."""
        known = await connection.send(_packed(("FUNCTION", "LIST", "LIBRARYNAME", self._library.name)))
        if isinstance(known, list) and known:
            return
        reply = await connection.send(_packed(("FUNCTION", "LOAD", self._library.text)))
        if isinstance(reply, hiredis.ReplyError) and "already exists" not in str(reply):
            raise _refusal(reply, self.address)

    async def _expect_ok(self, connection: _Connection, *command: str) -> None:
        reply = await connection.send(_packed(command))
        if isinstance(reply, hiredis.ReplyError):
            connection.close()
            raise _refusal(reply, self.address)


def _words_of(words: tuple[str | bytes | int, ...]) -> bytes:
    """Words as they stand in a command, without the count before them."""
    packed = _packed(words)
    return packed[packed.index(b"\n") + 1 :]


def _refusal(reply: hiredis.ReplyError, address: RedisAddress) -> LedgerUnavailableError | LedgerConfigError:
    if str(reply).startswith("NOPERM"):
        return LedgerConfigError(f"Redis at {address!r} refused: {reply}; docs/redis-keys.md says what its user needs")
    return LedgerUnavailableError(f"Redis at {address!r} refused: {reply}")
