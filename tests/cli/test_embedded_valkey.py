"""One embedded Valkey for all processes of a directory: shared, surviving, and never left behind."""

import os
import signal
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import redis

from apikeyrouter.domain.models.system_error import ConfigurationError, StateStoreUnavailableError
from apikeyrouter.infrastructure import embedded_valkey
from apikeyrouter.infrastructure.embedded_valkey import (
    EmbeddedServer,
    open_embedded,
    running_url,
    shared_embedded_url,
)
from tests.cli.processes import is_alive, next_line, running, wait_until

USER = """
import sys
from pathlib import Path
from apikeyrouter.infrastructure.embedded_valkey import shared_embedded_url
server = shared_embedded_url(Path(sys.argv[1]), linger_seconds=0.1)
print(server.url, server.guard_pid, flush=True)
sys.stdin.readline()
server.close()
"""


@pytest.fixture
def opened() -> Iterator[Callable[[Path | None], EmbeddedServer]]:
    """`shared_embedded_url` with a short linger; the servers are stopped afterwards."""
    with ExitStack() as stack:

        def open_one(data_dir: Path | None) -> EmbeddedServer:
            server = shared_embedded_url(data_dir, linger_seconds=0.1)
            stack.callback(server.stop)
            return server

        yield open_one


@contextmanager
def user(directory: Path) -> Iterator[tuple[subprocess.Popen[str], str, int]]:
    """Another process that uses the directory's server: the process, the URL and the guard it found."""
    with running(["-c", USER, str(directory)], cwd=directory.parent) as process:
        url, _, guard = next_line(process).strip().rpartition(" ")
        yield process, url, int(guard)


def client(url: str) -> "redis.Redis":
    return redis.Redis.from_url(url, decode_responses=True)


def test_processes_that_name_the_same_directory_share_one_server(tmp_path: Path) -> None:
    with ExitStack() as stack:
        users = [stack.enter_context(user(tmp_path / "data")) for _ in range(3)]
        assert len({(url, guard) for _, url, guard in users}) == 1
        with client(users[0][1]) as first, client(users[2][1]) as last:
            first.set("said", "here")
            assert last.get("said") == "here"
    wait_until(lambda: not is_alive(users[0][2]))


def test_processes_that_begin_at_the_same_time_start_one_server(tmp_path: Path) -> None:
    with ExitStack() as stack:
        users = [stack.enter_context(running(["-c", USER, str(tmp_path / "data")], cwd=tmp_path)) for _ in range(4)]
        assert len({next_line(process) for process in users}) == 1


def test_the_server_outlives_the_process_that_started_it_however_that_died(tmp_path: Path) -> None:
    with user(tmp_path / "data") as (starter, url, guard), user(tmp_path / "data"), client(url) as other:
        other.set("before", "kept")
        starter.kill()
        starter.wait()
        assert other.get("before") == "kept"
        assert is_alive(guard)


def test_kill_9_of_every_user_leaves_no_process_and_no_socket(tmp_path: Path) -> None:
    with user(tmp_path / "data") as (first, url, guard), user(tmp_path / "data") as (second, _, _):
        with client(url) as connection:
            server = int(connection.info("server")["process_id"])
        first.kill()
        second.kill()
        wait_until(lambda: not is_alive(guard))
        assert not is_alive(server)
        assert not (tmp_path / "data" / "valkey.sock").exists()


def test_a_restart_with_a_data_directory_keeps_what_was_written(
    tmp_path: Path, opened: Callable[[Path | None], EmbeddedServer]
) -> None:
    first = opened(tmp_path / "data")
    with client(first.url) as connection:
        connection.set("budget", "spent")
    assert first.stop()
    assert running_url(tmp_path / "data") is None
    second = opened(tmp_path / "data")
    with client(second.url) as connection:
        assert connection.get("budget") == "spent"
    assert second.encryption_key == first.encryption_key


def test_a_killed_server_comes_back_with_its_data(
    tmp_path: Path, opened: Callable[[Path | None], EmbeddedServer]
) -> None:
    server = opened(tmp_path / "data")
    with client(server.url) as connection:
        connection.set("budget", "spent")
        connection.execute_command("WAITAOF", 1, 0, 5_000)
        pid = int(connection.info("server")["process_id"])
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not is_alive(pid) and running_url(tmp_path / "data"))
    with client(server.url) as connection:
        assert connection.get("budget") == "spent"


def test_signals_to_every_process_at_once_do_not_take_the_server_from_its_users(
    tmp_path: Path, opened: Callable[[Path | None], EmbeddedServer]
) -> None:
    server = opened(tmp_path / "data")
    assert server.guard_pid is not None
    with client(server.url) as connection:
        connection.set("budget", "spent")
        pid = int(connection.info("server")["process_id"])
    for process in (server.guard_pid, pid):
        os.kill(process, signal.SIGTERM)
    wait_until(lambda: not is_alive(pid) and running_url(tmp_path / "data"))
    with client(server.url) as connection:
        assert connection.get("budget") == "spent"


def test_a_killed_guard_takes_its_server_along_and_ensure_starts_both_again(
    tmp_path: Path, opened: Callable[[Path | None], EmbeddedServer]
) -> None:
    server = opened(tmp_path / "data")
    with client(server.url) as connection:
        pid = int(connection.info("server")["process_id"])
        connection.set("budget", "spent")
    guard = server.guard_pid
    assert guard is not None
    os.kill(guard, signal.SIGKILL)
    wait_until(lambda: not is_alive(pid))
    server.ensure()
    with client(server.url) as connection:
        assert connection.get("budget") == "spent"


def test_an_ephemeral_server_keeps_nothing_and_leaves_no_directory(
    opened: Callable[[Path | None], EmbeddedServer],
) -> None:
    server = opened(None)
    with client(server.url) as connection:
        assert connection.config_get("appendonly")["appendonly"] == "no"
    assert server.ephemeral
    assert server.stop()
    assert not server.directory.exists()


def test_two_ephemeral_servers_have_nothing_in_common(opened: Callable[[Path | None], EmbeddedServer]) -> None:
    first, second = opened(None), opened(None)
    assert first.url != second.url


def test_the_server_never_evicts_has_no_tcp_port_and_syncs_each_second(
    tmp_path: Path, opened: Callable[[Path | None], EmbeddedServer]
) -> None:
    with client(opened(tmp_path / "data").url) as connection:
        settings = connection.config_get("*")
    assert settings["maxmemory-policy"] == "noeviction"
    assert settings["port"] == "0"
    assert (settings["appendonly"], settings["appendfsync"]) == ("yes", "everysec")


def test_nobody_else_may_read_the_directory_or_the_encryption_key(
    tmp_path: Path, opened: Callable[[Path | None], EmbeddedServer]
) -> None:
    server = opened(tmp_path / "data")
    key_file = tmp_path / "data" / "encryption.key"
    assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o700
    assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
    assert server.encryption_key not in repr(server)


def test_stop_leaves_a_server_that_another_process_uses(
    tmp_path: Path, opened: Callable[[Path | None], EmbeddedServer]
) -> None:
    with user(tmp_path / "data") as (_, url, _):
        assert not opened(tmp_path / "data").stop()
        with client(url) as connection:
            assert connection.ping()


def test_a_directory_with_a_long_name_gets_its_socket_elsewhere(
    tmp_path: Path, opened: Callable[[Path | None], EmbeddedServer]
) -> None:
    long_one = tmp_path / ("x" * 120)
    with client(opened(long_one).url) as connection:
        assert connection.ping()
    assert not (long_one / "valkey.sock").exists()


def test_temporary_files_may_be_in_a_place_with_a_long_name(
    tmp_path: Path, opened: Callable[[Path | None], EmbeddedServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    long_one = tmp_path / ("x" * 120)
    long_one.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long_one))
    server = opened(None)
    with client(server.url) as connection:
        assert connection.ping()
    assert server.directory.parent == long_one


def test_the_guard_knows_nothing_of_the_environment(
    tmp_path: Path, opened: Callable[[Path | None], EmbeddedServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    server = opened(tmp_path / "data")
    environ = Path(f"/proc/{server.guard_pid}/environ")
    if environ.exists():
        assert b"sk-very-secret" not in environ.read_bytes()


async def test_opening_does_not_block_the_event_loop(tmp_path: Path) -> None:
    server = await open_embedded(tmp_path / "data", linger_seconds=0.1)
    with client(server.url) as connection:
        assert connection.ping()
    assert server.stop()


def test_a_directory_that_cannot_be_made_is_refused_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a directory")
    with pytest.raises(ConfigurationError, match="--data-dir"):
        shared_embedded_url(tmp_path / "file")


def test_a_server_that_does_not_start_is_reported_with_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "broken"
    program.write_text("#!/bin/sh\necho cannot live like this\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr(embedded_valkey, "_server_program", lambda: program)
    with pytest.raises(StateStoreUnavailableError, match="cannot live like this"):
        shared_embedded_url(tmp_path / "data", linger_seconds=0.1)
