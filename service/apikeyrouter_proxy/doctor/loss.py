"""What a server could forget of what it acknowledged, as it is set up: for how long, and how many dollars that is."""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from apikeyrouter_proxy.doctor.findings import Finding, ok, problem, warning

__all__ = ["Durability", "durability_of", "examine"]

FSYNC_SECONDS = {"always": 0.0, "everysec": 2.0, "no": 30.0}
"""What a crash of the machine takes along: everysec may be a second behind its second, `no` is the kernel's pace."""
FSYNC_UNKNOWN = "everysec"
NANO = 10**9


@dataclass(frozen=True, slots=True, kw_only=True)
class Durability:
    """How a server is set up against forgetting. `fsync` None: no append-only file. `told`: it lets us read settings.

    `lag_seconds_max`: a primary that hears from too few replicas for so long takes no writes; None: nothing stops it.
    """

    fsync: str | None
    fsync_told: bool
    replicas: int
    lag_seconds_max: int | None

    @property
    def restart_seconds(self) -> float | None:
        """What a crash of its machine may take along; None: everything."""
        return None if self.fsync is None else FSYNC_SECONDS.get(self.fsync, FSYNC_SECONDS[FSYNC_UNKNOWN])

    @property
    def failover_seconds(self) -> float | None:
        """What a failover may take along; None: as much as its clients still write to the old primary."""
        return self.lag_seconds_max


def durability_of(info: Mapping[str, Any], config: Mapping[str, str]) -> Durability:
    """By INFO, and CONFIG GET as far as we are let ({} when not)."""
    wanted = int(config.get("min-replicas-to-write", 0))
    return Durability(
        fsync=config.get("appendfsync", FSYNC_UNKNOWN) if info.get("aof_enabled") else None,
        fsync_told="appendfsync" in config, replicas=int(info.get("connected_slaves", 0)),
        lag_seconds_max=int(config.get("min-replicas-max-lag", 10)) if wanted > 0 else None,
    )  # fmt: skip


def examine(info: Mapping[str, Any], config: Mapping[str, str], nanousd_per_second: int) -> list[Finding]:
    """What a restart may forget, and where there are replicas what a failover may."""
    if info.get("aof_enabled") and info.get("aof_last_write_status", "ok") != "ok":
        return [problem("persistence", "append-only file, the last write failed", "look at the server's disk")]
    how = durability_of(info, config)
    return [_restart(how, nanousd_per_second), *_failover(how, nanousd_per_second)]


def _restart(how: Durability, rate: int) -> Finding:
    if how.restart_seconds is None:
        remedy = (
            "turn on appendonly (appendfsync everysec): a restart of the server resets limits and budgets otherwise"
        )
        return warning("persistence", "no append-only file: a restart forgets everything", remedy)
    assumed = "" if how.fsync_told else ", assumed"
    if how.restart_seconds == 0:
        return ok("persistence", "append-only file (appendfsync always): a crash forgets nothing")
    found = f"append-only file (appendfsync {how.fsync}{assumed}): a crash of its machine may forget"
    told = f"{found} {_loss(how.restart_seconds, rate)}"
    if how.fsync == "no":
        return warning("persistence", told, "CONFIG SET appendfsync everysec: it costs hardly anything")
    return ok("persistence", told)


def _failover(how: Durability, rate: int) -> list[Finding]:
    if how.replicas == 0:
        return []
    count = f"{how.replicas} replica{'' if how.replicas == 1 else 's'}"
    if how.failover_seconds is None:
        remedy = "CONFIG SET min-replicas-to-write 1 and min-replicas-max-lag 2: a primary that is cut off stops then"
        found = (
            f"{count}, min-replicas-to-write 0: a primary that is cut off goes on admitting until it hears of its"
            f" successor, and all of that is forgotten ({_money(rate)} a second)"
        )
        return [warning("failover", found, remedy)]
    return [ok("failover", f"{count}: a failover may forget {_loss(how.failover_seconds, rate)}")]


def _loss(seconds: float, rate: int) -> str:
    """For so long, at that rate; workers that live tell theirs again."""
    lost = _money(round(seconds * rate))
    return f"up to {seconds:g} s of what workers wrote that die with it: {lost} at the rate of the last two days"


def _money(nanousd: int) -> str:
    return f"${Decimal(nanousd) / NANO:.4f}"
