"""Every number that a command takes, tried with what is none: the command line itself says so, in one line."""

import contextlib
import inspect
import io
from collections.abc import Callable, Iterator
from types import UnionType
from typing import Annotated, Any, get_args, get_origin

import pytest
import typer
from typer.main import get_command

from apikeyrouter.commands.app import app

NONE = ("nan", "inf", "-1", "1e400", "1" * 400, "", "text")
"""What is no number of anything that is counted, lasts or costs."""
STRUCTURED = {
    "--budget": ("{}/daily",), "--row": ("rpm={}", "rpm=5,tpm={}"), "--timeout": ("idle_ms={}",),
    "--breaker": ("failures={}",),
}  # fmt: skip
"""Options whose text has a number in it."""
FREE = {"--priority"}
"""A policy's: any whole number, a negative one, too."""
ELSEWHERE = ["--url", "http://127.0.0.1:1", "--management-key", "k"]
"""Where nobody answers: a command that asks there took what it should have refused."""


def commands(group: typer.Typer, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Callable[..., Any]]]:
    for one in group.registered_commands:
        assert one.callback is not None
        yield (*path, one.name or one.callback.__name__.strip("_").replace("_", "-")), one.callback
    for under in group.registered_groups:
        assert under.typer_instance is not None
        yield from commands(under.typer_instance, (*path, str(under.name)))


def words_of(path: tuple[str, ...], function: Callable[..., Any]) -> list[str]:
    """The command with whatever it cannot do without."""
    words = list(path)
    for one in inspect.signature(function).parameters.values():
        info = _info(one)
        if info is None or one.default is not inspect.Parameter.empty:
            continue
        if isinstance(info, typer.models.ArgumentInfo):
            words.append("x")
        else:
            words += [_name(one), "1"]
    return words + (ELSEWHERE if "management_key" in inspect.signature(function).parameters else [])


def _info(one: inspect.Parameter) -> Any:
    return one.annotation.__metadata__[0] if get_origin(one.annotation) is Annotated else None


def _name(one: inspect.Parameter) -> str:
    info = _info(one)
    told = [name for name in (info.default, *(info.param_decls or ())) if isinstance(name, str)]
    return told[0] if told else f"--{one.name.replace('_', '-')}"


def _numeric(one: inspect.Parameter) -> bool:
    kind = get_args(one.annotation)[0]
    kinds = get_args(kind) if isinstance(kind, UnionType) else (kind,)
    return bool({int, float} & set(kinds))


def numbers() -> Iterator[tuple[list[str], str, str]]:
    """(the command, an option of it, how its value is written)."""
    for path, function in commands(app):
        for one in inspect.signature(function).parameters.values():
            if _info(one) is None:
                continue
            if _numeric(one):
                yield words_of(path, function), _name(one), "{}"
            for form in STRUCTURED.get(_name(one), ()):
                yield words_of(path, function), _name(one), form


CASES = sorted(numbers())
COMMAND = get_command(app)


def run(words: list[str]) -> tuple[object, list[str]]:
    """How it leaves, and the complaints on standard error."""
    err = io.StringIO()
    with pytest.raises(SystemExit) as left, contextlib.redirect_stderr(err):
        COMMAND.main(words, prog_name="apikeyrouter")
    return left.value.code, [line for line in err.getvalue().splitlines() if line.lower().startswith("error: ")]


def test_the_walk_finds_numbers_in_every_corner() -> None:
    found = {(words[0], name) for words, name, _ in CASES}
    assert {("clients", "--rpm"), ("clients", "--weight"), ("capacity", "--rps"), ("limits", "--row")} <= found
    assert len(CASES) > 50


@pytest.mark.parametrize(("words", "name", "form"), CASES, ids=[f"{' '.join(w[:2])} {n} {f}" for w, n, f in CASES])
def test_what_is_no_number_is_refused_by_the_command_line(words: list[str], name: str, form: str) -> None:
    for value in NONE:
        if name in FREE and value == "-1":
            continue
        code, complaints = run([*words, f"{name}={form.format(value)}"])
        assert (code, len(complaints)) == (2, 1), (value, complaints)
        assert f"Invalid value for '{name}'" in complaints[0], (value, complaints[0])
        assert len(complaints[0]) < 600
