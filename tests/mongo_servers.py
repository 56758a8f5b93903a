"""Real servers that speak MongoDB's protocol, in processes of their own.

SecantusDB, over MongoDB's own storage engine, comes with the packages. FerretDB, over SQLite, is built by
`make go-tools` where there is Go. `TEST_MONGODB_URL` names another server to test against, e.g. a real mongod;
databases of the tests are dropped there.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from pymongo import MongoClient
from pymongo.errors import PyMongoError
from tools.go_tools import found

from tests.servers import free_port

FLAVOURS = ("mongodb", "ferretdb")
DATABASE = "apikeyrouter-tests"
START_SECONDS_MAX = 60.0


@contextlib.contextmanager
def mongo_running() -> Iterator[str]:
    """The URL of a server with an empty database; stopped at exit."""
    if url := os.environ.get("TEST_MONGODB_URL"):
        drop(url)
        yield url
        return
    port = free_port()
    program = str(Path(sys.executable).parent / "secantusd-py")
    command = [program, "--host", "127.0.0.1", "--port", str(port), "--storage-path", ":memory:", "--standalone"]
    with _running(command, port) as url:
        yield url


@contextlib.contextmanager
def ferretdb_running() -> Iterator[str]:
    """The same of a FerretDB 1 over SQLite; skips the test where none was built."""
    program = found("ferretdb")
    if program is None:
        pytest.skip("no FerretDB: `make go-tools` builds it where there is Go")
    port = free_port()
    command = [program, "--handler=sqlite", "--sqlite-url=file:./", "--state-dir=.", f"--listen-addr=127.0.0.1:{port}"]
    with _running([*command, "--debug-addr=-", "--telemetry=disable", "--log-level=warn"], port) as url:
        yield url


@contextlib.contextmanager
def _running(command: Sequence[str], port: int) -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="akr-mongo-", ignore_cleanup_errors=True) as folder:
        with (Path(folder) / "log").open("wb") as log:
            process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
        try:
            url = f"mongodb://127.0.0.1:{port}/?directConnection=true"
            _wait(url, process, Path(folder) / "log")
            yield url
        finally:
            process.terminate()
            process.wait()


def drop(url: str) -> None:
    """Empty the tests' database."""
    with MongoClient[dict[str, object]](url) as client:
        client.drop_database(DATABASE)


def _wait(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS_MAX
    with MongoClient[dict[str, object]](url, serverSelectionTimeoutMS=200) as client:
        while time.monotonic() < deadline and process.poll() is None:
            with contextlib.suppress(PyMongoError):
                client.admin.command("ping")
                return
    raise RuntimeError(f"the server did not start: {log.read_text()[-2000:]}")
