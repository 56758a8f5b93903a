"""Builds helm and promtool with Go into build/tools, for the checks of the chart and of the alert rules.

`python -m tools.go_tools`: does nothing where they are there already, and says why when Go is not. Exit code 1 when Go
is there and a build fails.
"""

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
}
"""Program → package and version."""


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
    """One tool in a module of its own, as its authors' go.mod may exclude versions, which `go install` refuses."""
    package, _, _ = TOOLS[tool].partition("@")
    BUILT.mkdir(parents=True, exist_ok=True)
    print(f"building {TOOLS[tool]}", flush=True)
    with tempfile.TemporaryDirectory(prefix="akr-go-") as folder:
        for command in (
            ["mod", "init", "tools"],
            ["get", TOOLS[tool]],
            ["build", "-buildvcs=false", "-o", str(BUILT / tool), package],
        ):
            done = subprocess.run([go, *command], cwd=folder, capture_output=True, text=True, check=False)
            if done.returncode:
                print(f"go {' '.join(command)}:\n{done.stderr[-2000:]}", file=sys.stderr)
                return False
    return True


if __name__ == "__main__":
    sys.exit(main())
