"""redis-py clients from a URL: pooled, without retries of their own."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import parse_qsl, unquote, urlsplit

from apikeyrouter.domain.models.system_error import (
    ConfigurationError,
    StateStoreError,
    StateStoreUnavailableError,
)
from apikeyrouter.infrastructure.state_store.loop_clients import LoopClients

if TYPE_CHECKING:
    from redis.asyncio import Redis

__all__ = ["RedisClients", "check_redis_url", "mapped_errors", "open_client", "redacted_url"]

SCHEMES = ("redis", "rediss", "unix", "redis+sentinel", "redis+cluster")
CONNECTIONS_MAX = 16
CONNECT_SECONDS_MAX = 2.0
ANSWER_SECONDS_MAX = 5.0
WAIT_FOR_CONNECTION_SECONDS_MAX = 5.0


def check_redis_url(url: str) -> str:
    """The URL itself. Errors: ConfigurationError that says which schemes there are, never showing a password."""
    scheme, separator, rest = url.partition("://") if isinstance(url, str) else ("", "", "")
    if not separator or scheme not in SCHEMES or not rest:
        raise ConfigurationError(f"a Redis URL starts with one of {', '.join(f'{s}://' for s in SCHEMES)}")
    if scheme == "redis+sentinel" and not urlsplit(url).path.strip("/"):
        raise ConfigurationError("redis+sentinel:// needs the master's name: redis+sentinel://host:26379/mymaster/0")
    return url


def redacted_url(url: str) -> str:
    """The URL for messages: without user and password, without query."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2].partition('?')[0]}"


def open_client(url: str) -> "Redis":
    """A client of the running event loop, answers decoded as text. It connects on first use.

    Sentinel: `redis+sentinel://[user:password@]host:port[,host:port…]/master[/db]`, the password is the data
    server's (`?sentinel_password=` for the sentinels). Cluster: `redis+cluster://[user:password@]host:port[,…]`.
    """
    scheme = check_redis_url(url).partition("://")[0]
    if scheme == "redis+sentinel":
        return _open_sentinel(url)
    if scheme == "redis+cluster":
        return _open_cluster(url)
    from redis.asyncio import BlockingConnectionPool, Redis

    try:
        pool = BlockingConnectionPool.from_url(
            url, max_connections=CONNECTIONS_MAX, timeout=WAIT_FOR_CONNECTION_SECONDS_MAX, **_options()
        )
    except ValueError as exc:
        raise ConfigurationError(f"the Redis URL {redacted_url(url)} is not valid: {exc}") from exc
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


def _open_sentinel(url: str) -> "Redis":
    from redis.asyncio.sentinel import Sentinel

    parts = urlsplit(url)
    name, _, db = parts.path.strip("/").partition("/")
    query = dict(parse_qsl(parts.query))
    user, password = _credentials(url)
    sentinel_options = {**_options(), "password": query.get("sentinel_password")}
    sentinel = cast("Any", Sentinel)(_hosts(url, 26379), sentinel_kwargs=sentinel_options, **_options())
    return cast("Redis", sentinel.master_for(name, username=user, password=password, db=int(db or 0)))


def _open_cluster(url: str) -> "Redis":
    from redis.asyncio.cluster import ClusterNode, RedisCluster

    user, password = _credentials(url)
    nodes = [ClusterNode(host, port) for host, port in _hosts(url, 6379)]
    client = RedisCluster(startup_nodes=nodes, username=user, password=password, **_options())
    return cast("Redis", client)


def _hosts(url: str, port_default: int) -> list[tuple[str, int]]:
    netloc = urlsplit(url).netloc.rpartition("@")[2]
    pairs = [part.rpartition(":") if ":" in part else (part, "", "") for part in netloc.split(",") if part]
    try:
        return [(host or "127.0.0.1", int(port or port_default)) for host, _, port in pairs]
    except ValueError as exc:
        raise ConfigurationError(f"the Redis URL {redacted_url(url)} names a port that is no number") from exc


def _credentials(url: str) -> tuple[str | None, str | None]:
    given = urlsplit(url).netloc.rpartition("@")[0]
    user, _, password = given.partition(":")
    return unquote(user) or None, unquote(password) or None


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
