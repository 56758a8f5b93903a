"""`apikeyrouter doctor`: what is wrong, and what to do about it."""

import asyncio
import json as jsonlib
import os
import time
from collections.abc import Awaitable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from apikeyrouter.commands.doctor_loss import examine
from apikeyrouter.commands.doctor_store import look_into, spending_rate
from apikeyrouter.commands.environment import Surroundings, look_around
from apikeyrouter.commands.findings import Finding, Verdict, ok, problem, warning
from apikeyrouter.commands.redis_version import is_too_old, server_name
from apikeyrouter.domain.models.system_error import ApiKeyRouterError
from apikeyrouter.infrastructure.config.environment import PREFIX
from apikeyrouter.infrastructure.embedded_valkey import default_data_dir, running_url
from apikeyrouter.infrastructure.ledger.outbox_file import outbox_summary
from apikeyrouter.infrastructure.security.key_vault import KeyVault
from apikeyrouter.infrastructure.state_store.redis_connection import mapped_errors, open_client, redacted_url
from apikeyrouter_proxy.options import ProxyOptions

if TYPE_CHECKING:
    from redis.asyncio import Redis

__all__ = ["run"]

CLOCK_SECONDS_MAX = 1.0
"""The ledger uses the server's clock alone; calendar periods come from ours, so they should be near each other."""
REACH_SECONDS_MAX = 5.0
BASE_URLS = {"openai": "https://api.openai.com/v1", "anthropic": "https://api.anthropic.com"}


def run(*, redis_url: str | None, config: Path | None, data_dir: Path | None, json: bool) -> int:
    """Check everything and print it. The exit code: 1 when there is a problem, 0 otherwise (warnings included)."""
    findings = asyncio.run(_examine(redis_url, config, data_dir))
    if json:
        typer.echo(jsonlib.dumps([asdict(finding) for finding in findings]))
    else:
        for finding in findings:
            typer.echo(_line(finding))
    return int(any(finding.verdict is Verdict.PROBLEM for finding in findings))


async def _examine(redis_url: str | None, config: Path | None, data_dir: Path | None) -> list[Finding]:
    try:
        around = look_around(config=config)
        ProxyOptions.read(around.environ)
    except ApiKeyRouterError as exc:
        return [problem("configuration", str(exc), "correct what is named here; nothing else was checked")]
    url = redis_url or around.settings.redis_url
    findings = [_configuration(around), *_warnings(around)]
    if url is None:
        directory = data_dir or (Path(around.settings.data_dir) if around.settings.data_dir else default_data_dir())
        url = running_url(directory)
        findings.append(_embedded(directory, url))
    if url is not None:
        findings += await _server(url, around, embedded=not (redis_url or around.settings.redis_url))
    findings += _outbox(around, data_dir)
    findings.append(_encryption_key(around, embedded=not (redis_url or around.settings.redis_url)))
    return findings + await _providers(around)


def _configuration(around: Surroundings) -> Finding:
    keys = len(around.keys) + (len(around.config.keys) if around.config else 0)
    where = around.config_path or "no configuration file"
    if keys == 0:
        remedy = "set OPENAI_API_KEY or ANTHROPIC_API_KEY, name keys in the file, or register them while it runs"
        return warning("configuration", f"{where}; no provider keys", remedy)
    return ok("configuration", f"{where}; {keys} provider keys")


def _warnings(around: Surroundings) -> list[Finding]:
    """What the file says that is of no use, or not yet."""
    if around.config is None:
        return []
    remedy = "correct the file, or do not rely on this part of it"
    return [warning("configuration", told, remedy) for told in around.config.warnings]


def _embedded(directory: Path, url: str | None) -> Finding:
    if url is not None:
        return ok("embedded server", f"runs in {directory}")
    parent = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    if not os.access(parent, os.W_OK):
        return problem("embedded server", f"{directory} is not writable", "choose another with --data-dir")
    return ok("embedded server", f"does not run; serve would start it in {directory}")


def _outbox(around: Surroundings, data_dir: Path | None) -> list[Finding]:
    """What workers that died could not tell the accounting, on this machine."""
    data = data_dir or (Path(around.settings.data_dir) if around.settings.data_dir else default_data_dir())
    directory = Path(around.environ.get(f"{PREFIX}OUTBOX_DIR") or data / "outbox")
    files, ends, oldest = outbox_summary(directory)
    if not files:
        return [ok("outbox", f"nothing is left over in {directory}")]
    age = f"{max(0.0, time.time() - oldest) / 3600:.1f} h old"
    remedy = (
        "start a worker with the same Redis URL, namespace and outbox directory: it delivers them; what is older than a"
        " day and not known any more is listed as unmatched, not booked"
    )
    return [warning("outbox", f"{ends} ends of requests in {files} files in {directory}, the oldest {age}", remedy)]


# --- Redis -----------------------------------------------------------------------------------------------------------


async def _server(url: str, around: Surroundings, *, embedded: bool) -> list[Finding]:
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


# --- keys and providers ----------------------------------------------------------------------------------------------


def _encryption_key(around: Surroundings, *, embedded: bool) -> Finding:
    configured = around.router.encryption_key
    if not configured:
        if embedded:
            return ok("encryption key", "made by serve for its embedded server, kept beside the data")
        remedy = "set APIKEYROUTER_ENCRYPTION_KEY to 32 random bytes in base64, the same for every process"
        return problem("encryption key", "none; registering a key is refused", remedy)
    try:
        KeyVault.parse(configured)
    except ApiKeyRouterError as exc:
        return problem("encryption key", str(exc), "correct APIKEYROUTER_ENCRYPTION_KEY")
    return ok("encryption key", "configured")


async def _providers(around: Surroundings) -> list[Finding]:
    urls = {provider: _base_url(provider, around) for provider in around.provider_ids}
    checks: list[Awaitable[Finding]] = [_reach(provider, url) for provider, url in urls.items() if url]
    return list(await asyncio.gather(*checks))


def _base_url(provider: str, around: Surroundings) -> str | None:
    record = around.config.providers.get(provider) if around.config else None
    adapter = record.adapter if record else provider
    named = record.base_url if record else None
    return named or around.environ.get(f"{adapter.upper()}_BASE_URL") or BASE_URLS.get(adapter)


async def _reach(provider: str, url: str) -> Finding:
    """Any answer will do: no key is sent, and 401 is what an open door says."""
    import httpx

    try:
        async with httpx.AsyncClient(timeout=REACH_SECONDS_MAX) as client:
            answer = await client.get(url.rstrip("/") + "/models")
    except httpx.HTTPError as exc:
        remedy = "check the network, the proxy settings, and the provider's base_url"
        return problem(f"provider {provider}", f"{url} does not answer ({type(exc).__name__})", remedy)
    return ok(f"provider {provider}", f"{url} answers ({answer.status_code} without a key)")


def _line(finding: Finding) -> str:
    line = f"{finding.verdict:<8} {finding.check}: {finding.found}"
    return f"{line}\n         → {finding.remedy}" if finding.remedy else line
