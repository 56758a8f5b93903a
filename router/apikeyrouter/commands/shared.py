"""What several commands have in common: groups, arguments, files, deletions."""

import math
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from apikeyrouter.commands.remote import Service, path_of
from apikeyrouter.domain.models.system_error import ConfigurationError
from apikeyrouter.strict_yaml import read_yaml

__all__ = [
    "COUNT_MAX",
    "DOLLARS_MAX",
    "SECONDS_MAX",
    "Expires",
    "File",
    "Id",
    "Name",
    "Team",
    "Unset",
    "delete",
    "group",
    "read_file",
    "read_text",
    "settings",
]

Name = Annotated[str, typer.Argument(help="Its name.")]
Id = Annotated[str, typer.Argument(help="Its id.")]
File = Annotated[str, typer.Argument(help="A YAML or JSON file; - for standard input.")]
Team = Annotated[str | None, typer.Option("--team", help="A team's.")]
Expires = Annotated[str | None, typer.Option("--expires-at", help="When it ends, e.g. 2030-01-01T00:00:00Z.")]
Unset = Annotated[list[str] | None, typer.Option("--unset", help="A setting to take away, e.g. rpm; again for more.")]


COUNT_MAX, DOLLARS_MAX, SECONDS_MAX = 2**53, 1e9, 366 * 24 * 3600
"""Beyond these nothing is counted, costs or lasts."""


def finite(value: float | None) -> float | None:
    """A number, or nothing. `nan` is neither more nor less than any bound. Errors: typer.BadParameter."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is no number")
    return value


def number(text: str, *, option: str, example: str) -> float | int:
    """A number within a text: from 0 to COUNT_MAX. Errors: typer.BadParameter, naming the option."""
    try:
        told = int(text) if text.isdecimal() else float(text)
    except ValueError:
        told = math.nan
    if not 0 <= told <= COUNT_MAX:
        raise typer.BadParameter(f"{text[:40]!r} is no amount; write e.g. {example}", param_hint=f"'{option}'")
    return told


def group(words: str) -> typer.Typer:
    """A group of commands."""
    return typer.Typer(help=words, no_args_is_help=True)


def delete(service: Service, kind: str, id: str, done: str) -> None:
    """Delete one thing, and say so."""
    service.send("DELETE", f"/{kind}{path_of(id)}")
    service.document({"id": id, "done": done}, line=f"{done} {id}")


def settings(**told: Any) -> dict[str, Any]:
    """What was said."""
    return {name: value for name, value in told.items() if value is not None}


def read_file(file: str) -> Any:
    """What a YAML or JSON file says. Errors: ConfigurationError."""
    text = read_text(file)
    try:
        return read_yaml(text)
    except ValueError as exc:
        raise ConfigurationError(f"{file}: cannot be read: {exc}") from exc


def read_text(file: str) -> str:
    """What is in a file, - for standard input. Errors: ConfigurationError."""
    try:
        return sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
    except (OSError, ValueError) as exc:
        raise ConfigurationError(f"{file}: cannot be read: {exc}") from exc
