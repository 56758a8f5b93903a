"""Run luacheck over the library as it is built: names cross files, so that a file alone says little.

    python -m tools.lua_lint

The library is written with every include in its place, before constants become numbers; what luacheck says is told with
the file and line it was written in. A name that nothing uses is a fault, but for an enumeration's or a layout's: those
name everything they have. So is an include of which a file uses nothing.

Exit status: 0 clean, 1 warnings, 2 luacheck is not installed.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from apikeyrouter.infrastructure.ledger.scripts import SourceLine, source_lines

ROOT = Path(__file__).parents[1]
_FINDING = re.compile(r"^(?P<file>.+?):(?P<line>\d+):(?P<column>\d+): (?P<text>.+)$")
_UNUSED_CONSTANT = re.compile(r"^\(W211\) unused variable '[A-Z][A-Z0-9_]*'")
_DEFINED = re.compile(r"^local (?:function )?(\w+(?:, \w+)*)")
_INCLUDE = re.compile(r"^-- @include (\w+)$")
_CODE = re.compile(r"'[^'\n]*'|\.\w+|\w+")


def main() -> int:
    """Lint the library, with both clocks, and print each warning once."""
    luacheck = shutil.which("luacheck")
    if luacheck is None:
        print("luacheck is not installed: `apt-get install lua-check` or `luarocks install luacheck`", file=sys.stderr)
        return 2
    warnings: set[str] = set()
    for virtual_time in (False, True):
        lines = list(source_lines(virtual_time=virtual_time))
        warnings.update(_findings(luacheck, lines))
        warnings.update(_unneeded(lines))
    print("\n".join([*sorted(warnings), f"luacheck: {len(warnings)} warnings"]))
    return 1 if warnings else 0


def _findings(luacheck: str, lines: Sequence[SourceLine]) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "library.lua")
        path.write_text("\n".join(line.text for line in lines) + "\n", encoding="utf-8")
        command = [luacheck, "--config", str(ROOT / ".luacheckrc"), "--formatter", "plain", "--codes", "--no-cache"]
        done = subprocess.run([*command, str(path)], capture_output=True, text=True, check=False)
    for text in done.stdout.splitlines():
        match = _FINDING.match(text)
        if match is None:
            raise SystemExit(f"luacheck: {text}")
        line = lines[int(match["line"]) - 1]
        if line.file and not _UNUSED_CONSTANT.match(match["text"]):
            yield f"lua/{line.file}:{line.number}: {match['text']}"
    if done.returncode > 2:
        raise SystemExit(f"luacheck failed ({done.returncode}): {done.stderr.strip()}")


def _unneeded(lines: Sequence[SourceLine]) -> Iterator[str]:
    """Includes of which the file that names them uses nothing, and those it uses without naming them."""
    defined: dict[str, str] = {}
    told: dict[str, set[str]] = defaultdict(set)
    used: dict[str, set[str]] = defaultdict(set)
    for file, _, text in lines:
        definition = _DEFINED.match(text)
        if definition and file.startswith("include/"):
            defined |= dict.fromkeys(definition.group(1).split(", "), _name(file))
    for file, _, text in lines:
        if match := _INCLUDE.match(text):
            told[file].add(match.group(1))
        elif file:
            used[file].update(defined[word] for word in _CODE.findall(text.partition("--")[0]) if word in defined)
    for file in told.keys() | used.keys():
        own = {_name(file)}
        for name in sorted(told[file] - used[file]):
            yield f"lua/{file}: uses nothing of {name}"
        for name in sorted(used[file] - told[file] - own):
            yield f"lua/{file}: uses {name} without including it"


def _name(file: str) -> str:
    return Path(file).stem.removesuffix("_virtual")


if __name__ == "__main__":
    sys.exit(main())
