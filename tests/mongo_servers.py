"""A real server that speaks MongoDB's protocol: SecantusDB, over MongoDB's own storage engine, in a process of its own.

`TEST_MONGODB_URL` names another server to test against, e.g. a real mongod; databases of the tests are dropped there.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from pymongo import MongoClient
from pymongo.errors import PyMongoError

from tests.servers import free_port

DATABASE = "apikeyrouter-tests"
START_SECONDS_MAX = 60.0


@contextlib.contextmanager
def mongo_running() -> Iterator[str]:
    """The URL of a server with an empty database; stopped at exit."""
    if url := os.environ.get("TEST_MONGODB_URL"):
        drop(url)
        yield url
        return
    with tempfile.TemporaryDirectory(prefix="akr-mongo-", ignore_cleanup_errors=True) as folder:
        port = free_port()
        program = str(Path(sys.executable).parent / "secantusd-py")
        command = [program, "--host", "127.0.0.1", "--port", str(port), "--storage-path", ":memory:"]
        with (Path(folder) / "log").open("wb") as log:
            process = subprocess.Popen([*command, "--standalone"], cwd=folder, stdout=log, stderr=log)
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
