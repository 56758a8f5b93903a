"""`apikeyrouter dashboard`: the operator's page, in a process of its own."""

import contextlib
import os
import select
import subprocess
import sys
from collections.abc import Iterator

import typer

from apikeyrouter.domain.models.system_error import ConfigurationError
from apikeyrouter.infrastructure.config.environment import environment

__all__ = ["run", "running_dashboard"]

START_SECONDS_MAX = 30.0
STOP_SECONDS_MAX = 8.0
KEY = "APIKEYROUTER_DASHBOARD_ADMIN_KEY"
MISSING = "the operator's page needs the dashboard extra ({}is missing): pip install 'apikeyrouter[dashboard]'"


def run(*, url: str, admin_key: str | None, host: str, port: int, secure: bool, watch_stdin: bool) -> int:
    """Serve the page until stopped; the exit code. Errors: ConfigurationError when the extra is not installed."""
    try:
        from apikeyrouter_dashboard.main import DashboardOptions, serve
    except ModuleNotFoundError as exc:
        raise ConfigurationError(MISSING.format(f"{exc.name} ")) from exc
    key = admin_key or environment().get(KEY)
    options = DashboardOptions(url=url, host=host, port=port, admin_key=key, secure=secure, watch_stdin=watch_stdin)
    return serve(options, tell=lambda link: typer.echo(f"dashboard {link}"))


@contextlib.contextmanager
def running_dashboard(url: str, admin_key: str, *, port: int = 0, host: str = "127.0.0.1") -> Iterator[str]:
    """The page for a service in a process of its own, stopped at exit (and when this process dies). Its link.

    The key goes through the environment, not the command line. Errors: ConfigurationError when it does not start.
    """
    arguments = ["-m", "apikeyrouter.cli", "dashboard", "--url", url, "--host", host, "--port", str(port)]
    process = subprocess.Popen(  # noqa: S603 (our own module)
        [sys.executable, *arguments, "--watch-stdin"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env={**os.environ, KEY: admin_key}, start_new_session=True,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        if not select.select([process.stdout], [], [], START_SECONDS_MAX)[0]:
            raise ConfigurationError("the operator's page did not start in time")
        line = process.stdout.readline().decode()
        if not line.startswith("dashboard "):
            raise ConfigurationError("the operator's page did not start; its message is above")
        yield line.removeprefix("dashboard ").strip()
    finally:
        process.stdin.close()
        process.terminate()
        try:
            process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
