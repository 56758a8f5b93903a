"""The scripts on Redis or Valkey, over one pipelined connection to whichever server has the cell.

Concurrent calls share the connection: what is asked within one turn of the event loop leaves in one write, and replies
come back in order. Nothing is retried here except what certainly did not run (no such function, moved elsewhere,
LOADING and the like); whoever made the reservation id decides what an ambiguous answer means.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from functools import partial

import hiredis

from apikeyrouter.domain.models.system_error import (
    LedgerProtocolError,
    LedgerRefusedError,
    LedgerUnavailableError,
)
from apikeyrouter.infrastructure.ledger.engine import Argument, Reply, cell_keys
from apikeyrouter.infrastructure.ledger.scripts import load_library
from apikeyrouter.infrastructure.redis_servers.address import parse_redis_url
from apikeyrouter.infrastructure.redis_servers.dialing import CONNECT_SECONDS_MAX, Dialled, Dialler, refusal
from apikeyrouter.infrastructure.redis_servers.discovery import Finder, Node
from apikeyrouter.infrastructure.redis_servers.pipelined import PipelinedConnection, packed
from apikeyrouter.infrastructure.redis_servers.shared import SharedConnection

FIND_SECONDS_MAX = 3.0
OPEN_SECONDS_MAX = FIND_SECONDS_MAX + 2 * CONNECT_SECONDS_MAX
PAUSE_SECONDS = 0.01
"""Before what was refused for the moment is asked again."""
LOOK_SECONDS = 0.1
"""Between two looks for a server that takes writes."""
_CACHE_MAX = 256
_NO_FUNCTION = "ERR Function not found"
_ASKING = packed(("ASKING",))
_AWAY = ("LOADING", "BUSY", "CLUSTERDOWN", "MASTERDOWN")
"""Refusals of a server that serves nobody now."""
_PASSING = (*_AWAY, _NO_FUNCTION, "MOVED ", "ASK ", "READONLY", "TRYAGAIN")
"""Refusals that may be over within the deadline of a call. None of those calls ran."""
_LASTING = {
    "OOM": "it is full (maxmemory): nothing is admitted until there is room, settlements go on; give it more memory",
    "MISCONF": "it cannot write to its disk and therefore takes no writes; look at its disk and its log",
    "NOREPLICAS": "too few replicas keep up with it (min-replicas-to-write); look at them",
}
"""Refusals that last until somebody does something. None of those calls ran."""


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
        self._finder, self._dialler = Finder(self.address), Dialler(self.address)
        self._cell_key = cell_keys(namespace, cell, "L", pool="")[0]
        self._main = SharedConnection(self._connect)
        self._aside: tuple[Node, SharedConnection] | None = None
        self._node: Node | None = None
        self._moved_to: Node | None = None
        self._identity = ""
        self._look_at = 0.0
        self._closed = False
        self.on_another_server: Callable[[], None] | None = None
        """Called when a connection was made to another server, or another run of it, than the one before: it may lack
        what that one had acknowledged."""

    async def open(self) -> None:
        """Find the server and connect, refuse one that evicts, load the library."""
        self._closed = False
        await self._main.get(OPEN_SECONDS_MAX, at_once=True)

    async def close(self) -> None:
        """Close the connection; calls under way end with LedgerUnavailableError."""
        self._closed = True
        self._main.close()
        if self._aside is not None:
            self._aside[1].close()

    async def run(self, name: str, args: Sequence[Argument], *, pool: str = "") -> Reply:
        """Run one script. One round trip; what was refused for the moment is asked again until the deadline."""
        connection = self._main.current
        if connection is None or connection.closed:
            connection = await self._connected()
        reply = await connection.send(self._command(name, args, pool))
        if isinstance(reply, list):
            return reply
        unanswered = False
        try:
            async with asyncio.timeout(max(self._timeout_s, PAUSE_SECONDS)):
                while not isinstance(reply, list):
                    again = await self._after(_passing(name, reply), name, args, pool)
                    unanswered = True  # what was refused before may run now
                    reply = await again
                    unanswered = False
        except TimeoutError:
            gone = unanswered or str(reply).startswith(_AWAY)
            raise (LedgerUnavailableError if gone else LedgerRefusedError)(f"Redis refused: {reply}") from None
        return reply

    async def _call(self, name: str, args: Sequence[Argument], pool: str) -> object:
        connection = self._main.current
        if connection is None or connection.closed:
            connection = await self._connected()
        return await connection.send(self._command(name, args, pool))

    def _command(self, name: str, args: Sequence[Argument], pool: str) -> bytes:
        head, count = self._heads.get((name, pool)) or self._head(name, pool)
        words = _words_of(tuple(args)) if args else b""
        return b"*%d\r\n%b%b" % (count + len(args), head, words)

    def _head(self, name: str, pool: str) -> tuple[bytes, int]:
        """What every call of a script begins with, packed once (FCALL, function, keys), and how many words that is."""
        if len(self._heads) > _CACHE_MAX:
            self._heads.clear()
        script = self._library.scripts[name]
        keys = cell_keys(self._namespace, self._cell, script.keys, pool=pool)
        words = ("FCALL", script.function, str(len(keys)), *keys)
        head = self._heads[name, pool] = (_words_of(words), len(words))
        return head

    # --- what was refused for the moment -----------------------------------------------------------------------------

    async def _after(
        self, text: str, name: str, args: Sequence[Argument], pool: str
    ) -> Coroutine[object, object, object]:
        """The next try, where that belongs and when it is of use; nothing has been sent yet."""
        kind, *where = text.split()
        if kind == "ASK":
            return self._ask(await self._aside_at(self._named(where)), name, args, pool)
        if kind == "MOVED":
            self._follow(self._named(where))
        elif text.startswith(_NO_FUNCTION):
            await self._load(self._node, await self._connected())
        else:
            if kind in ("READONLY", "MASTERDOWN", "CLUSTERDOWN"):
                self._look_again()
            await asyncio.sleep(PAUSE_SECONDS)
        return self._call(name, args, pool)

    async def _ask(self, aside: PipelinedConnection, name: str, args: Sequence[Argument], pool: str) -> object:
        asking = aside.send(_ASKING)
        reply = aside.send(self._command(name, args, pool))
        await asking
        return await reply

    def _named(self, where: list[str]) -> Node:
        """The node of a redirection, `slot host:port`; without a host it is the one that we asked."""
        host, _, port = where[1].rpartition(":")
        known = self._node.host if self._node is not None else ""
        return Node(host.strip("[]") or known, int(port))

    def _follow(self, node: Node) -> None:
        """The cell is elsewhere: at this node. Of many calls one moves us."""
        if self._main.current is None or node in (self._node, self._moved_to):
            return
        self._node, self._moved_to = None, node
        self._main.retire()

    def _look_again(self) -> None:
        """Ask anew where the cell is: who answers here is not, or no longer, the one that takes writes."""
        now = asyncio.get_running_loop().time()
        if now >= self._look_at and self._main.current is not None:
            self._look_at = now + LOOK_SECONDS
            self._node = None
            self._main.retire()

    async def _aside_at(self, node: Node) -> PipelinedConnection:
        """A connection to the node that a slot is being moved to."""
        if self._aside is None or self._aside[0] != node:
            if self._aside is not None:
                self._aside[1].retire()
            self._aside = (node, SharedConnection(partial(self._dial, node)))
        return await self._aside[1].get(self._timeout_s)

    # --- connecting --------------------------------------------------------------------------------------------------

    async def _connected(self) -> PipelinedConnection:
        if self._closed:
            raise LedgerUnavailableError("Redis: the ledger is closed")
        return await self._main.get(self._timeout_s)

    async def _connect(self) -> Dialled:
        moved_to, self._moved_to = self._moved_to, None
        node = moved_to or await self._find()
        dialled = await self._dial(node)
        self._node = node
        if self._identity and dialled.identity not in ("", self._identity) and self.on_another_server is not None:
            self.on_another_server()
        self._identity = dialled.identity or self._identity
        return dialled

    async def _find(self) -> Node:
        try:
            async with asyncio.timeout(FIND_SECONDS_MAX):
                return await self._finder.find(self._cell_key)
        except TimeoutError as exc:
            raise LedgerUnavailableError(f"Redis: nobody at {self.address} told in time where the ledger is") from exc

    async def _dial(self, node: Node) -> Dialled:
        dialled = await self._dialler.dial(node)
        try:
            await self._load(node, dialled.connection)
        except BaseException:
            dialled.connection.close()
            raise
        dialled.connection.answer_within(self._timeout_s)
        return dialled

    async def _load(self, node: Node | None, connection: PipelinedConnection) -> None:
        """Give the server the library, unless it has it: loading is refused while memory is full, settling is not."""
        known = await connection.send(packed(("FUNCTION", "LIST", "LIBRARYNAME", self._library.name)))
        if isinstance(known, hiredis.ReplyError):
            raise refusal(known, node or Node())
        if known:
            return
        reply = await connection.send(packed(("FUNCTION", "LOAD", self._library.text)))
        if isinstance(reply, hiredis.ReplyError) and "already exists" not in str(reply):
            raise refusal(reply, node or Node())


def _passing(name: str, reply: object) -> str:
    """What was refused for the moment, in the server's words.

    Raises:
        LedgerRefusedError: refused until somebody does something.
        LedgerConfigError: our user lacks rights.
        LedgerProtocolError: it is no refusal.
    """
    text = str(reply)
    if isinstance(reply, hiredis.ReplyError):
        if text.startswith(_PASSING):
            return text
        if text.startswith("NOPERM"):
            raise refusal(reply, Node())
        remedy = _LASTING.get(text.partition(" ")[0])
        if remedy is not None:
            raise LedgerRefusedError(f"Redis refused: {text}; {remedy}")
    raise LedgerProtocolError(f"script {name} failed: {text}")


def _words_of(words: tuple[str | bytes | int, ...]) -> bytes:
    """Words as they stand in a command, without the count before them."""
    ready = packed(words)
    return ready[ready.index(b"\n") + 1 :]
