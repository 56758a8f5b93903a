"""The deployment itself: its workers, its store, and what is wrong with it."""

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter

from apikeyrouter_proxy.access import Refused
from apikeyrouter_proxy.management.desk import Page, ReadDesk, page_of
from apikeyrouter_proxy.workers import LOST_US, WorkerRecord

__all__ = ["routes"]

routes = APIRouter()


@routes.get("/workers")
async def list_workers(desk: ReadDesk, page: Page) -> dict[str, Any]:
    """Every worker of the fleet, as it described itself at most two seconds ago. `lost`: it has said nothing for six
    seconds and never said that it would end. One that ended is not listed, a lost one is for ten minutes."""
    now_us, found = desk.router.ledger_now_us, await desk.runtime.fleet.find()
    return page_of("workers", (_worker(one, now_us) for one in found), page)


@routes.get("/store")
async def show_store(desk: ReadDesk) -> dict[str, Any]:
    """How the Redis or Valkey behind the ledger is, by its own word. null: it does not say. 503: it does not answer."""
    from apikeyrouter_proxy.store_health import look_at_store

    url = desk.runtime.redis_url
    if url is None:
        raise Refused(404, "no_store", "this service has no Redis: its state is its process's own")
    told = asdict(await look_at_store(url))
    saved = told.pop("snapshot_at_us")
    return {**told, "snapshot_at": None if saved is None else _time(saved)}


@routes.get("/findings")
async def list_findings(desk: ReadDesk) -> dict[str, Any]:
    """What `apikeyrouter doctor` finds in this deployment, as of at most twenty seconds ago: each with a remedy."""
    at, found = await desk.runtime.doctor.findings()
    return {
        "findings": [
            {"check": one.check, "verdict": one.verdict.value, "found": one.found, "remedy": one.remedy or None}
            for one in found
        ],
        "as_of": at.isoformat(),
    }  # fmt: skip


def _worker(record: WorkerRecord, now_us: int) -> dict[str, Any]:
    return {
        "id": record.id, "host": record.host, "pid": record.pid, "version": record.version,
        "state": "lost" if now_us - record.at_us > LOST_US else record.mode,
        "started_at": _time(record.started_at_us), "heard_at": _time(record.at_us),
        "config_version": record.config_version, "decisions_per_second": record.decisions_per_second,
        "open_requests": record.open_requests, "waiting": record.waiting,
        "waiting_longest_ms": record.waiting_longest_us // 1000, "reserve_p50_us": record.reserve_p50_us,
        "reserve_p99_us": record.reserve_p99_us, "clock_offset_ms": round(record.clock_offset_us / 1000),
        "clock_suspected": record.clock_suspected, "unsettled": record.unsettled,
        "memory_bytes": record.memory_bytes, "cpu_share": record.cpu_share,
    }  # fmt: skip


def _time(us: int) -> str:
    return datetime.fromtimestamp(us / 1e6, UTC).isoformat()
