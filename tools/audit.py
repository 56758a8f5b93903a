"""`python -m tools.audit`: asks whether a pinned dependency has a known vulnerability, by pip-audit.

It first asks about a release that is known to be vulnerable. Where that is not recognised, there is no service to ask
(a closed network, a mirror without advisories): nothing is audited, and the command says so and succeeds. Exit code 1
where a vulnerability is known, or pip-audit fails otherwise.
"""

import json
import subprocess
import sys
import tempfile
import venv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["main", "verdict"]

ROOT = Path(__file__).parents[1]
PIP_AUDIT = "pip-audit==2.10.1"
KNOWN_VULNERABLE = "jinja2==2.11.0"
SECONDS_MAX = 300


def main() -> int:
    """Audit constraints.txt; returns the exit code."""
    program = _installed(ROOT / "build" / "audit")
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as known:
        known.write(KNOWN_VULNERABLE + "\n")
        known.flush()
        report = _report(program, Path(known.name))
    if report is None or not any(each.get("vulns") for each in report["dependencies"]):
        print(f"SKIPPED, nothing was audited: no vulnerability service here recognises {KNOWN_VULNERABLE}")
        return 0
    report = _report(program, ROOT / "constraints.txt")
    if report is None:
        print("pip-audit gave no report", file=sys.stderr)
        return 1
    lines, code = verdict(report)
    print("\n".join(lines))
    return code


def verdict(report: Mapping[str, Any]) -> tuple[list[str], int]:
    """What pip-audit's JSON report says, in lines, and the exit code."""
    lines: list[str] = []
    found = audited = 0
    for each in report["dependencies"]:
        if "skip_reason" in each:
            lines.append(f"not audited: {each['name']}: {each['skip_reason']}")
            continue
        audited += 1
        for vulnerability in each["vulns"]:
            found += 1
            fixed = ", ".join(vulnerability.get("fix_versions", [])) or "no release"
            lines.append(f"{each['name']} {each['version']}: {vulnerability['id']}, fixed in {fixed}")
    lines.append(f"{audited} dependencies audited, {found} vulnerabilities known")
    return lines, 1 if found or not audited else 0


def _installed(folder: Path) -> Path:
    """pip-audit in an environment of its own: its dependencies are none of ours."""
    program = folder / "bin" / "pip-audit"
    if not program.exists():
        venv.create(folder, with_pip=True)
        subprocess.run([folder / "bin" / "pip", "install", "-q", PIP_AUDIT], check=True)
    return program


def _report(program: Path, requirements: Path) -> dict[str, Any] | None:
    """pip-audit's report; None where it gave none."""
    command = [
        str(program),
        "-r",
        str(requirements),
        "--no-deps",
        "--disable-pip",
        "--progress-spinner",
        "off",
        "-f",
        "json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS_MAX)
    try:
        report: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        return None
    return report


if __name__ == "__main__":
    sys.exit(main())
