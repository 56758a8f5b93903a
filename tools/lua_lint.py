"""Run luacheck over the scripts as they are built: names cross files, so that a file alone says little.

    python -m tools.lua_lint

Each script is written with its includes in their places, before constants become numbers; what luacheck says is told
with the file and line it was written in. An include comes whole: a name of it that one script does not use is no
fault, an include of which a script uses nothing is, and so is a name that no script uses.

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
from typing import NamedTuple

from apikeyrouter.infrastructure.ledger.scripts import SCRIPT_NAMES, SourceLine, source_lines

ROOT = Path(__file__).parents[1]
_FINDING = re.compile(r"^(?P<file>.+?):(?P<line>\d+):(?P<column>\d+): (?P<text>.+)$")
_UNUSED = re.compile(r"^\(W211\) unused (?:variable|function) '(\w+)'")
_DEFINED = re.compile(r"^local (?:function )?(\w+(?:, \w+)*)")


class Finding(NamedTuple):
    """One warning: where it was written, and the name that is unused if that is what it says."""

    script: str
    line: SourceLine
    text: str

    @property
    def unused(self) -> str | None:
        """The unused name, when it is one that an include shares."""
        match = _UNUSED.match(self.text)
        return (
            match.group(1)
            if match and self.line.file.startswith("include/") and _DEFINED.match(self.line.text)
            else None
        )


def main() -> int:
    """Lint every script, with both clocks, and print each warning once."""
    luacheck = shutil.which("luacheck")
    if luacheck is None:
        print("luacheck is not installed: `apt-get install lua-check` or `luarocks install luacheck`", file=sys.stderr)
        return 2
    scripts = {
        f"{name}{clock and '_virtual'}": list(source_lines(name, virtual_time=bool(clock)))
        for name in SCRIPT_NAMES
        for clock in ("", "virtual")
    }
    findings = list(_findings(luacheck, scripts))
    warnings = {f"lua/{f.line.file}:{f.line.number}: {f.text}" for f in findings if f.unused is None}
    warnings |= set(_unneeded(scripts, findings))
    print("\n".join([*sorted(warnings), f"luacheck: {len(SCRIPT_NAMES)} scripts, {len(warnings)} warnings"]))
    return 1 if warnings else 0


def _findings(luacheck: str, scripts: dict[str, list[SourceLine]]) -> Iterator[Finding]:
    with tempfile.TemporaryDirectory() as folder:
        for name, lines in scripts.items():
            body = "\n".join(line.text for line in lines[1:])
            Path(folder, f"{name}.lua").write_text(f"-- {lines[0].text}\n{body}\n", encoding="utf-8")
        command = [luacheck, "--config", str(ROOT / ".luacheckrc"), "--formatter", "plain", "--codes", "--no-cache"]
        done = subprocess.run([*command, folder], capture_output=True, text=True, check=False)
    for text in done.stdout.splitlines():
        match = _FINDING.match(text)
        if match is None:
            raise SystemExit(f"luacheck: {text}")
        name = Path(match["file"]).stem
        yield Finding(name, scripts[name][int(match["line"]) - 1], match["text"])
    if done.returncode > 2:
        raise SystemExit(f"luacheck failed ({done.returncode}): {done.stderr.strip()}")


def _unneeded(scripts: dict[str, list[SourceLine]], findings: Sequence[Finding]) -> Iterator[str]:
    """Includes of which a script uses nothing, and names that no script uses."""
    unused: dict[tuple[str, str], set[str]] = defaultdict(set)
    for finding in findings:
        if finding.unused is not None:
            unused[finding.script, finding.line.file].add(finding.unused)
    used: dict[str, set[str]] = defaultdict(set)
    for script, lines in scripts.items():
        for file, defined in _names(lines).items():
            if defined and defined <= unused[script, file]:
                yield f"lua/{script.removesuffix('_virtual')}.lua: uses nothing of {file}"
            used[file] |= defined - unused[script, file]
    for lines in scripts.values():
        for file, defined in _names(lines).items():
            for name in sorted(defined - used[file]):
                if not name.isupper():  # a layout or an enumeration names everything it has
                    yield f"lua/{file}: no script uses {name}"


def _names(lines: Sequence[SourceLine]) -> dict[str, set[str]]:
    """What each include of a script defines for it."""
    names: dict[str, set[str]] = defaultdict(set)
    for line in lines:
        match = _DEFINED.match(line.text)
        if match and line.file.startswith("include/"):
            names[line.file].update(match.group(1).split(", "))
    return names


if __name__ == "__main__":
    sys.exit(main())
