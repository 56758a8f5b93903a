"""A running service from the command line: asking its management API, and showing what it says."""

import inspect
import json as jsonlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any
from urllib.parse import quote, urlsplit

import typer

from apikeyrouter.domain.models.system_error import ConfigurationError
from apikeyrouter.infrastructure.config.environment import PREFIX, environment

__all__ = ["EXIT_REFUSED", "Service", "command", "path_of", "read_secret"]

ANSWER_SECONDS_MAX = 60.0
PAGES_MAX = 1000
PAGE = 1000
_WIDTH_MAX = 10_000
"""Wider than any table."""
EXIT_REFUSED = 1
"""The service understood and says no: not found, taken, changed meanwhile, wrong input."""
URL_DEFAULT = "http://127.0.0.1:8000"

_Url = Annotated[str, typer.Option("--url", envvar="APIKEYROUTER_URL", help="Where the service is.")]
_Key = Annotated[
    str | None,
    typer.Option(
        "--management-key", envvar=["APIKEYROUTER_MANAGEMENT_API_KEY", "MANAGEMENT_API_KEY"], show_envvar=False,
        help="An admin key of the service; else MANAGEMENT_API_KEY of the environment or .env.",
    ),
]  # fmt: skip
_Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


class Service:
    """The management API of one running service, and how answers are shown.

    Errors of every request: ConfigurationError when the service is not there, or refuses the admin key. Where it
    refuses the request itself, its complaint is printed and the command ends with EXIT_REFUSED.
    """

    def __init__(self, url: str, key: str, *, json: bool) -> None:
        self.url, self._key, self._json = url.rstrip("/"), key, json
        _check(url, key)

    def get(self, path: str, **params: object) -> Any:
        """What a GET answers. Parameters that are None are left out."""
        return self._call("GET", path, params={name: value for name, value in params.items() if value is not None})

    def send(self, method: str, path: str, body: object = None) -> Any:
        """What a request with a body answers; None where there is no content."""
        return self._call(method, path, json=body)

    def send_text(self, path: str, text: str, kind: str, **params: object) -> Any:
        """What a POST of a text of this content type answers. Parameters that are None are left out."""
        told = {name: value for name, value in params.items() if value is not None}
        return self._call("POST", path, content=text.encode(), headers={"content-type": kind}, params=told)

    def change(self, path: str, decide: Callable[[Any], object]) -> Any:
        """Read a thing and PATCH it with what `decide` makes of it, unless somebody else changed it meanwhile."""
        found = self._answer("GET", path)
        headers = {"If-Match": found.headers["etag"]}
        return self._content(self._answer("PATCH", path, json=decide(found.json()), headers=headers))

    def pages(self, path: str, name: str, *, limit: int | None = None, **params: object) -> list[dict[str, Any]]:
        """The items of a list, page after page: all, or the first `limit`."""
        found: list[dict[str, Any]] = []
        cursor = None
        for _ in range(PAGES_MAX):
            wanted = PAGE if limit is None else min(PAGE, limit - len(found))
            told = self.get(path, limit=wanted, cursor=cursor, **params)
            found += told[name]
            cursor = told["next_cursor"]
            if cursor is None or (limit is not None and len(found) >= limit):
                break
        return found

    def table(self, rows: Sequence[Mapping[str, Any]], columns: Sequence[str], *, name: str, none: str = "") -> None:
        """Show rows: a table on a terminal, a line each in a pipe, `{<name>: […]}` with --json."""
        if self._json:
            self.document({name: list(rows)})
        elif not rows:
            typer.echo(none or f"no {name.replace('_', ' ')}")
        elif not sys.stdout.isatty():
            for row in rows:
                typer.echo("  ".join(_cell(row.get(column)) for column in columns))
        else:
            _print_table(rows, columns)

    def document(
        self, told: Any, *, line: str = "", without: str = "", below: tuple[str, Sequence[str]] = ("", ())
    ) -> None:
        """Show one answer: its line, else everything it says `without` one long field; JSON with --json.

        `below`: the name of a list in it that is shown as a table after that, if it is not empty, and its columns.
        """
        if self._json:
            typer.echo(jsonlib.dumps(told))
        elif line:
            typer.echo(line)
        else:
            for name, value in told.items():
                if name not in (without, below[0]):
                    typer.echo(f"{name}: {_cell(value)}")
            if told.get(below[0]):
                self.table(told[below[0]], below[1], name=below[0])

    def _call(self, method: str, path: str, **options: Any) -> Any:
        return self._content(self._answer(method, path, **options))

    def _answer(self, method: str, path: str, *, headers: Mapping[str, str] | None = None, **options: Any) -> Any:
        import httpx

        try:
            answer = httpx.request(
                method, f"{self.url}/api/v1{path}", headers={"X-API-Key": self._key, **(headers or {})},
                timeout=ANSWER_SECONDS_MAX, **options,
            )  # fmt: skip
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as exc:
            raise ConfigurationError(
                f"no service answers at {self.url} ({type(exc).__name__}); name another with --url"
            ) from exc
        if answer.is_success:
            return answer
        told = _complaint(answer)
        if answer.status_code in (401, 403):
            raise ConfigurationError(f"{self.url} refuses this management key ({answer.status_code}): {told}")
        if answer.status_code >= 500:
            raise ConfigurationError(f"{self.url} answered {answer.status_code}: {told}")
        typer.echo(f"error: {told}", err=True)
        raise typer.Exit(EXIT_REFUSED)

    def _content(self, answer: Any) -> Any:
        if answer.status_code == 204:
            return None
        try:
            return answer.json() if "json" in answer.headers.get("content-type", "") else answer.text
        except ValueError as exc:
            raise ConfigurationError(f"{self.url} answers, but is no ApiKeyRouter service; check --url") from exc


def command(app: typer.Typer, name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A command on a running service: `function(service, …)` with its own options, and --url, --management-key, --json.

    A decorator. The function's docstring is the command's help.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        own = [one for one in inspect.signature(function).parameters.values() if one.name != "service"]

        def run(**given: Any) -> None:
            url, key, json = given.pop("url"), given.pop("management_key"), given.pop("json")
            function(Service(url, key or _own_key(), json=json), **given)

        common = (("url", _Url, URL_DEFAULT), ("management_key", _Key, None), ("json", _Json, False))
        keyword = inspect.Parameter.KEYWORD_ONLY
        shared = [inspect.Parameter(told, keyword, default=value, annotation=of) for told, of, value in common]
        kept = [one.replace(kind=keyword) for one in own]
        run.__signature__ = inspect.Signature([*kept, *shared])  # type: ignore[attr-defined]
        run.__annotations__ = {one.name: one.annotation for one in (*kept, *shared)}
        run.__doc__ = function.__doc__
        app.command(name)(run)
        return function

    return decorate


def path_of(*parts: str) -> str:
    """A path of names that may hold anything."""
    return "".join(f"/{quote(part, safe=':')}" for part in parts)


def read_secret(what: str) -> str:
    """A secret from standard input, never from the command line. Errors: ConfigurationError when there is none."""
    if sys.stdin.isatty():
        return str(typer.prompt(what.capitalize(), hide_input=True))
    secret = sys.stdin.readline().strip()
    if not secret:
        raise ConfigurationError(f"no {what} on standard input; pipe it: printenv NAME | apikeyrouter …")
    return secret


def _check(url: str, key: str) -> None:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ConfigurationError("--url must be a URL with http:// or https:// and a host, e.g. " + URL_DEFAULT)
    if not (key.isascii() and key.isprintable()):
        raise ConfigurationError("the management key must be printable ASCII: it goes into an HTTP header")


def _own_key() -> str:
    environ = environment()
    for name in (f"{PREFIX}MANAGEMENT_API_KEY", "MANAGEMENT_API_KEY"):
        if environ.get(name):
            return environ[name]
    raise ConfigurationError(
        "an admin key is needed: --management-key, or MANAGEMENT_API_KEY in the environment or .env"
    )


def _complaint(answer: Any) -> str:
    try:
        return str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return str(answer.text[:300])


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.9f}".rstrip("0").rstrip(".")
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        return ",".join(value) or "-"
    return jsonlib.dumps(value) if isinstance(value, dict | list) else str(value)


def _print_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """A table where the terminal is wide enough for its longest words, else a line for each field."""
    from rich import box
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Table
    from rich.text import Text

    console = Console()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        numbers = all(isinstance(row.get(column), int | float | None) for row in rows)
        table.add_column(column.replace("_", " "), justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(_cell(row.get(column)), _style(row.get(column))) for column in columns))
    if Measurement.get(console, console.options.update(max_width=_WIDTH_MAX), table).minimum <= console.width:
        console.print(table)
        return
    for row in rows:
        fields = Table.grid("field", "value", padding=(0, 1))
        for column in columns:
            value = Text(_cell(row.get(column)), _style(row.get(column)), overflow="fold")
            fields.add_row(Text(f"{column.replace('_', ' ')}:"), value)
        console.print(fields, end="\n\n")


def _style(value: Any) -> str:
    """States at a glance."""
    good, bad = ("available", "closed"), ("invalid", "exhausted", "open", "disabled")
    return "green" if value in good else "red" if value in bad else "yellow" if value in ("throttled",) else ""
