"""The supervisor: workers that are restarted, a clean end, and nothing left behind. Over a plain app of the tests."""

import concurrent.futures
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from apikeyrouter_proxy.worker import bound_socket
from tests.cli.processes import clean_environ, hear, is_alive, running, wait_until

PATH = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
"""The workers import an app of the tests."""
PROGRAM = """
import json, sys
from apikeyrouter_proxy.server import ServeOptions, serve
options = json.loads(sys.argv[1])
def tell(event, facts):
    print(json.dumps({"event": event, **facts}), flush=True)
sys.exit(serve(ServeOptions(**options, app="tests.cli.apps.plain:app", ephemeral=True), tell=tell))
"""


@contextmanager
def supervisor(
    directory: Path, *, environ: dict[str, str] | None = None, **options: Any
) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """A running supervisor and what it announced."""
    told = json.dumps({"port": 0, "workers": 2, "drain_seconds": 20, **options})
    given = clean_environ(PYTHONPATH=PATH, **(environ or {}))
    with running(["-c", PROGRAM, told], cwd=directory, environ=given) as process:
        yield process, hear(process, "listening")


def end(process: subprocess.Popen[str], number: int = signal.SIGTERM) -> int:
    process.send_signal(number)
    return process.wait(60)


def test_the_announcement_says_what_listens_where_over_which_redis(tmp_path: Path) -> None:
    with supervisor(tmp_path) as (process, told):
        assert len(set(told["workers"])) == 2
        assert told["url"] == f"http://127.0.0.1:{told['port']}"
        assert "ephemeral" in told["redis"]
        assert int(httpx.get(told["url"]).text) in told["workers"]
        assert end(process) == 0


def test_after_sigterm_no_process_no_socket_and_no_directory_is_left(tmp_path: Path) -> None:
    with supervisor(tmp_path) as (process, told):
        directory = Path(told["redis_url"].removeprefix("unix://")).parent
        guard = int((directory / "guard.pid").read_text())
        assert end(process) == 0
        assert not any(is_alive(pid) for pid in [*told["workers"], guard])
        assert not directory.exists()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", told["port"]))


def test_requests_in_flight_finish_and_every_worker_flushes_before_the_end(tmp_path: Path) -> None:
    with supervisor(tmp_path) as (process, told), concurrent.futures.ThreadPoolExecutor() as pool:
        slow = pool.submit(httpx.get, told["url"] + "/slow", timeout=60)
        wait_until((tmp_path / "slow-began").exists)
        assert end(process) == 0
        assert slow.result().status_code == 200
        assert {path.name for path in tmp_path.glob("flushed-*")} == {f"flushed-{pid}" for pid in told["workers"]}


def test_a_signal_that_is_told_twice_still_lets_requests_finish(tmp_path: Path) -> None:
    with supervisor(tmp_path) as (process, told), concurrent.futures.ThreadPoolExecutor() as pool:
        slow = pool.submit(httpx.get, told["url"] + "/slow", timeout=60)
        wait_until((tmp_path / "slow-began").exists)
        process.send_signal(signal.SIGTERM)
        assert end(process) == 0
        assert slow.result().status_code == 200


def test_an_interrupt_ends_it_as_cleanly(tmp_path: Path) -> None:
    with supervisor(tmp_path) as (process, told):
        assert end(process, signal.SIGINT) == 0
        assert len(list(tmp_path.glob("flushed-*"))) == len(told["workers"])


def test_a_killed_worker_is_replaced_while_the_others_serve(tmp_path: Path) -> None:
    with supervisor(tmp_path) as (process, told):
        first, second = told["workers"]
        os.kill(first, signal.SIGKILL)
        assert hear(process, "worker_restarted")["pid"] == first
        assert int(httpx.get(told["url"]).text) != first
        seen: set[int] = set()

        def saw_the_new_one() -> bool:
            seen.add(int(httpx.get(told["url"]).text))
            return bool(seen - {first, second})

        wait_until(saw_the_new_one)
        assert end(process) == 0


def test_workers_of_a_killed_supervisor_end_in_order_and_so_does_the_server(tmp_path: Path) -> None:
    with supervisor(tmp_path) as (process, told):
        directory = Path(told["redis_url"].removeprefix("unix://")).parent
        process.kill()
        wait_until(lambda: len(list(tmp_path.glob("flushed-*"))) == 2)
        wait_until(lambda: not any(is_alive(pid) for pid in told["workers"]))
        wait_until(lambda: not directory.exists())


def test_a_taken_port_is_a_clear_error_even_where_workers_could_share_it(tmp_path: Path) -> None:
    with supervisor(tmp_path) as (_, told):
        arguments = ["-c", PROGRAM, json.dumps({"port": told["port"]})]
        again = subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60,
            env=clean_environ(PYTHONPATH=PATH),
        )  # fmt: skip
        assert again.returncode != 0
        assert f"port {told['port']}" in again.stderr
        assert "--port" in again.stderr


def test_a_worker_that_cannot_start_ends_everything_with_its_own_exit_code(tmp_path: Path) -> None:
    (tmp_path / "refuse-to-start").touch()
    told = json.dumps({"port": 0, "workers": 2})
    with running(["-c", PROGRAM, told], cwd=tmp_path, environ=clean_environ(PYTHONPATH=PATH)) as process:
        assert process.wait(60) == 3


def test_workers_get_the_embedded_servers_url_and_its_master_key(tmp_path: Path) -> None:
    with supervisor(tmp_path) as (process, told):
        given = httpx.get(told["url"] + "/environ").json()
        assert given["APIKEYROUTER_REDIS_URL"].startswith(told["redis_url"])
        assert given["APIKEYROUTER_ENCRYPTION_KEY"]
        assert end(process) == 0


def test_workers_drain_as_long_as_their_supervisor_waits_for_them(tmp_path: Path) -> None:
    with supervisor(tmp_path, environ={"PROXY_DRAIN_SECONDS": "5"}, drain_seconds=1.5) as (process, told):
        assert httpx.get(told["url"] + "/environ").json()["APIKEYROUTER_PROXY_DRAIN_SECONDS"] == "1.5"
        assert end(process) == 0


def test_a_configured_master_key_wins_over_the_embedded_servers(tmp_path: Path) -> None:
    with supervisor(tmp_path, environ={"APIKEYROUTER_ENCRYPTION_KEY": "of-the-user"}) as (process, told):
        assert httpx.get(told["url"] + "/environ").json()["APIKEYROUTER_ENCRYPTION_KEY"] == "of-the-user"
        assert end(process) == 0


def test_a_password_in_the_redis_url_is_not_announced(tmp_path: Path) -> None:
    with supervisor(tmp_path, redis_url="redis://user:hidden@127.0.0.1:6390/0") as (process, told):
        assert "hidden" not in json.dumps(told)
        assert end(process) == 0


def test_several_sockets_may_share_a_port_only_when_they_say_so() -> None:
    with bound_socket("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        bound_socket("127.0.0.1", port).close()
