"""`apikeyrouter serve`."""

import asyncio
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import typer

from apikeyrouter._version import __version__
from apikeyrouter.commands.dashboard import PORT, beside_the_service
from apikeyrouter.domain.models.system_error import ConfigurationError
from apikeyrouter.infrastructure.state_store.redis_connection import mapped_errors, open_client, redacted_url
from apikeyrouter_proxy.doctor.redis_version import is_too_old
from apikeyrouter_proxy.doctor.surroundings import Surroundings, look_around
from apikeyrouter_proxy.options import ProxyOptions
from apikeyrouter_proxy.server import APP, ServeOptions, serve, shown_host

__all__ = ["ServeArguments", "make_options", "one_line", "run"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeArguments:
    """The command line; None where nothing was said and the environment decides."""

    host: str | None = None
    port: int | None = None
    workers: int | None = None
    redis_url: str | None = field(default=None, repr=False)
    config: Path | None = None
    data_dir: Path | None = None
    open: bool = False
    reload: bool = False
    json: bool = False
    dashboard: bool = False
    dashboard_port: int = PORT
    watch_stdin: bool = False


def run(arguments: ServeArguments) -> int:
    """Serve until stopped; the exit code. Errors: ConfigurationError; StateStoreError when Redis cannot be used."""
    around = look_around(config=arguments.config)
    options = make_options(arguments, around)
    if options.redis_url:
        asyncio.run(_check_server(options.redis_url))
    if arguments.reload or around.settings.proxy_reload:
        return _serve_with_reload(options)
    tell = _tell_json if arguments.json else _tell_person
    if not arguments.dashboard:
        return serve(options, tell=tell)
    management = f"http://{shown_host(options.management_host)}:{options.management_port}"
    beside = beside_the_service(
        tell, _say_on_stderr if arguments.json else typer.echo, port=arguments.dashboard_port, admin_key=None,
        management_url=management if options.management_port else None,
    )  # fmt: skip
    with beside as told:
        return serve(options, tell=told)


def make_options(arguments: ServeArguments, around: Surroundings) -> ServeOptions:
    """The command line over the environment. Errors: ConfigurationError for what a worker would refuse."""
    settings = around.settings
    data_dir = arguments.data_dir or (Path(settings.data_dir) if settings.data_dir else None)
    redis_url = arguments.redis_url or settings.redis_url
    if redis_url and arguments.data_dir:
        raise ConfigurationError("--data-dir is for the embedded Valkey; it does not go with a Redis URL")
    proxy = ProxyOptions.read(around.environ)
    return ServeOptions(
        host=settings.proxy_host if arguments.host is None else arguments.host,
        port=settings.proxy_port if arguments.port is None else arguments.port,
        workers=arguments.workers or settings.workers,
        redis_url=redis_url,
        data_dir=data_dir,
        config=around.config_path,
        open=arguments.open or settings.proxy_open,
        workers_to_stderr=arguments.json,
        watch_stdin=arguments.watch_stdin,
        drain_seconds=proxy.drain_seconds,
        drain_notice_seconds=proxy.drain_notice_seconds,
        management_host=proxy.management_host,
        management_port=proxy.management_port,
        environ=dict(os.environ),
    )


def one_line(facts: Mapping[str, Any]) -> str:
    """What listens where, over which Redis, with what: one line for a person."""
    workers = len(facts["workers"])
    keys, providers = facts["keys"], facts["providers"]
    found = "health is not known" if keys is None else f"{_count(keys, 'key')}, {_count(providers, 'provider')}"
    config = f"configuration {facts['config']}" if facts["config"] else "no configuration file"
    where = f"apikeyrouter {__version__} on {facts['url']}, {_count(workers, 'worker')}"
    return f"{where}; {facts['redis']}; {config}; {found}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


async def _check_server(url: str) -> None:
    """One clear line about a wrong Redis, instead of a traceback from every worker."""
    client = open_client(url)
    try:
        with mapped_errors(url):
            info = await client.info()
    finally:
        await client.aclose()
    policy = str(info.get("maxmemory_policy", ""))
    if policy.startswith("allkeys"):
        raise ConfigurationError(
            f"Redis at {redacted_url(url)} evicts keys (maxmemory-policy {policy}), so that spent budgets would be "
            "forgotten; run: CONFIG SET maxmemory-policy noeviction"
        )
    if is_too_old(info):
        raise ConfigurationError(f"Redis at {redacted_url(url)} is too old; the scripts need Redis 7 or Valkey")


def _tell_person(event: str, facts: Mapping[str, Any]) -> None:
    match event:
        case "listening":
            typer.echo(one_line(facts))
        case "worker_restarted":
            typer.echo(f"worker {facts['pid']} ended ({facts['exit_code']}); its place is taken again", err=True)
        case "draining":
            typer.echo(f"stopping: requests in flight have {facts['seconds_max']:g} s to finish", err=True)
        case "reloading":
            typer.echo("the workers read the configuration again", err=True)
        case _:
            pass


def _say_on_stderr(line: str) -> None:
    typer.echo(line, err=True)


def _tell_json(event: str, facts: Mapping[str, Any]) -> None:
    typer.echo(msgspec.json.encode({"event": event, **facts}).decode())


def _serve_with_reload(options: ServeOptions) -> int:
    """uvicorn's own reloader over one process; its app finds or starts the embedded server by itself."""
    import uvicorn

    given = {"REDIS_URL": options.redis_url, "CONFIG": options.config, "PROXY_OPEN": "true" if options.open else None}
    if options.data_dir is not None:
        given["DATA_DIR"] = str(options.data_dir)
    os.environ.update({f"APIKEYROUTER_{name}": value for name, value in given.items() if value})
    uvicorn.run(APP, host=options.host, port=options.port, reload=True, proxy_headers=False, access_log=False)
    return 0
