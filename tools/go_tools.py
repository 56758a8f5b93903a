"""Builds helm, promtool and FerretDB with Go into build/tools, for the checks of chart, alert rules and MongoDB store.

`python -m tools.go_tools`: does nothing where they are there already, and says why when Go is not. Exit code 1 when Go
is there and a build fails.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

__all__ = ["TOOLS", "found", "main"]

BUILT = Path(__file__).parents[1] / "build" / "tools"
TOOLS = {
    "helm": "helm.sh/helm/v3/cmd/helm@v3.16.4",
    "promtool": "github.com/prometheus/prometheus/cmd/promtool@v0.300.1",
    "ferretdb": "github.com/FerretDB/FerretDB/cmd/ferretdb@v1.24.0",
}
"""Program → package and version."""
TAGS = {"ferretdb": "ferretdb_no_postgresql"}
LACKING = {"ferretdb": ("github.com/FerretDB/FerretDB", "build/version/version.txt")}
"""Tools whose module lacks a file that its authors generate, with the version in it → the module, the file."""


def found(tool: str) -> str | None:
    """Where a tool is: built here, else on the machine; None without one."""
    built = BUILT / tool
    return str(built) if os.access(built, os.X_OK) else shutil.which(tool)


def main() -> int:
    """Build what is missing; returns the exit code."""
    missing = [tool for tool in TOOLS if found(tool) is None]
    if not missing:
        return 0
    go = shutil.which("go")
    if go is None:
        print(f"no Go here, so {' and '.join(missing)} cannot be built: what needs them is skipped")
        return 0
    return 0 if all(_build(go, tool) for tool in missing) else 1


def _build(go: str, tool: str) -> bool:
    """One tool; whether it was built."""
    BUILT.mkdir(parents=True, exist_ok=True)
    print(f"building {TOOLS[tool]}", flush=True)
    package, _, version = TOOLS[tool].partition("@")
    output = ["build", "-buildvcs=false", f"-tags={TAGS.get(tool, '')}", "-o", str(BUILT / tool), package]
    with tempfile.TemporaryDirectory(prefix="akr-go-") as folder:
        try:
            if tool in LACKING:
                _go(go, output, folder=_completed(go, *LACKING[tool], version, Path(folder)))
            else:  # in a module of its own: its authors' go.mod may exclude versions, which `go install` refuses
                for command in (["mod", "init", "tools"], ["get", TOOLS[tool]], output):
                    _go(go, command, folder=Path(folder))
        except subprocess.CalledProcessError as exc:
            print(f"{' '.join(exc.cmd)}:\n{exc.stderr[-2000:]}", file=sys.stderr)
            return False
    return True


def _completed(go: str, module: str, lacking: str, version: str, folder: Path) -> Path:
    """A copy of a module's source with the file that it lacks."""
    downloaded = _go(go, ["mod", "download", "-json", f"{module}@{version}"], folder=folder)
    source = folder / "source"
    shutil.copytree(json.loads(downloaded)["Dir"], source, copy_function=shutil.copyfile)
    for directory, _, _ in os.walk(source):
        Path(directory).chmod(0o755)  # what Go downloads is read-only
    (source / lacking).write_text(version + "\n")
    return source


def _go(go: str, arguments: list[str], *, folder: Path) -> str:
    """What a command of Go printed. Errors: CalledProcessError."""
    return subprocess.run([go, *arguments], cwd=folder, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    sys.exit(main())
