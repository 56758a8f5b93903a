"""`apikeyrouter dashboard`: the operator's page, in a process of its own."""

import contextlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import typer

from apikeyrouter.commands.beside import running_beside
from apikeyrouter.domain.models.system_error import ConfigurationError
from apikeyrouter.infrastructure.config.environment import environment

__all__ = ["PORT", "beside_the_service", "is_installed", "run", "running_dashboard"]

PORT = 8100
"""Where the page is, unless somebody says otherwise."""
KEY = "APIKEYROUTER_DASHBOARD_ADMIN_KEY"
MISSING = "the operator's page needs the dashboard extra: pip install 'apikeyrouter[dashboard]'"
Tell = Callable[[str, Mapping[str, Any]], None]


def is_installed() -> bool:
    """Whether the extra is there."""
    return importlib.util.find_spec("nicegui") is not None


def run(*, url: str, admin_key: str | None, host: str, port: int, secure: bool, watch_stdin: bool) -> int:
    """Serve the page until stopped; the exit code. Errors: ConfigurationError when the extra is not installed."""
    if not is_installed():
        raise ConfigurationError(MISSING)
    from apikeyrouter_dashboard.lean_start import load

    page = load()
    key = admin_key or environment().get(KEY) or None
    options = page.DashboardOptions(
        url=url, host=host, port=port, admin_key=key, secure=secure, watch_stdin=watch_stdin
    )
    code: int = page.serve(options, tell=lambda link: typer.echo(f"dashboard {link}"))
    return code


@contextlib.contextmanager
def beside_the_service(
    tell: Tell, show: Callable[[str], None], *, port: int, admin_key: str | None, management_url: str | None = None
) -> Iterator[Tell]:
    """A `tell` for `serve` that starts the page once the service listens, and says where it is.

    `management_url`: where the management API is, if it has an address of its own. A page that does not start leaves
    the service as it is. Errors: ConfigurationError when the extra is not installed.
    """
    if not is_installed():
        raise ConfigurationError(MISSING)
    with contextlib.ExitStack() as stack:

        def told(event: str, facts: Mapping[str, Any]) -> None:
            tell(event, facts)
            if event == "listening":
                page = running_dashboard(management_url or facts["url"], admin_key, port=port)
                try:
                    show(f"The operator's page: {stack.enter_context(page)}")
                except ConfigurationError as exc:
                    typer.echo(f"warning: {exc}", err=True)

        yield told


@contextlib.contextmanager
def running_dashboard(url: str, admin_key: str | None, *, port: int = 0, host: str = "127.0.0.1") -> Iterator[str]:
    """The page for a service in a process of its own, stopped at exit (and when this process dies). Its link; with an
    admin key, one that signs in, once.

    The key goes through the environment, not the command line. Errors: ConfigurationError when it does not start.
    """
    arguments = [
        "-m",
        "apikeyrouter_dashboard",
        "--url",
        url,
        "--host",
        host,
        "--port",
        str(port),
        "--key-variable",
        KEY,
    ]
    key = {KEY: admin_key or ""}
    with running_beside(arguments, says="dashboard", what="the operator's page", environ=key) as link:
        yield link
