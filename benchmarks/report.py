"""Figures, and how they are shown: a table for the terminal, a table for `RESULTS.md`. Gaps are shown as gaps."""

import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.table import Table

import apikeyrouter

__all__ = [
    "RESULTS", "Figure", "Section", "machine_facts", "print_sections", "replace_sections", "show", "write_results",
]  # fmt: skip

RESULTS = Path(__file__).parent / "RESULTS.md"

_PACKAGES = ("apikeyrouter", "aiohttp", "uvicorn", "uvloop", "httptools", "hiredis", "msgspec", "fastapi", "redis")


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One figure. `budget` "" where there is none; `holds` None where nothing is promised."""

    name: str
    measured: str
    budget: str = ""
    holds: bool | None = None

    @property
    def verdict(self) -> str:
        """`yes`, `NO` or nothing."""
        return "" if self.holds is None else "yes" if self.holds else "NO"


@dataclass(slots=True, kw_only=True)
class Section:
    """Figures of one kind, with what has to be known to read them."""

    title: str
    figures: list[Figure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def print_sections(sections: Sequence[Section]) -> None:
    """Show every section on standard output."""
    console = Console(width=None if sys.stdout.isatty() else 150)
    for section in sections:
        table = Table(title=section.title, title_justify="left", title_style="bold")
        for column in ("figure", "measured", "budget", "met"):
            table.add_column(column)
        for figure in section.figures:
            style = "red" if figure.holds is False else ""
            table.add_row(figure.name, figure.measured, figure.budget, figure.verdict, style=style)
        console.print(table)
        for note in section.notes:
            console.print(f"  {note}", style="dim", highlight=False, markup=False)
        console.print()


def write_results(path: Path, sections: Sequence[Section], *, command: str, facts: Sequence[str]) -> None:
    """Write the results file, whole."""
    lines = [
        "# Benchmark results",
        "",
        f"Written by `{command}` on {datetime.now(UTC):%Y-%m-%d %H:%M} UTC; do not edit by hand.",
        "Medians, with quartiles in parentheses. Conditions and budgets are those of the design's §8.",
        "",
        *[f"- {fact}" for fact in facts],
    ]
    for section in sections:
        lines += ["", *_written(section)]
    path.write_text("\n".join([*lines, "", *_missed(lines)]), encoding="utf-8")


def show(section: Section, *, keep: bool) -> None:
    """Print one section with the machine it is of. `keep`: in RESULTS.md, too."""
    section.notes += machine_facts()
    print_sections([section])
    if keep:
        replace_sections(RESULTS, [section])


def replace_sections(path: Path, sections: Sequence[Section]) -> None:
    """Write some sections in place of those of the same title; new ones before what was missed, which is told anew. The
    rest stays."""
    parts = re.split(r"(?m)^(?=## )", path.read_text(encoding="utf-8"))
    for section in sections:
        text = "\n".join([*_written(section), "", ""])
        head = f"## {section.title}\n"
        places = [at for at, part in enumerate(parts) if part.startswith(head)]
        if places:
            parts[places[0]] = text
        else:
            parts.insert(len(parts) - 1, text)
    parts[-1] = "\n".join(_missed("".join(parts[:-1]).splitlines()))
    path.write_text("".join(parts), encoding="utf-8")


def _missed(lines: Sequence[str]) -> list[str]:
    """What the tables say is not met."""
    rows = [line.strip("| ").split(" | ") for line in lines if line.endswith("| NO |")]
    missed = [f"- {name}: {measured}, budget {budget}" for name, measured, budget, _ in rows]
    return ["## Budgets not met", "", *(missed or ["None."]), ""]


def _written(section: Section) -> list[str]:
    lines = [f"## {section.title}", "", "| figure | measured | budget | met |", "|---|---|---|---|"]
    lines += [f"| {f.name} | {f.measured} | {f.budget} | {f.verdict} |" for f in section.figures]
    return lines + (["", *[f"- {note}" for note in section.notes]] if section.notes else [])


def machine_facts() -> list[str]:
    """What the figures depend on, without the machine's name."""
    packages = ", ".join(f"{name} {version(name)}" for name in _PACKAGES)
    return [
        f"{_processor()}, {_cores()} cores, {_memory_gib():.0f} GiB, {platform.system()} {platform.release()}",
        f"load average of the last minute at the start: {os.getloadavg()[0]:.1f} (what else ran widens the spread, and"
        " lengthens what is wall time: latency, server time, import)",
        f"Python {platform.python_version()}; {packages}; commit {_commit()}",
    ]


def _processor() -> str:
    for line in _lines("/proc/cpuinfo"):
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _cores() -> int:
    return sum(line.startswith("processor") for line in _lines("/proc/cpuinfo"))


def _memory_gib() -> float:
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemTotal"):
            return int(line.split()[1]) / 2**20
    return 0.0


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def _commit() -> str:
    """Of the code that is measured, which need not be the tree that these benchmarks are in."""
    folder = Path(apikeyrouter.__file__).parent
    commit = _git(folder, "rev-parse", "--short", "HEAD")
    changed = _git(folder, "status", "--porcelain", "--", ":/router", ":/service", ":/lua")
    return (commit or "unknown") + (" with uncommitted changes" if changed else "")


def _git(folder: Path, *arguments: str) -> str:
    told = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False, timeout=10, cwd=folder)
    return told.stdout.strip()
