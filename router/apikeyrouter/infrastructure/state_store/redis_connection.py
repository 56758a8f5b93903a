"""redis-py clients from a URL: pooled, without retries of their own."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from apikeyrouter.domain.models.system_error import StateStoreError, StateStoreUnavailableError
from apikeyrouter.infrastructure.redis_servers.address import RedisAddress, parse_redis_url, redacted_url
from apikeyrouter.infrastructure.state_store.loop_clients import LoopClients

if TYPE_CHECKING:
    from redis.asyncio import Redis

__all__ = ["RedisClients", "check_redis_url", "mapped_errors", "open_client", "redacted_url"]

CONNECTIONS_MAX = 16
CONNECT_SECONDS_MAX = 2.0
ANSWER_SECONDS_MAX = 5.0
WAIT_FOR_CONNECTION_SECONDS_MAX = 5.0


def check_redis_url(url: str) -> str:
    """The URL itself. Errors: ConfigurationError that says what is wrong with it, never showing a password."""
    parse_redis_url(url)
    return url


def open_client(url: str) -> "Redis":
    """A client of the running event loop, answers decoded as text. It connects on first use."""
    address = parse_redis_url(url)
    if address.topology == "sentinel":
        return _open_sentinel(address)
    if address.topology == "cluster":
        return _open_cluster(address)
    from redis.asyncio import BlockingConnectionPool, Redis, SSLConnection, UnixDomainSocketConnection

    where: dict[str, Any] = {"connection_class": UnixDomainSocketConnection, "path": address.path}
    if address.path is None:
        host, port = address.hosts[0]
        where = {"host": host, "port": port}
    if address.tls is not None:
        where |= {"connection_class": SSLConnection, **address.tls.words()}
        del where["ssl"]
    pool = BlockingConnectionPool(
        max_connections=CONNECTIONS_MAX, timeout=WAIT_FOR_CONNECTION_SECONDS_MAX, db=address.database,
        username=address.username, password=address.password, **where, **_options(),
    )  # fmt: skip
    return Redis.from_pool(pool)


def _options() -> dict[str, Any]:
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff

    return {
        "decode_responses": True,
        "retry": Retry(NoBackoff(), 0),
        "socket_connect_timeout": CONNECT_SECONDS_MAX,
        "socket_timeout": ANSWER_SECONDS_MAX,
    }


def _open_sentinel(address: RedisAddress) -> "Redis":
    from redis.asyncio.sentinel import Sentinel

    asking = {
        **_options(), "username": address.sentinel_username, "password": address.sentinel_password,
        **(address.sentinel_tls.words() if address.sentinel_tls else {}),
    }  # fmt: skip
    sentinel = cast("Any", Sentinel)(address.hosts, sentinel_kwargs=asking)
    words = {**_options(), **(address.tls.words() if address.tls else {})}
    client = sentinel.master_for(
        address.master, username=address.username, password=address.password, db=address.database, **words
    )
    return cast("Redis", client)


def _open_cluster(address: RedisAddress) -> "Redis":
    from redis.asyncio.cluster import ClusterNode, RedisCluster

    nodes = [ClusterNode(host, port) for host, port in address.hosts]
    words = {**_options(), **(address.tls.words() if address.tls else {})}
    client = RedisCluster(startup_nodes=nodes, username=address.username, password=address.password, **words)
    return cast("Redis", client)


class RedisClients(LoopClients["Redis"]):
    """A client of Redis for each event loop of each process."""

    def __init__(self, make: "Callable[[], Redis]") -> None:
        super().__init__(make, lambda client: client.aclose())


@contextmanager
def mapped_errors(url: str) -> Iterator[None]:
    """Turn redis-py's errors into ours: StateStoreUnavailableError or StateStoreError, saying what to do."""
    from redis.exceptions import AuthenticationError, RedisError
    from redis.exceptions import ConnectionError as RedisConnectionError
    from redis.exceptions import TimeoutError as RedisTimeoutError

    try:
        yield
    except AuthenticationError as exc:
        raise StateStoreError(f"{redacted_url(url)} refuses the credentials in the Redis URL") from exc
    except (RedisConnectionError, RedisTimeoutError, OSError) as exc:
        raise StateStoreUnavailableError(
            f"Redis at {redacted_url(url)} does not answer ({type(exc).__name__}); check that it runs and is reachable"
        ) from exc
    except RedisError as exc:
        raise StateStoreError(f"Redis at {redacted_url(url)} refused a command: {exc}") from exc
