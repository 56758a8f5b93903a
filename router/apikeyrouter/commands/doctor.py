"""`apikeyrouter doctor`: what is wrong, and what to do about it."""

import asyncio
import json as jsonlib
import os
from collections.abc import Awaitable
from dataclasses import asdict
from pathlib import Path

import typer

from apikeyrouter.domain.models.system_error import ApiKeyRouterError
from apikeyrouter.infrastructure.embedded_valkey import default_data_dir, running_url
from apikeyrouter_proxy.doctor.examination import of_configuration, of_encryption_key, of_outbox, of_server
from apikeyrouter_proxy.doctor.findings import Finding, Verdict, ok, problem
from apikeyrouter_proxy.doctor.surroundings import Surroundings, look_around
from apikeyrouter_proxy.options import ProxyOptions

__all__ = ["run"]

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
    findings = of_configuration(around)
    if url is None:
        directory = data_dir or (Path(around.settings.data_dir) if around.settings.data_dir else default_data_dir())
        url = running_url(directory)
        findings.append(_embedded(directory, url))
    if url is not None:
        findings += await of_server(url, around, embedded=not (redis_url or around.settings.redis_url))
    findings += of_outbox(around, data_dir)
    findings.append(of_encryption_key(around, embedded=not (redis_url or around.settings.redis_url)))
    return findings + await _providers(around)


def _embedded(directory: Path, url: str | None) -> Finding:
    if url is not None:
        return ok("embedded server", f"runs in {directory}")
    parent = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    if not os.access(parent, os.W_OK):
        return problem("embedded server", f"{directory} is not writable", "choose another with --data-dir")
    return ok("embedded server", f"does not run; serve would start it in {directory}")


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
