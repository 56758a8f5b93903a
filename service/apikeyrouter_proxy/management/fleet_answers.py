"""What management answers of the deployment itself: workers, the store, findings."""

from typing import Literal

from pydantic import AwareDatetime

from apikeyrouter_proxy.management.answers import Answer, Paged


class WorkerShown(Answer):
    """A worker, as it described itself at `heard_at`. `id`: what the ids of its reservations have in common, from the
    13th to the 18th hexadecimal digit. `reserve_p50_us`: from ranking until something was held; null: nobody asked.
    `cpu_share`: of one core. `clock_offset_ms`: how far the ledger's clock is ahead of its own."""

    id: str
    host: str
    pid: int
    version: str
    state: Literal["normal", "store_away", "bounded", "draining", "lost"]
    started_at: AwareDatetime
    heard_at: AwareDatetime
    config_version: int
    decisions_per_second: float
    open_requests: int
    waiting: int
    waiting_longest_ms: int
    reserve_p50_us: int | None
    reserve_p99_us: int | None
    clock_offset_ms: int
    clock_suspected: bool
    unsettled: int
    memory_bytes: int
    cpu_share: float


class WorkerPage(Paged):
    """Workers, by id."""

    workers: list[WorkerShown]


class StoreShown(Answer):
    """The server behind the ledger. null: it does not say; `memory_max_bytes` null: it has no bound of its own."""

    server: Literal["Redis", "Valkey"]
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
    snapshot_at: AwareDatetime | None
    operations_per_second: int | None
    clients: int | None
    blocked_clients: int | None
    rejected_connections: int | None
    evicted_keys: int | None
    ping_us: int
    ping_us_max: int


class FindingShown(Answer):
    """One check: what was found, and what to do about it (null: nothing)."""

    check: str
    verdict: Literal["ok", "warning", "problem"]
    found: str
    remedy: str | None


class Findings(Answer):
    """What is wrong with the deployment, and what is not."""

    findings: list[FindingShown]
    as_of: AwareDatetime
