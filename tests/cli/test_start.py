"""What is wrong is said at the start: one line that names it, no traceback, and an exit code that is not 0."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from apikeyrouter._version import __version__
from tests.cli.processes import clean_environ, command
from tests.servers import binaries
from tests.servers import running as running_server

WRONG = "keyz: []\n"


def uvicorn(directory: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """The service under plain uvicorn, to its end."""
    return subprocess.run(
        [sys.executable, "-m", "uvicorn", "apikeyrouter_proxy.main:app", "--port", "0", "--log-level", "warning"],
        cwd=directory, env=clean_environ(**environ), capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


def the_line(told: subprocess.CompletedProcess[str], marker: str) -> str:
    """The only line that names the trouble; there is no traceback around it."""
    assert told.returncode != 0
    assert "Traceback" not in told.stdout + told.stderr
    (line,) = [line for line in told.stderr.splitlines() if marker in line]
    return line


def test_the_package_runs_as_the_command(tmp_path: Path) -> None:
    told = subprocess.run(
        [sys.executable, "-m", "apikeyrouter", "--version"],
        cwd=tmp_path, env=clean_environ(), capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert told.stdout == f"apikeyrouter {__version__}\n"


def test_a_wrong_configuration_under_uvicorn_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "router.yaml").write_text(WRONG + "limits:\n  - {quota_group: a, rpm: -1}\n")
    line = the_line(uvicorn(tmp_path, APIKEYROUTER_CONFIG="router.yaml"), "router.yaml")
    assert "keyz: is not a known field" in line
    assert "limits[0].rpm" in line


def test_a_redis_that_is_away_under_uvicorn_is_one_line_without_the_password(tmp_path: Path) -> None:
    line = the_line(uvicorn(tmp_path, REDIS_URL="redis://user:hidden@127.0.0.1:1/0"), "127.0.0.1:1")
    assert "cannot be reached" in line
    assert "hidden" not in line


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("PROXY_DRAIN_SECONDS", "soon"),
        ("APIKEYROUTER_PROXY_DRAIN_SECONDS", "-1"),
        ("PROXY_BODY_BYTES_MAX", "0"),
        ("APIKEYROUTER_ENCRYPTION_KEY", "short"),
    ],
)
def test_a_wrong_variable_is_named_before_anything_starts(tmp_path: Path, variable: str, value: str) -> None:
    told = command(
        "serve", "--port", "0", "--data-dir", "data", cwd=tmp_path, environ=clean_environ(**{variable: value})
    )
    assert told.returncode == 2
    assert the_line(told, variable).startswith("error: ")
    assert not (tmp_path / "data").exists()


def test_an_access_log_that_cannot_be_opened_is_one_line(tmp_path: Path) -> None:
    environ = clean_environ(PROXY_ACCESS_LOG_FILE="/nowhere/access.log")
    told = command("serve", "--port", "0", "--data-dir", "data", cwd=tmp_path, environ=environ)
    assert told.returncode == 3
    assert "PROXY_ACCESS_LOG_FILE" in the_line(told, "/nowhere/access.log")


@pytest.mark.parametrize("flavour", binaries())
def test_a_server_that_evicts_is_refused_with_the_remedy(flavour: str, tmp_path: Path) -> None:
    with running_server(flavour, options=("--maxmemory-policy", "allkeys-lru")) as server:
        told = command("serve", "--port", "0", "--redis-url", server.url, cwd=tmp_path)
    assert told.returncode == 2
    assert "CONFIG SET maxmemory-policy noeviction" in the_line(told, "allkeys-lru")


def test_doctor_finds_nothing_that_the_file_asks_for_in_vain(tmp_path: Path) -> None:
    policy = "policies:\n  - {name: eu, type: routing, rules: {allowed_regions: [eu]}}\n"
    (tmp_path / "router.yaml").write_text(policy + "routing: {translate: true, wait_max_ms: 5}\n")
    told = command("doctor", "--config", "router.yaml", "--data-dir", "data", cwd=tmp_path)
    assert "has no effect" not in told.stdout


def test_doctor_names_a_wrong_variable(tmp_path: Path) -> None:
    told = command("doctor", cwd=tmp_path, environ=clean_environ(PROXY_DRAIN_SECONDS="soon"))
    assert told.returncode == 1
    assert "PROXY_DRAIN_SECONDS: must be a number" in told.stdout


def test_a_simulation_of_what_is_no_text_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "bin.json").write_bytes(b"\xff\xfe\x00\x80")
    told = command("simulate", "--port", "0", "--config", "bin.json", cwd=tmp_path, environ=clean_environ())
    assert "UTF-8" in the_line(told, "simulator:")


def test_a_page_whose_port_is_taken_is_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        told = command("dashboard", "--port", port, cwd=tmp_path, environ=clean_environ())
    assert the_line(told, "cannot listen").count(port) == 1
    assert len(told.stderr.splitlines()) == 1
