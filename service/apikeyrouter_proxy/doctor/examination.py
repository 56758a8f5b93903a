"""What `doctor` asks of a deployment: its configuration, its server, its outbox, its master key."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apikeyrouter.domain.models.system_error import ApiKeyRouterError
from apikeyrouter.infrastructure.config.environment import PREFIX
from apikeyrouter.infrastructure.embedded_valkey import default_data_dir
from apikeyrouter.infrastructure.ledger.outbox_file import outbox_summary
from apikeyrouter.infrastructure.state_store.redis_connection import mapped_errors, open_client, redacted_url
from apikeyrouter_proxy.doctor.findings import Finding, ok, problem, warning
from apikeyrouter_proxy.doctor.loss import examine
from apikeyrouter_proxy.doctor.redis_version import is_too_old, server_name
from apikeyrouter_proxy.doctor.store import look_into, spending_rate
from apikeyrouter_proxy.doctor.surroundings import Surroundings

if TYPE_CHECKING:
    from redis.asyncio import Redis

__all__ = ["left_in", "of_configuration", "of_encryption_key", "of_outbox", "of_server"]

CLOCK_SECONDS_MAX = 1.0
"""The ledger uses the server's clock alone; calendar periods come from ours, so they should be near each other."""


def of_configuration(around: Surroundings, *, registered: int = 0) -> list[Finding]:
    """What is configured, and what the file says that is of no use, or not yet. `registered`: keys of a service that
    runs, wherever they came from."""
    return [_configuration(around, registered), *_warnings(around)]


def _configuration(around: Surroundings, registered: int) -> Finding:
    keys = max(registered, len(around.keys) + (len(around.config.keys) if around.config else 0))
    where = around.config_path or "no configuration file"
    if keys == 0:
        remedy = "set OPENAI_API_KEY or ANTHROPIC_API_KEY, name keys in the file, or register them while it runs"
        return warning("configuration", f"{where}; no provider keys", remedy)
    return ok("configuration", f"{where}; {keys} provider keys")


def _warnings(around: Surroundings) -> list[Finding]:
    if around.config is None:
        return []
    remedy = "correct the file, or do not rely on this part of it"
    return [warning("configuration", told, remedy) for told in around.config.warnings]


def of_outbox(around: Surroundings, data_dir: Path | None) -> list[Finding]:
    """What workers that died could not tell the accounting, on this machine."""
    data = data_dir or (Path(around.settings.data_dir) if around.settings.data_dir else default_data_dir())
    return left_in(Path(around.environ.get(f"{PREFIX}OUTBOX_DIR") or data / "outbox"))


def left_in(directory: Path, ledger: str | None = None) -> list[Finding]:
    """What is left over in an outbox: of every ledger, or of one."""
    files, ends, oldest = outbox_summary(directory, ledger)
    if not files:
        return [ok("outbox", f"nothing is left over in {directory}")]
    age = f"{max(0.0, time.time() - oldest) / 3600:.1f} h old"
    remedy = (
        "start a worker with the same Redis URL, namespace and outbox directory: it delivers them; what is older than a"
        " day and not known any more is listed as unmatched, not booked"
    )
    return [warning("outbox", f"{ends} ends of requests in {files} files in {directory}, the oldest {age}", remedy)]


def of_encryption_key(around: Surroundings, *, embedded: bool) -> Finding:
    """Whether there is a master key. One that is none is refused with the other settings."""
    if around.router.encryption_key is None:
        if embedded:
            return ok("encryption key", "made by serve for its embedded server, kept beside the data")
        remedy = "set APIKEYROUTER_ENCRYPTION_KEY to 32 random bytes in base64, the same for every process"
        return problem("encryption key", "none; registering a key is refused", remedy)
    return ok("encryption key", "configured")


# --- Redis -----------------------------------------------------------------------------------------------------------


async def of_server(url: str, around: Surroundings, *, embedded: bool) -> list[Finding]:
    """What is wrong with the server and with what lies in it. Changes nothing."""
    try:
        client = open_client(url)
        try:
            with mapped_errors(url):
                before = time.time()
                seconds, microseconds = await client.time()
                after = time.time()
                info = await client.info()
            config = await _settings(client)
        finally:
            await client.aclose()
    except ApiKeyRouterError as exc:
        return [problem("redis", str(exc), "check REDIS_URL, that the server runs, and that it lets us in")]
    distance = _distance(float(seconds) + float(microseconds) / 1e6, before, after)
    rate = await spending_rate(url, around)
    found = [_version(url, info), _eviction(info), *examine(info, config, rate), _clock(distance)]
    return [*found, *(await look_into(url, info, around, embedded=embedded))]


async def _settings(client: "Redis") -> dict[str, str]:
    """What the server's configuration says of durability; {} where we are not let look."""
    from redis.exceptions import ResponseError

    try:
        told = await client.config_get("appendfsync", "min-replicas-*")
    except ResponseError:
        return {}
    return {str(name): str(value) for name, value in told.items()}


def _version(url: str, info: dict[str, Any]) -> Finding:
    found = f"{server_name(info)} at {redacted_url(url)}"
    if is_too_old(info):
        return problem("redis", found, "the scripts need Redis 7 or Valkey; upgrade the server")
    return ok("redis", found)


def _eviction(info: dict[str, Any]) -> Finding:
    policy = str(info.get("maxmemory_policy", "unknown"))
    if policy == "noeviction":
        return ok("eviction", "noeviction")
    remedy = (
        "CONFIG SET maxmemory-policy noeviction (and in its configuration): an evicted counter is a forgotten limit"
    )
    return problem("eviction", policy, remedy)


def _distance(server: float, before: float, after: float) -> float:
    """How far the server's clock is from ours, in seconds; 0 within what the round trip leaves open."""
    return max(0.0, before - server, server - after)


def _clock(distance: float) -> Finding:
    found = f"{distance:.3f} s from ours"
    if distance <= CLOCK_SECONDS_MAX:
        return ok("clock", found)
    return warning(
        "clock", found, "let both machines keep time with NTP; days and months would begin at other instants"
    )
