"""Being let in: a connection that is logged in, to a server that takes writes and forgets nothing by itself."""

import asyncio
import ssl
from dataclasses import dataclass, field

import hiredis

from apikeyrouter.domain.models.system_error import LedgerConfigError, LedgerUnavailableError
from apikeyrouter.infrastructure.redis_servers.address import RedisAddress
from apikeyrouter.infrastructure.redis_servers.discovery import Node
from apikeyrouter.infrastructure.redis_servers.pipelined import PipelinedConnection, packed

__all__ = ["CONNECT_SECONDS_MAX", "Dialled", "Dialler", "refusal"]

CONNECT_SECONDS_MAX = 2.0


@dataclass(frozen=True, slots=True)
class Dialled:
    """A connection, and which server's run of which history is behind it ("": the server does not tell)."""

    node: Node
    connection: PipelinedConnection = field(repr=False)
    identity: str


class Dialler:
    """Connects to servers of one deployment."""

    def __init__(self, address: RedisAddress) -> None:
        self._address = address
        self._context = None if address.tls is None else address.tls.context()

    async def dial(self, node: Node) -> Dialled:
        """A connection to this server.

        Raises:
            LedgerUnavailableError: it cannot be reached in CONNECT_SECONDS_MAX, refuses us, or is a replica.
            LedgerConfigError: it evicts keys, or lacks rights.
        """
        try:
            async with asyncio.timeout(CONNECT_SECONDS_MAX):
                connection = await self._reach(node)
                try:
                    return Dialled(node, connection, await self._greet(node, connection))
                except BaseException:
                    connection.close()
                    raise
        except (OSError, TimeoutError, ssl.SSLError) as exc:
            raise LedgerUnavailableError(f"Redis at {node} cannot be reached: {exc or 'timed out'}") from exc

    async def _reach(self, node: Node) -> PipelinedConnection:
        loop = asyncio.get_running_loop()

        def make() -> PipelinedConnection:
            return PipelinedConnection(loop, CONNECT_SECONDS_MAX)

        if node.path:
            return (await loop.create_unix_connection(make, node.path))[1]
        return (await loop.create_connection(make, node.host, node.port, ssl=self._context))[1]

    async def _greet(self, node: Node, connection: PipelinedConnection) -> str:
        at = self._address
        if at.password:
            await expect_ok(node, connection, *filter(None, ("AUTH", at.username, at.password)))
        if at.database:
            await expect_ok(node, connection, "SELECT", str(at.database))
        facts = _facts(await connection.send(packed(("INFO", "server", "replication", "memory"))))
        if facts.get("role") == "slave":
            raise LedgerUnavailableError(
                f"Redis at {node} is a read-only replica: name its primary, or let redis+sentinel:// or"
                " redis+cluster:// find it"
            )
        policy = facts.get("maxmemory_policy", "noeviction")
        if policy != "noeviction":
            raise LedgerConfigError(
                f"Redis at {node} evicts keys (maxmemory-policy {policy}), so spent budgets would be"
                " forgotten; run: CONFIG SET maxmemory-policy noeviction"
            )
        return f"{facts.get('run_id', '')}{facts.get('master_replid', '')}"


async def expect_ok(node: Node, connection: PipelinedConnection, *command: str) -> None:
    """Send a command of which only the success matters."""
    reply = await connection.send(packed(command))
    if isinstance(reply, hiredis.ReplyError):
        raise refusal(reply, node)


def refusal(reply: hiredis.ReplyError, node: Node) -> LedgerUnavailableError | LedgerConfigError:
    """What a server's no means."""
    if str(reply).startswith("NOPERM"):
        return LedgerConfigError(f"Redis refused: {reply}; docs/redis-keys.md says what its user needs")
    return LedgerUnavailableError(f"Redis at {node} refused: {reply}")


def _facts(reply: object) -> dict[str, str]:
    """INFO, as far as the server tells it: a user may lack the right, a managed server may leave lines out."""
    if isinstance(reply, hiredis.ReplyError) or not isinstance(reply, bytes):
        return {}
    lines = (line.partition(":") for line in reply.decode("utf-8", "replace").splitlines() if ":" in line)
    return {name: value for name, _, value in lines}
