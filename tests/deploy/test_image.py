"""The image: its install steps in a clean folder, and what comes out, run as its user on a read-only root."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.processes import SECONDS_MAX, wait_until
from tests.deploy.containers import dockerfile, process_environ
from tests.deploy.stack import listens
from tests.house.tree import ROOT, tracked
from tests.servers import free_port

USER = 10001
READ_ONLY = """
set -e
mount --make-rprivate /
mount -t tmpfs -o uid={user},mode=0700 tmpfs {scratch}
if ! setpriv --reuid {user} --clear-groups test -x {python}; then  # an interpreter in a home of its own
  mkdir {scratch}/python && mount --bind {python} {scratch}/python && mount -t tmpfs -o mode=0755 tmpfs {home}
  mkdir -p {python} && mount --bind {scratch}/python {python}
fi
for at in $(awk '$2 != "/proc" && $2 !~ "^/(proc|sys|dev)/" {{print $2}}' /proc/mounts | sort -u); do
  case $at in {scratch}) ;; *) mount -o remount,ro,bind "$at" 2>/dev/null || true ;; esac
done
exec setpriv --reuid {user} --regid {user} --clear-groups --no-new-privs --inh-caps=-all "$@"
"""
"""A mount namespace of its own in which only one folder takes files, then a user without rights: `read_only: true`,
`tmpfs`, `cap_drop: [ALL]`, `no-new-privileges`."""


@pytest.fixture(scope="module")
def image() -> Iterator[Path]:
    """What the build stage makes of the files that get into its context: the folder that stands for `/`."""
    root = Path("/tmp" if os.path.isdir("/tmp") else ".") / f"akr-image-{os.getpid()}"
    root.mkdir(mode=0o755)
    try:
        build, _ = dockerfile()
        context = root / "src"
        for name in tracked():
            if _in_context(name):
                (context / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, context / name)
        cache = os.environ.get("PIP_CACHE_DIR", str(Path.home() / ".cache/pip"))
        own = {"HOME": str(root), "PYTHONDONTWRITEBYTECODE": "1", "PIP_CACHE_DIR": cache}
        environ = process_environ(build.environ, own)
        for step in build.told("RUN"):
            done = subprocess.run(
                ["sh", "-c", _placed(step, root)], cwd=context, env=environ, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, f"{step}\n{done.stdout}{done.stderr}"
        shutil.rmtree(context)  # the last stage takes /opt/apikeyrouter alone
        shutil.rmtree(root / "opt" / "build")
        yield root
    finally:
        shutil.rmtree(root, ignore_errors=True)


def test_the_image_runs_the_wheel_alone(image: Path) -> None:
    program = _placed(dockerfile()[-1].command("ENTRYPOINT")[0], image)
    told = subprocess.run([program, "--version"], capture_output=True, text=True, check=True, env=process_environ())
    assert "apikeyrouter" in told.stdout
    python = str(image / "opt/apikeyrouter/bin/python")
    lines = "import apikeyrouter, lupa, pymongo, opentelemetry.trace as _; print(apikeyrouter.__file__)"
    where = subprocess.run([python, "-c", lines], capture_output=True, text=True, check=True, env=process_environ())
    assert Path(where.stdout.strip()).is_relative_to(image / "opt/apikeyrouter")
    assert not (image / "opt/apikeyrouter/bin/pip").exists()


def test_the_image_is_not_run_by_root() -> None:
    last = dockerfile()[-1]
    assert last.told("USER") == [f"{USER}:{USER}"]
    assert [name for name, _ in last.steps].index("USER") > [name for name, _ in last.steps].index("RUN")


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="a mount namespace and another user need root")
@pytest.mark.parametrize("redis", [True, False], ids=["a-redis-of-ones-own", "embedded-in-the-volume"])
def test_the_container_starts_answers_its_probe_and_ends_on_a_read_only_root(
    image: Path, redis_url: str, redis: bool
) -> None:
    last = dockerfile()[-1]
    scratch = image / "data"
    scratch.mkdir(exist_ok=True)
    port = str(free_port())
    environ = process_environ(
        {name: _placed(value, image) for name, value in last.environ.items()},
        {"PROXY_HOST": "127.0.0.1", "PROXY_PORT": port, "OPENAI_KEY_1": "sk-image", "TMPDIR": str(scratch)},
        {"APIKEYROUTER_ENCRYPTION_KEY": "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="},
        {"REDIS_URL": redis_url} if redis else {},
    )
    command = [_placed(part, image) for part in (*last.command("ENTRYPOINT"), *last.command("CMD"))]
    probe = [_placed(part, image) for part in last.command("HEALTHCHECK")]
    script = READ_ONLY.format(scratch=scratch, user=USER, python=sys.base_prefix, home=Path.home())
    process = subprocess.Popen(["unshare", "-m", "sh", "-c", script, "sh", *command], env=environ, cwd="/")
    try:
        assert subprocess.run(probe, env=environ, capture_output=True, check=False).returncode == 1  # not yet

        def healthy() -> bool:
            assert process.poll() is None, "the service did not start"
            return listens(int(port)) and subprocess.run(probe, env=environ, capture_output=True).returncode == 0

        wait_until(healthy)
        status = Path(f"/proc/{process.pid}/status").read_text()
        assert f"Uid:\t{USER}\t{USER}\t{USER}\t{USER}" in status
        assert "CapEff:\t0000000000000000" in status
        assert "NoNewPrivs:\t1" in status
        probed = ["nsenter", "-t", str(process.pid), "-m", "touch"]
        for refused in ("/tmp/x", str(image / "opt/apikeyrouter/x")):
            done = subprocess.run([*probed, refused], capture_output=True, text=True, check=False)
            assert "Read-only file system" in done.stderr
        process.terminate()
        assert process.wait(SECONDS_MAX) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def test_the_context_of_the_build_holds_no_history_and_no_secrets() -> None:
    names = [name for name in (*tracked(), ".env", ".git/config", ".venv/bin/python") if _in_context(name)]
    assert {name.partition("/")[0] for name in names} == {
        "router", "service", "lua", "pyproject.toml", "constraints.txt", "README.md", "LICENSE",
    }  # fmt: skip


def _in_context(name: str) -> bool:
    """`.dockerignore` leaves nothing but what begins with one of its exceptions."""
    rules = [line for line in (ROOT / ".dockerignore").read_text().split() if not line.startswith("#")]
    assert "*" in rules
    return any(name == kept or name.startswith(f"{kept}/") for kept in (rule[1:] for rule in rules if rule[0] == "!"))


def _placed(text: str, root: Path) -> str:
    """Paths of the container, below the folder that stands for its root."""
    for path in ("/opt/", "/data"):
        text = text.replace(path, f"{root}{path}")
    return text
