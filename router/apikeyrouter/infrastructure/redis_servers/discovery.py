"""Which server holds a key for writing: asked of Sentinels, of a Cluster's nodes, or simply known."""

import asyncio
import contextlib
import random
from dataclasses import dataclass
from typing import Any, cast

from apikeyrouter.domain.models.system_error import LedgerConfigError, LedgerUnavailableError
from apikeyrouter.infrastructure.redis_servers.address import RedisAddress, TlsOptions

__all__ = ["Finder", "Node"]

ANSWER_SECONDS_MAX = 1.0


@dataclass(frozen=True, slots=True)
class Node:
    """One server: a host and port, or a unix socket."""

    host: str = ""
    port: int = 0
    path: str | None = None

    def __str__(self) -> str:
        return self.path or f"{self.host}:{self.port}"


class Finder:
    """Finds the server that takes writes of a key. Remembers a Cluster's nodes, should all named ones be replaced."""

    def __init__(self, address: RedisAddress) -> None:
        self.address = address
        self._known: tuple[tuple[str, int], ...] = ()

    async def find(self, key: str) -> Node:
        """Where that server is now, as far as those know who are asked.

        Raises:
            LedgerUnavailableError: nobody who knows it answers; it may be known a moment later.
            LedgerConfigError: the Sentinels know no primary of that name.
        """
        address = self.address
        if address.topology == "sentinel":
            return await _primary(address)
        if address.topology == "cluster":
            node, self._known = await _owner(address, self._known, key)
            return node
        return Node(*address.hosts[0]) if address.path is None else Node(path=address.path)


async def _primary(address: RedisAddress) -> Node:
    """The primary by the newest configuration that a majority of the Sentinels, or all that answer, know of.

    A Sentinel that was cut off goes on telling of the primary before: one answer is not enough where more can be had.
    """
    asked = [asyncio.ensure_future(_asked(address, host, port)) for host, port in address.hosts]
    told: list[dict[str, Any]] = []
    unknown = 0
    try:
        for answer in asyncio.as_completed(asked):
            state = await answer
            unknown += state == {}
            if state:
                told.append(state)
            if len(told) > len(asked) // 2:
                break
    finally:
        for task in asked:
            task.cancel()
    if told:
        epoch = max(int(state["config-epoch"]) for state in told)
        for state in told:
            if int(state["config-epoch"]) == epoch and not state["is_odown"]:
                return Node(str(state["ip"]), int(state["port"]))
        raise LedgerUnavailableError(f"the Sentinels hold the primary {address.master!r} for down")
    if unknown == len(asked):
        raise LedgerConfigError(f"no Sentinel at {address} knows a primary of that name")
    raise LedgerUnavailableError(f"no Sentinel at {address} answers")


async def _asked(address: RedisAddress, host: str, port: int) -> dict[str, Any] | None:
    """What one Sentinel knows of the primary: {} when it knows none of that name, None when it does not answer."""
    from redis.asyncio import Redis
    from redis.exceptions import RedisError, ResponseError

    client = Redis(
        host=host, port=port, username=address.sentinel_username, password=address.sentinel_password,
        **_options(address.sentinel_tls),
    )  # fmt: skip
    try:
        return cast("dict[str, Any]", await client.sentinel_master(address.master))
    except ResponseError as exc:
        return {} if "No such master" in str(exc) else None
    except (RedisError, OSError, TimeoutError):
        return None
    finally:
        with contextlib.suppress(Exception):
            await client.aclose()


async def _owner(
    address: RedisAddress, known: tuple[tuple[str, int], ...], key: str
) -> tuple[Node, tuple[tuple[str, int], ...]]:
    """The node of the key's slot, by the first node that tells all slots; and every node there is."""
    from redis.asyncio.cluster import ClusterNode, RedisCluster
    from redis.exceptions import RedisError

    hosts = list(dict.fromkeys((*address.hosts, *known)))
    random.shuffle(hosts)  # one that is cut off tells what was
    client = RedisCluster(
        startup_nodes=[ClusterNode(host, port) for host, port in hosts], require_full_coverage=False,
        username=address.username, password=address.password, **_options(address.tls),
    )  # fmt: skip
    try:
        await client.initialize()
        node = client.get_node_from_key(key)
        nodes = tuple((str(each.host), int(each.port)) for each in client.get_nodes())
    except (RedisError, OSError, TimeoutError) as exc:
        raise LedgerUnavailableError(f"no node of the Cluster at {address} tells where the ledger is: {exc}") from exc
    finally:
        with contextlib.suppress(Exception):
            await client.aclose()
    if node is None:
        raise LedgerUnavailableError(f"the Cluster at {address} has nobody for the ledger's slot now")
    return Node(str(node.host), int(node.port)), nodes


def _options(tls: TlsOptions | None) -> dict[str, Any]:
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff

    return {
        "decode_responses": True, "retry": Retry(NoBackoff(), 0), "socket_timeout": ANSWER_SECONDS_MAX,
        "socket_connect_timeout": ANSWER_SECONDS_MAX, **(tls.words() if tls else {}),
    }  # fmt: skip
