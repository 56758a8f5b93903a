"""How the server behind the ledger is, by its own word and as a worker sees it."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from apikeyrouter.infrastructure.state_store.redis_connection import mapped_errors, open_client, redacted_url

if TYPE_CHECKING:
    from redis.asyncio import Redis

__all__ = ["StoreHealth", "look_at_store"]

PINGS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreHealth:
    """None: the server does not say. Latencies are of a PING from the worker that looked, of PINGS the median and the
    longest."""

    server: str
    version: str
    url: str
    role: str | None
    replicas: int | None
    uptime_seconds: int | None
    memory_bytes: int | None
    memory_peak_bytes: int | None
    memory_max_bytes: int | None
    eviction: str | None
    fragmentation: float | None
    append_only: bool | None
    append_only_ok: bool | None
    snapshot_ok: bool | None
    snapshot_at_us: int | None
    operations_per_second: int | None
    clients: int | None
    blocked_clients: int | None
    rejected_connections: int | None
    evicted_keys: int | None
    ping_us: int
    ping_us_max: int


async def look_at_store(url: str) -> StoreHealth:
    """Ask the server. Errors: StateStoreUnavailableError, StateStoreError."""
    client = open_client(url)
    try:
        with mapped_errors(url):
            info: dict[str, Any] = await client.info()
            pings = sorted([await _ping_us(client) for _ in range(PINGS)])
    finally:
        await client.aclose()
    return health_of(info, url=url, ping_us=pings[PINGS // 2], ping_us_max=pings[-1])


async def _ping_us(client: "Redis") -> int:
    began = time.perf_counter()
    await client.ping()
    return int((time.perf_counter() - began) * 1e6)


def health_of(info: Mapping[str, Any], *, url: str, ping_us: int, ping_us_max: int) -> StoreHealth:
    """What INFO says."""

    def number(name: str) -> int | None:
        value = info.get(name)
        return int(value) if isinstance(value, int | float) else None

    def fine(name: str) -> bool | None:
        return info[name] == "ok" if name in info else None

    fragmentation, saved = info.get("mem_fragmentation_ratio"), number("rdb_last_save_time")
    return StoreHealth(
        server="Valkey" if "valkey_version" in info else "Redis",
        version=str(info.get("valkey_version") or info.get("redis_version", "unknown")), url=redacted_url(url),
        role=info.get("role"), replicas=number("connected_slaves"), uptime_seconds=number("uptime_in_seconds"),
        memory_bytes=number("used_memory"), memory_peak_bytes=number("used_memory_peak"),
        memory_max_bytes=number("maxmemory") or None, eviction=info.get("maxmemory_policy"),
        fragmentation=float(fragmentation) if isinstance(fragmentation, int | float) else None,
        append_only=bool(info["aof_enabled"]) if "aof_enabled" in info else None,
        append_only_ok=fine("aof_last_write_status"), snapshot_ok=fine("rdb_last_bgsave_status"),
        snapshot_at_us=None if saved is None else saved * 1_000_000,
        operations_per_second=number("instantaneous_ops_per_sec"), clients=number("connected_clients"),
        blocked_clients=number("blocked_clients"), rejected_connections=number("rejected_connections"),
        evicted_keys=number("evicted_keys"), ping_us=ping_us, ping_us_max=ping_us_max,
    )  # fmt: skip
