"""The scripts in `lua/`, built into one library of functions, with what their headers declare.

One file is one atomic transition, and one function of the library (`FUNCTION LOAD`, Redis 7). A header's KEYS line
names the cell's structures that the script touches, and is what the engines pass; nothing is declared twice.
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
    "acknowledge", "audit", "cancel", "claim", "configure", "forgot", "fund", "grant", "open", "reassert", "record",
    "release", "renew", "reserve", "settle", "snapshot", "suspect", "sweep",
)  # fmt: skip
STRUCTURES = ("C0", "C1", "L", "D", "S", "G", "U", "F")
"""The keys of a cell, by the names that the scripts give them."""
_UNNAMED = "LIBRARY"
"""The library's name until its digest is known."""
_INCLUDE = re.compile(r"^-- @include (\w+)$")
_HEADER = re.compile(r"#!lua(?: flags=([a-z,-]+))?\n")
_KEYS = re.compile(r"^-- KEYS +(.+)$", re.MULTILINE)
_CONSTANTS = re.compile(r"^ *local ((?:[A-Z][A-Z0-9_]*(?:, )?)+) = (\d+(?:, \d+)*)\n", re.MULTILINE)
_WORDS = re.compile(r"'[^'\n]*'|\b[A-Z][A-Z0-9_]*\b")


@dataclass(frozen=True, slots=True)
class Script:
    """One function of the library: the name the server knows it by, its flags, and its keys in order."""

    name: str
    function: str
    flags: tuple[str, ...]
    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Library:
    """Every script, in the text that a server loads.

    Its name ends in a digest of that text: workers of two versions share a server without stepping on each other.
    """

    name: str
    text: str
    scripts: dict[str, Script]


class SourceLine(NamedTuple):
    """One line of the library as it was written, and where: file below `lua/` ("" for a generated one), line from 1."""

    file: str
    number: int
    text: str


def lua_root() -> Traversable:
    """Where `lua/` is: package data of an installed wheel, or the folder of a source tree."""
    packaged = files("apikeyrouter") / "_lua"
    return packaged if packaged.is_dir() else Path(__file__).parents[4] / "lua"


@cache
def load_library(*, virtual_time: bool = False) -> Library:
    """All scripts. `virtual_time` builds them with a clock that tests set (field `\\nvirtual_now` of L)."""
    body = _inline(_strip("\n".join(line.text for line in source_lines(virtual_time=virtual_time))))
    name = f"apikeyrouter_{hashlib.sha256(body.encode()).hexdigest()[:16]}"
    scripts = {script: _declared(script, name) for script in SCRIPT_NAMES}
    return Library(name, f"#!lua name={name}\n{body.replace(_UNNAMED, name)}\n", scripts)


def source_lines(*, virtual_time: bool = False) -> Iterator[SourceLine]:
    """The library's lines as their authors wrote them, each include once and before who needs it: what a linter reads.

    Raises:
        LedgerProtocolError: a file without a `#!lua` line or without KEYS in its header.
    """
    root, seen = lua_root(), set[str]()
    yield SourceLine("", 1, f"local ARGV, {', '.join(STRUCTURES)}")
    for name in SCRIPT_NAMES:
        body = list(_expand(root, f"{name}.lua", seen, virtual_time=virtual_time))
        yield from (line for line in body if line.file != f"{name}.lua")
        yield SourceLine("", 1, f"local function script_{name}()")
        yield from (line for line in body if line.file == f"{name}.lua" and line.number > 1)
        yield SourceLine("", 1, "end")
    for name in SCRIPT_NAMES:
        yield SourceLine("", 1, _registration(_declared(name, _UNNAMED)))


def _expand(root: Traversable, file: str, seen: set[str], *, virtual_time: bool) -> Iterator[SourceLine]:
    source = root.joinpath(*file.split("/")).read_text(encoding="utf-8")
    for number, line in enumerate(source.rstrip().split("\n"), 1):
        included = _INCLUDE.match(line)
        if included is not None and (part := included.group(1)) not in seen:
            seen.add(part)
            chosen = "clock_now_virtual" if virtual_time and part == "clock_now" else part
            yield from _expand(root, f"include/{chosen}.lua", seen, virtual_time=virtual_time)
        yield SourceLine(file, number, line)


def _declared(name: str, library: str) -> Script:
    source = (lua_root() / f"{name}.lua").read_text(encoding="utf-8")
    header, keys = _HEADER.match(source), _KEYS.search(source)
    if header is None or keys is None:
        raise LedgerProtocolError(f"lua/{name}.lua: the first line must be #!lua and the header must declare KEYS")
    flags = tuple((header.group(1) or "").split(",")) if header.group(1) else ()
    return Script(name, f"{library}_{name}", flags, tuple(keys.group(1).split()))


def _registration(script: Script) -> str:
    """What makes a script callable: it gets its keys by their names, and a working set of its own."""
    keys = ", ".join(f"keys[{script.keys.index(key) + 1}]" if key in script.keys else "nil" for key in STRUCTURES)
    flags = ", ".join(f"'{flag}'" for flag in script.flags)
    callback = f"ARGV, {', '.join(STRUCTURES)} = args, {keys} working_begin() return script_{script.name}()"
    return (
        f"redis.register_function{{function_name = '{script.function}', flags = {{{flags}}},"
        f" callback = function(keys, args) {callback} end}}"
    )


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
