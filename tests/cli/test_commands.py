"""The commands as a person runs them: from nothing to an answer, and what they say when something is wrong."""

import concurrent.futures
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from apikeyrouter._version import __version__
from tests.cli.processes import ask, clean_environ, command, hear, is_alive, running, wait_until
from tests.servers import Server, binaries
from tests.servers import running as running_server

COMMAND = ["-m", "apikeyrouter.cli"]


@contextmanager
def quickstart(directory: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    with running([*COMMAND, "quickstart", "--port", "0", "--json", *options], cwd=directory) as process:
        yield process, hear(process, "listening")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """What a quickstart announced that runs while this file's tests ask it."""
    with quickstart(tmp_path_factory.mktemp("quickstart")) as (_, told):
        yield told


@contextmanager
def simulator(directory: Path) -> Iterator[str]:
    with running([*COMMAND, "simulate", "--port", "0"], cwd=directory) as process:
        assert process.stdout is not None
        yield process.stdout.readline().removeprefix("ready ").strip()
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def config_file(directory: Path, simulator_url: str) -> Path:
    """A router configuration with one simulated key."""
    path = directory / "router.yaml"
    path.write_text(
        f"providers:\n  openai: {{adapter: openai, base_url: '{simulator_url}/v1'}}\n"
        "keys:\n  - {id: k1, provider: openai, key: sk-sim-alpha-1}\n"
    )
    return path


def test_the_version_is_printed(tmp_path: Path) -> None:
    assert command("--version", cwd=tmp_path).stdout == f"apikeyrouter {__version__}\n"


def test_help_names_every_command_and_none_that_does_not_exist(tmp_path: Path) -> None:
    told = command("--help", cwd=tmp_path).stdout
    for name in ("serve", "quickstart", "demo", "simulate", "doctor", "keys"):
        assert name in told


def test_importing_the_library_does_not_load_the_command_line() -> None:
    program = "import sys, apikeyrouter; print([m for m in ('typer', 'uvicorn', 'fastapi') if m in sys.modules])"
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert told.stdout.strip() == "[]"


def test_serve_answers_with_two_workers_and_leaves_nothing_behind(tmp_path: Path) -> None:
    with simulator(tmp_path) as url:
        arguments = [*COMMAND, "serve", "--host", "127.0.0.1", "--port", "0", "--workers", "2", "--json"]
        arguments += ["--config", str(config_file(tmp_path, url)), "--data-dir", str(tmp_path / "data")]
        with running(arguments, cwd=tmp_path) as process:
            told = hear(process, "listening")
            assert len(told["workers"]) == 2
            assert told["keys"] == 1
            answer = ask(told["url"])
            assert answer.status_code == 200, answer.text
            assert answer.json()["routing_metadata"]["key_used"] == "k1"
            guard = int((tmp_path / "data" / "guard.pid").read_text())
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        assert not any(is_alive(pid) for pid in [*told["workers"], guard])
        assert not (tmp_path / "data" / "valkey.sock").exists()


def test_a_broken_file_at_a_hangup_changes_nothing_and_a_right_one_is_taken_over(tmp_path: Path) -> None:
    with simulator(tmp_path) as url:
        path = config_file(tmp_path, url)
        right = path.read_text()
        arguments = [*COMMAND, "serve", "--host", "127.0.0.1", "--port", "0", "--workers", "2", "--json"]
        arguments += ["--config", str(path), "--data-dir", str(tmp_path / "data")]
        with running(arguments, cwd=tmp_path) as process:
            told = hear(process, "listening")
            path.write_text(right + "keyz: []\n")
            process.send_signal(signal.SIGHUP)
            hear(process, "reloading")
            assert ask(told["url"]).json()["routing_metadata"]["key_used"] == "k1"
            path.write_text(right.replace("id: k1", "id: k2").replace("sk-sim-alpha-1", "sk-sim-alpha-2"))
            process.send_signal(signal.SIGHUP)
            wait_until(lambda: ask(told["url"]).json()["routing_metadata"]["key_used"] == "k2")
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0


def test_a_killed_embedded_server_is_back_without_a_restart_and_no_settlement_is_lost(tmp_path: Path) -> None:
    with quickstart(tmp_path) as (process, told):
        assert ask(told["url"]).status_code == 200
        with redis.Redis.from_url(told["redis_url"]) as connection:
            server = int(connection.info("server")["process_id"])
        with concurrent.futures.ThreadPoolExecutor() as pool:
            under_way = [pool.submit(ask, told["url"]) for _ in range(5)]
            os.kill(server, signal.SIGKILL)
            statuses = {call.result().status_code for call in under_way}
        assert statuses <= {200, 503}
        wait_until(lambda: ask(told["url"]).status_code == 200)
        wait_until(lambda: "apikeyrouter_settlements_pending 0" in httpx.get(told["url"] + "/metrics").text)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def test_uvicorn_alone_shares_the_embedded_server_of_the_data_directory(tmp_path: Path) -> None:
    with simulator(tmp_path) as url:
        environ = clean_environ(
            APIKEYROUTER_CONFIG=str(config_file(tmp_path, url)), APIKEYROUTER_DATA_DIR=str(tmp_path / "data")
        )
        arguments = ["-m", "uvicorn", "apikeyrouter_proxy.main:app", "--port", "0", "--workers", "2"]
        with running(arguments, cwd=tmp_path, environ=environ) as process:
            wait_until((tmp_path / "data" / "guard.pid").exists)
            guard = int((tmp_path / "data" / "guard.pid").read_text())
            process.send_signal(signal.SIGTERM)
            process.wait(60)
        wait_until(lambda: not is_alive(guard))


def test_quickstart_serves_simulated_providers_from_nothing(tmp_path: Path) -> None:
    with quickstart(tmp_path) as (process, told):
        assert told["simulated"]
        assert "ephemeral" in told["redis"]
        assert ask(told["url"]).status_code == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0


def test_the_curl_line_of_quickstart_works_when_pasted(served: dict[str, Any]) -> None:
    answer = subprocess.run(["/bin/sh", "-c", served["curl"]], capture_output=True, text=True, check=True, timeout=60)
    assert json.loads(answer.stdout)["choices"][0]["message"]["content"]


def test_the_python_lines_of_quickstart_work_when_pasted(served: dict[str, Any], tmp_path: Path) -> None:
    answer = subprocess.run(
        [sys.executable, "-c", served["python"]], cwd=tmp_path, env=clean_environ(), capture_output=True, text=True,
        check=True, timeout=60,
    )  # fmt: skip
    assert answer.stdout.strip()


def test_the_management_key_of_quickstart_opens_management_and_only_it(served: dict[str, Any], tmp_path: Path) -> None:
    keys = ["keys", "list", "--url", served["url"], "--json", "--management-key"]
    shown = command(*keys, served["management_key"], cwd=tmp_path)
    assert len(json.loads(shown.stdout)["keys"]) >= served["keys"]
    refused = command(*keys, "wrong", cwd=tmp_path)
    assert refused.returncode == 2
    assert "refuses this management key" in refused.stderr


def test_a_key_is_added_from_standard_input_and_not_shown_again(served: dict[str, Any], tmp_path: Path) -> None:
    access = ["--url", served["url"], "--management-key", served["management_key"]]
    added = command("keys", "add", "--provider", "openai", *access, cwd=tmp_path, stdin="sk-sim-of-a-test-1\n")
    assert added.returncode == 0, added.stderr
    shown = command("keys", "list", *access, cwd=tmp_path)
    assert len(shown.stdout.splitlines()) == served["keys"] + 1
    assert "sk-sim-of-a-test-1" not in added.stdout + shown.stdout


def test_keys_of_the_environment_are_used_instead_of_simulated_providers(tmp_path: Path) -> None:
    with simulator(tmp_path) as url:
        environ = clean_environ(OPENAI_API_KEY="sk-sim-alpha-1", OPENAI_BASE_URL=f"{url}/v1")
        arguments = [*COMMAND, "quickstart", "--port", "0", "--json"]
        with running(arguments, cwd=tmp_path, environ=environ) as process:
            told = hear(process, "listening")
            assert not told["simulated"]
            assert ask(told["url"]).status_code == 200
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0


def test_a_taken_port_names_the_way_out_of_the_command_and_of_make(served: dict[str, Any], tmp_path: Path) -> None:
    again = command("quickstart", "--port", str(served["port"]), cwd=tmp_path)
    assert again.returncode == 2
    assert "--port" in again.stderr
    assert "PROXY_PORT" in again.stderr


def test_a_port_that_is_taken_from_the_simulator_is_one_line(tmp_path: Path) -> None:
    with simulator(tmp_path) as url:
        again = command("simulate", "--port", url.rpartition(":")[2], cwd=tmp_path)
        assert again.returncode == 2
        assert again.stderr.startswith("error: cannot listen on port")


def test_a_wrong_configuration_file_is_named_with_its_path_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "router.yaml").write_text("limits:\n  - {quota_group: a, rpm: -1}\n")
    told = command("serve", "--config", "router.yaml", "--data-dir", "data", cwd=tmp_path)
    assert told.returncode == 2
    assert "limits[0].rpm" in told.stderr
    assert not (tmp_path / "data").exists()


def test_a_data_directory_does_not_go_with_a_redis_url(tmp_path: Path) -> None:
    told = command("serve", "--redis-url", "redis://127.0.0.1:1", "--data-dir", "data", cwd=tmp_path)
    assert told.returncode == 2
    assert "--data-dir" in told.stderr


def test_a_redis_that_does_not_answer_is_one_line_and_no_traceback(tmp_path: Path) -> None:
    told = command("serve", "--redis-url", "redis://user:hidden@127.0.0.1:1/0", "--port", "0", cwd=tmp_path)
    assert told.returncode == 2
    assert told.stderr.startswith("error: Redis at redis://127.0.0.1:1/0 does not answer")
    assert "Traceback" not in told.stderr
    assert "hidden" not in told.stderr


def test_doctor_finds_a_server_without_persistence_and_says_what_to_do(valkey_server: Server, tmp_path: Path) -> None:
    told = command("doctor", "--redis-url", valkey_server.url, "--json", cwd=tmp_path)
    findings = {finding["check"]: finding for finding in json.loads(told.stdout)}
    assert findings["redis"]["verdict"] == "ok"
    assert findings["persistence"]["verdict"] == "warning"
    assert "appendonly" in findings["persistence"]["remedy"]
    assert findings["clock"]["verdict"] == "ok"
    assert findings["encryption key"]["verdict"] == "problem"
    assert told.returncode == 1


@pytest.mark.parametrize("flavour", binaries())
@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
def test_doctor_refuses_a_server_that_evicts(flavour: str, tmp_path: Path, policy: str) -> None:
    with running_server(flavour, options=("--maxmemory-policy", policy)) as server:
        told = command("doctor", "--redis-url", server.url, cwd=tmp_path)
    assert told.returncode == 1
    assert f"eviction: {policy}" in told.stdout


def test_doctor_reaches_providers_without_sending_a_key(tmp_path: Path) -> None:
    with simulator(tmp_path) as url:
        told = command("doctor", "--config", str(config_file(tmp_path, url)), "--json", cwd=tmp_path)
        findings = {finding["check"]: finding for finding in json.loads(told.stdout)}
        assert findings["provider openai"]["verdict"] == "ok"
        assert httpx.get(f"{url}/_sim/report").json()["total"]["arrived"] == 0


def test_doctor_says_that_a_provider_or_a_redis_does_not_answer(tmp_path: Path) -> None:
    config = config_file(tmp_path, "http://127.0.0.1:1")
    told = command("doctor", "--config", str(config), "--redis-url", "redis://127.0.0.1:1", cwd=tmp_path)
    assert told.returncode == 1
    assert "provider openai: http://127.0.0.1:1/v1 does not answer" in told.stdout
    assert "redis://127.0.0.1:1 does not answer" in told.stdout
