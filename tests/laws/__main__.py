"""Breaks every law of the accounting with a patch, and sees a test turn red: `python -m tests.laws [name part …]`.

Each patch in this folder says first which law it breaks, how, and which tests must see it. It is applied to a copy of
the tree; the tests are run there, against the copy. A patch that no longer applies fails, and so does one that no test
sees, or that breaks more than the law (an import, a fixture).
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PATCHES = Path(__file__).parent
COPIED = ("lua/", "router/", "service/", "tests/", "pyproject.toml", "README.md")
AT_ONCE = 2
TEST_SECONDS_MAX = 120
PLUGINS = ("-p", "pytest_asyncio.plugin", "-p", "pytest_timeout")
"""What these tests need of pytest's plugins: to import all that are installed takes longer than a test."""
LONG_AGO = 946_684_800
"""When the copied files were changed, so that what is compiled of them serves every copy, and of a broken file none."""
LAWS = range(1, 11)
_FIELD = re.compile(r"^(Law|Breaks|Seen-By): (.+)$", re.MULTILINE)
_FAILED = re.compile(r"^FAILED (\S+)", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Breach:
    """One patch: the law it breaks, how it says so, and the tests that must see it."""

    path: Path
    law: int
    breaks: str
    seen_by: tuple[str, ...]

    @property
    def name(self) -> str:
        """What the table calls it."""
        return self.path.stem


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What came of one patch. `seen` names the test that turned red; `trouble` says why the verdict is bad."""

    breach: Breach
    seen: str = ""
    trouble: str = ""


def main(wanted: Sequence[str]) -> int:
    """Break the laws whose patch's name has one of these parts (all, without any); 0 when each was seen."""
    started = time.monotonic()
    breaches = [read(path) for path in sorted(PATCHES.glob("*.patch"))]
    missing = [law for law in LAWS if law not in {breach.law for breach in breaches}]
    chosen = [breach for breach in breaches if not wanted or any(part in breach.name for part in wanted)]
    with tempfile.TemporaryDirectory(prefix="akr-laws-") as directory:
        whole = copy_tree(Path(directory) / "whole")
        if trouble := unbroken_is_green(whole, chosen):
            print(trouble)
            return 1
        with ThreadPoolExecutor(AT_ONCE) as pool:
            verdicts = list(pool.map(lambda breach: judge(breach, whole), chosen))
    print(table(verdicts))
    bad = [verdict for verdict in verdicts if verdict.trouble]
    if missing:
        print(f"no patch breaks law {', '.join(map(str, missing))}")
    print(f"{len(verdicts) - len(bad)} of {len(verdicts)} breaches seen in {time.monotonic() - started:.0f} s")
    return 1 if bad or missing else 0


def read(path: Path) -> Breach:
    """A patch's first lines."""
    fields = dict(_FIELD.findall(path.read_text(encoding="utf-8").partition("\n--- ")[0]))
    return Breach(path=path, law=int(fields["Law"]), breaks=fields["Breaks"], seen_by=tuple(fields["Seen-By"].split()))


def copy_tree(to: Path) -> Path:
    """The files that git knows, as they are now."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode()
    for name in listed.split("\0"):
        if name.startswith(COPIED) and (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, to / name)
            os.utime(to / name, (LONG_AGO, LONG_AGO))
    return to


def unbroken_is_green(whole: Path, breaches: Sequence[Breach]) -> str:
    """Why the copy cannot judge: it imports something else, or its tests are red already. "" when it can."""
    where = python(whole, "-c", "import apikeyrouter; print(apikeyrouter.__file__)").stdout.strip()
    if not Path(where or "/").is_relative_to(whole):
        return f"the copy imports apikeyrouter from {where or 'nowhere'}"
    tests = sorted({test for breach in breaches for test in breach.seen_by})
    done = run_tests(whole, tests)
    return "" if done.returncode == 0 else f"red without any breach:\n{done.stdout[-3000:]}{done.stderr[-1000:]}"


def judge(breach: Breach, whole: Path) -> Verdict:
    """Apply one patch to a copy of its own and run its tests there."""
    with tempfile.TemporaryDirectory(prefix="akr-law-") as directory:
        broken = Path(directory) / "tree"
        shutil.copytree(whole, broken)
        applied = subprocess.run(
            ["git", "apply", "--recount", str(breach.path)], cwd=broken, capture_output=True, text=True, check=False,
            env=os.environ | {"GIT_CEILING_DIRECTORIES": directory},
        )  # fmt: skip
        if applied.returncode:
            return Verdict(breach=breach, trouble=f"does not apply: {applied.stderr.strip()[:200]}")
        return verdict_of(breach, run_tests(broken, breach.seen_by))


def verdict_of(breach: Breach, done: subprocess.CompletedProcess[str]) -> Verdict:
    """Red by a failed test and by nothing else."""
    failed = _FAILED.findall(done.stdout)
    if done.returncode == 0:
        return Verdict(breach=breach, trouble="stays green")
    if done.returncode != 1 or not failed or re.search(r"^ERROR ", done.stdout, re.MULTILINE):
        return Verdict(breach=breach, trouble=f"breaks more than a law: {(done.stdout + done.stderr)[-300:]}")
    return Verdict(breach=breach, seen=failed[0])


def run_tests(tree: Path, tests: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Just these tests, in that tree."""
    return python(tree, "-m", "pytest", "-q", "-p", "no:cacheprovider", *PLUGINS, "--tb=line", *tests)


def python(tree: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """This Python, with a tree's own packages before all others."""
    paths = os.pathsep.join(str(tree / name) for name in ("router", "service"))
    return subprocess.run(
        [sys.executable, *arguments], cwd=tree, capture_output=True, text=True, check=False, timeout=TEST_SECONDS_MAX,
        env=os.environ | {"PYTHONPATH": paths, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
    )  # fmt: skip


def table(verdicts: Sequence[Verdict]) -> str:
    """One line a breach: law, what was broken, and who saw it."""
    rows = [
        (
            f"law {verdict.breach.law}",
            verdict.breach.breaks,
            (verdict.trouble and f"NOT SEEN: {verdict.trouble}") or f"red: {verdict.seen.rpartition('::')[2]}",
        )
        for verdict in sorted(verdicts, key=lambda verdict: (verdict.breach.law, verdict.breach.name))
    ]
    width = max((len(breaks) for _, breaks, _ in rows), default=0)
    return "\n".join(f"{law:<7} {breaks:<{width}}  {seen}" for law, breaks, seen in rows)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
