"""The scripts in `lua/`, built from their includes, with what their headers declare.

One file is one atomic transition. A header's KEYS line names the cell's structures that the script touches, and is what
the engines pass; nothing is declared twice.
"""

import hashlib
import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from apikeyrouter.domain.models.system_error import LedgerProtocolError

SCRIPT_NAMES = (
    "acknowledge", "audit", "cancel", "configure", "open", "reassert", "record", "release", "renew", "reserve",
    "settle", "snapshot", "suspect", "sweep",
)  # fmt: skip
_INCLUDE = re.compile(r"^( *)-- @include (\w+)$", re.MULTILINE)
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


def lua_root() -> Traversable:
    """Where `lua/` is: package data of an installed wheel, or the folder of a source tree."""
    packaged = files("apikeyrouter") / "_lua"
    return packaged if packaged.is_dir() else Path(__file__).parents[4] / "lua"


@cache
def load_scripts(*, virtual_time: bool = False) -> dict[str, Script]:
    """All scripts by name. `virtual_time` builds them with a clock that tests set (field virtual_now of the cell)."""
    root = lua_root()
    return {name: _build(root, name, virtual_time=virtual_time) for name in SCRIPT_NAMES}


def _build(root: Traversable, name: str, *, virtual_time: bool) -> Script:
    source = (root / f"{name}.lua").read_text(encoding="utf-8")
    shebang, _, body = source.partition("\n")
    declared = _KEYS.search(body)
    if not shebang.startswith("#!lua") or declared is None:
        raise LedgerProtocolError(f"lua/{name}.lua: the first line must be #!lua and the header must declare KEYS")
    keys = tuple(declared.group(1).split())
    slots = ", ".join(f"KEYS[{i}]" for i in range(1, len(keys) + 1))

    def expand(text: str, outside: frozenset[str]) -> str:
        """Put includes in their places, each once in a scope: an indented one is local to the function it stands in."""
        inside = set(outside)

        def include(match: re.Match[str]) -> str:
            indent, part = match.groups()
            if part in inside:
                return ""
            file = "clock_now_virtual" if virtual_time and part == "clock_now" else part
            source = (root / "include" / f"{file}.lua").read_text(encoding="utf-8").rstrip()
            if not indent:
                inside.add(part)
            local.add(part)
            return expand(source, frozenset(inside | local))

        local: set[str] = set()
        return _INCLUDE.sub(include, text)

    built = _inline(_strip(expand(body, frozenset())))
    return Script(name, f"{shebang}\nlocal {', '.join(keys)} = {slots}\n{built}\n", keys)


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
