"""The commands and their options. What a command does is imported when it runs."""

from pathlib import Path
from typing import Annotated

import typer

from apikeyrouter._version import __version__
from apikeyrouter.commands import governing, looking, managing, surroundings
from apikeyrouter.commands.dashboard import PORT
from apikeyrouter.commands.shared import finite

__all__ = ["app"]

app = typer.Typer(
    name="apikeyrouter",
    help="One endpoint, all your LLM keys: never over a provider's limit, never over your budget.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for _name, _group in (
    ("keys", managing.keys), ("clients", managing.clients), ("budgets", managing.budgets),
    ("policies", governing.policies), ("admin-keys", governing.admin_keys), ("providers", surroundings.providers),
    ("limits", surroundings.limits), ("webhooks", surroundings.webhooks),
    ("config", governing.config),
):  # fmt: skip
    app.add_typer(_group, name=_name)
looking.add_to(app)

SERVICE_URL = "http://127.0.0.1:8000"
Port = Annotated[int | None, typer.Option("--port", min=0, max=65535, help="Port; 0 picks a free one.")]
Host = Annotated[str | None, typer.Option("--host", help="Address to listen on.")]
Workers = Annotated[int | None, typer.Option("--workers", min=1, max=512, help="Worker processes.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
RedisUrl = Annotated[str | None, typer.Option("--redis-url", help="Redis or Valkey; none: an embedded Valkey.")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="Configuration file (YAML).")]
DataDir = Annotated[Path | None, typer.Option("--data-dir", help="Where the embedded Valkey keeps its data.")]


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"apikeyrouter {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and leave.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Options of the command itself."""


@app.command()
def serve(
    host: Host = None,
    port: Port = None,
    workers: Workers = None,
    redis_url: RedisUrl = None,
    config: ConfigFile = None,
    data_dir: DataDir = None,
    open_: Annotated[bool, typer.Option("--open", help="Let anybody call who reaches the port.")] = False,
    reload: Annotated[bool, typer.Option("--reload", help="Development: restart when the code changes.")] = False,
    json: Json = False,
    dashboard: Annotated[bool, typer.Option("--dashboard", help="The operator's page beside it.")] = False,
    dashboard_port: Annotated[
        int, typer.Option("--dashboard-port", min=0, max=65535, help="Where that page is; 0 picks a free port.")
    ] = PORT,
    watch_stdin: Annotated[bool, typer.Option("--watch-stdin", hidden=True)] = False,
) -> None:
    """Serve the HTTP API: N workers over a Redis, or over an embedded Valkey that keeps its data."""
    from apikeyrouter.commands.serve import ServeArguments, run

    arguments = ServeArguments(
        host=host, port=port, workers=workers, redis_url=redis_url, config=config, data_dir=data_dir, open=open_,
        reload=reload, json=json, dashboard=dashboard, dashboard_port=dashboard_port, watch_stdin=watch_stdin,
    )  # fmt: skip
    raise typer.Exit(run(arguments))


@app.command()
def quickstart(host: Host = None, port: Port = None, workers: Workers = None, json: Json = False) -> None:
    """The service from nothing: your keys from the environment or .env, else simulated providers. Keeps nothing."""
    from apikeyrouter.commands.quickstart import run

    raise typer.Exit(run(host=host, port=port, workers=workers, json=json))


@app.command()
def demo(
    seconds: Annotated[
        float | None,
        typer.Option(
            "--seconds",
            min=2,
            max=600,
            callback=finite,
            help="How long the traffic lasts: 30, and with --incident until you end it.",
        ),
    ] = None,
    workers: Annotated[int, typer.Option("--workers", min=1, max=32, help="Worker processes.")] = 4,
    kill: Annotated[bool, typer.Option("--kill/--no-kill", help="Kill -9 one worker half way.")] = True,
    json: Json = False,
    incident: Annotated[
        bool, typer.Option("--incident", help="Instead: a bad day, to be read off the operator's page.")
    ] = False,
) -> None:
    """Live traffic over simulated providers that enforce their limits, and the books afterwards. Loopback only."""
    if incident:
        from apikeyrouter.commands.demo import incident as bad_day

        raise typer.Exit(bad_day.run(seconds=seconds, port=PORT, tell=typer.echo))
    from apikeyrouter.commands.demo import run

    raise typer.Exit(run(seconds=seconds or 30.0, workers=workers, kill=kill, json=json))


@app.command()
def dashboard(
    url: Annotated[str, typer.Option("--url", envvar="APIKEYROUTER_URL", help="Where the service is.")] = SERVICE_URL,
    admin_key: Annotated[
        str | None, typer.Option("--admin-key", help="Print a link that signs in with this admin key, once.")
    ] = None,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port; 0 picks a free one.")] = PORT,
    secure: Annotated[bool, typer.Option("--secure", help="Cookies over TLS alone; for behind a proxy.")] = False,
    watch_stdin: Annotated[bool, typer.Option("--watch-stdin", hidden=True)] = False,
) -> None:
    """The operator's page for a running service: the pool, the money, the reasons."""
    from apikeyrouter.commands.dashboard import run

    raise typer.Exit(run(url=url, admin_key=admin_key, host=host, port=port, secure=secure, watch_stdin=watch_stdin))


@app.command()
def simulate(
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port; 0 picks a free one.")] = 9901,
    config: Annotated[Path | None, typer.Option("--config", help="JSON or YAML; none: a built-in example.")] = None,
) -> None:
    """Simulated providers alone: OpenAI and Anthropic dialects, limits that are really enforced."""
    from apikeyrouter.domain.models.system_error import ConfigurationError
    from apikeyrouter.simulator import run

    try:
        code = run(["--port", str(port), *(["--config", str(config)] if config else [])])
    except OSError as exc:
        raise ConfigurationError(
            f"cannot listen on port {port} ({exc.strerror or exc}); choose another: --port"
        ) from exc
    raise typer.Exit(code)


@app.command()
def capacity(
    rps: Annotated[float, typer.Option("--rps", min=0.001, max=1e8, callback=finite, help="Requests a second.")],
    seconds: Annotated[
        float, typer.Option("--seconds", min=0.0, max=3600.0, callback=finite, help="How long a provider takes.")
    ] = 8.0,
    keys: Annotated[int, typer.Option("--keys", min=1, max=1_000_000, help="Provider keys.")] = 100,
    budgets: Annotated[int, typer.Option("--budgets", min=0, max=1_000_000, help="Budgets.")] = 20,
    events: Annotated[
        float, typer.Option("--events", min=0.0, max=1e6, callback=finite, help="Events of a streamed answer.")
    ] = 0.0,
    slab: Annotated[
        float, typer.Option("--slab", min=1.0, max=1e6, callback=finite, help="Requests that share a reservation.")
    ] = 1.0,
    attempts: Annotated[
        float, typer.Option("--attempts", min=1.0, max=10.0, callback=finite, help="Attempts per request.")
    ] = 1.0,
    worker_load: Annotated[
        float,
        typer.Option("--worker-load", min=0.01, max=0.99, callback=finite, help="Share of a worker's core to use."),
    ] = 0.6,
    server_load: Annotated[
        float,
        typer.Option("--server-load", min=0.01, max=0.99, callback=finite, help="Share of a server's core to use."),
    ] = 0.5,
    slowness: Annotated[
        float,
        typer.Option(
            "--slowness", min=0.05, max=20.0, callback=finite, help="Your cores' time over ours (docs/capacity.md)."
        ),
    ] = 1.0,
    json: Json = False,
) -> None:
    """How many workers and server cores a load needs, and how much memory; docs/capacity.md says how it reckons."""
    from apikeyrouter.commands.capacity import MEASURED, Load, run

    load = Load(
        rps=rps, seconds=seconds, keys=keys, budgets=budgets, events=events, calls_per_slab=slab, attempts=attempts,
        worker_load=worker_load, server_load=server_load,
    )  # fmt: skip
    raise typer.Exit(run(load, MEASURED.times(slowness), json_=json))


@app.command()
def doctor(redis_url: RedisUrl = None, config: ConfigFile = None, data_dir: DataDir = None, json: Json = False) -> None:
    """Check Redis, the configuration, the encryption key and the way to the providers; say what to do."""
    from apikeyrouter.commands.doctor import run

    raise typer.Exit(run(redis_url=redis_url, config=config, data_dir=data_dir, json=json))
