"""The scripts in `lua/`, built from their includes, with what their headers declare.

One file is one atomic transition. A header's KEYS line names the cell's structures that the script touches, and is what
the engines pass; nothing is declared twice.
"""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import NamedTuple

from apikeyrouter.domain.models.system_error import LedgerProtocolError

SCRIPT_NAMES = (
    "acknowledge", "audit", "cancel", "configure", "open", "reassert", "record", "release", "renew", "reserve",
    "settle", "snapshot", "suspect", "sweep",
)  # fmt: skip
_INCLUDE = re.compile(r"^( *)-- @include (\w+)$")
_KEYS = re.compile(r"^-- KEYS +(.+)$", re.MULTILINE)
_CONSTANTS = re.compile(r"^ *local ((?:[A-Z][A-Z0-9_]*(?:, )?)+) = (\d+(?:, \d+)*)\n", re.MULTILINE)
_WORDS = re.compile(r"'[^'\n]*'|\b[A-Z][A-Z0-9_]*\b")


@dataclass(frozen=True, slots=True)
class Script:
    """One built script: its text as the server gets it, and the names of its keys in order."""

    name: str
    text: str
    keys: tuple[str, ...]

    @property
    def sha(self) -> str:
        """SHA-1 of the text, as EVALSHA wants it; a change of any include is a new script."""
        return hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()


class SourceLine(NamedTuple):
    """One line of a script as it was written, and where: file below `lua/`, line from 1."""

    file: str
    number: int
    text: str


def lua_root() -> Traversable:
    """Where `lua/` is: package data of an installed wheel, or the folder of a source tree."""
    packaged = files("apikeyrouter") / "_lua"
    return packaged if packaged.is_dir() else Path(__file__).parents[4] / "lua"


@cache
def load_scripts(*, virtual_time: bool = False) -> dict[str, Script]:
    """All scripts by name. `virtual_time` builds them with a clock that tests set (field virtual_now of the cell)."""
    return {name: _build(name, virtual_time=virtual_time) for name in SCRIPT_NAMES}


def source_lines(name: str, *, virtual_time: bool = False) -> Iterator[SourceLine]:
    """A script's lines with its includes in their places, as its author wrote them: what a linter reads.

    Raises:
        LedgerProtocolError: no `#!lua` line, or no KEYS in the header.
    """
    root = lua_root()
    source = (root / f"{name}.lua").read_text(encoding="utf-8")
    declared = _KEYS.search(source)
    if not source.startswith("#!lua") or declared is None:
        raise LedgerProtocolError(f"lua/{name}.lua: the first line must be #!lua and the header must declare KEYS")
    keys = declared.group(1).split()
    slots = ", ".join(f"KEYS[{i}]" for i in range(1, len(keys) + 1))
    lines = _expand(root, f"{name}.lua", frozenset(), virtual_time=virtual_time)
    yield next(lines)
    yield SourceLine(f"{name}.lua", 1, f"local {', '.join(keys)} = {slots}")
    yield from lines


def _expand(root: Traversable, file: str, outside: frozenset[str], *, virtual_time: bool) -> Iterator[SourceLine]:
    """Put includes in their places, each once in a scope: an indented one is local to the function it stands in."""
    inside, local = set(outside), set[str]()
    source = root.joinpath(*file.split("/")).read_text(encoding="utf-8")
    for number, line in enumerate(source.rstrip().split("\n"), 1):
        included = _INCLUDE.match(line)
        if included is None:
            yield SourceLine(file, number, line)
            continue
        indent, part = included.groups()
        if part in inside:
            continue
        if not indent:
            inside.add(part)
        local.add(part)
        chosen = "clock_now_virtual" if virtual_time and part == "clock_now" else part
        yield from _expand(root, f"include/{chosen}.lua", frozenset(inside | local), virtual_time=virtual_time)


def _build(name: str, *, virtual_time: bool) -> Script:
    lines = [line.text for line in source_lines(name, virtual_time=virtual_time)]
    built = _inline(_strip("\n".join(lines[1:])))
    declared = next(filter(None, map(_KEYS.match, lines)))
    return Script(name, f"{lines[0]}\n{built}\n", tuple(declared.group(1).split()))


def _inline(text: str) -> str:
    """Put numbers in the places of named constants: a chunk of Lua 5.1 holds 200 locals, and we have more names."""
    constants: dict[str, str] = {}

    def collect(match: re.Match[str]) -> str:
        constants.update(zip(match.group(1).split(", "), match.group(2).split(", "), strict=True))
        return ""

    text = _CONSTANTS.sub(collect, text)
    return _WORDS.sub(lambda match: constants.get(match.group(), match.group()), text)


def _strip(text: str) -> str:
    """Drop comment and blank lines: what is sent and hashed is code."""
    return "\n".join(line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("--"))
