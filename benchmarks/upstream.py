"""The upstream that costs nothing: nginx with a fixed answer; where there is no nginx, a small server of our own."""

import contextlib
import http.client
import shutil
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.servers import free_port

from benchmarks.payload import ANSWER, ANSWER_HEADERS, PATH
from benchmarks.processes import python_module, running_process

__all__ = ["Upstream", "running_streaming_upstream", "running_upstream"]

START_SECONDS_MAX = 10.0
_CONFIG = """
daemon off;
worker_processes 1;
pid {folder}/pid;
error_log {folder}/error.log;
events {{ worker_connections 1024; }}
http {{
  access_log off;
  keepalive_requests 1000000000;
  keepalive_timeout 3600s;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  server {{
    listen 127.0.0.1:{port} backlog=1024;
    client_max_body_size 8m;
    location {path} {{
      default_type application/json;
{headers}
      return 200 '{answer}';
    }}
    location = /requests {{ stub_status; }}
  }}
}}
"""


@dataclass(frozen=True, slots=True)
class Upstream:
    """A running upstream: which it is, and its base URL as a provider's configuration has it."""

    name: str
    port: int
    asked: list[int] = field(default_factory=list, compare=False, repr=False)

    @property
    def base_url(self) -> str:
        """Ends in /v1."""
        return f"http://127.0.0.1:{self.port}/v1"

    def requests(self) -> int | None:
        """How many requests it has had, this question not counted; None where nobody counts (the built-in one)."""
        if not self.name.startswith("nginx"):
            return None
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/requests", timeout=10) as answer:
            numbers = answer.read().split(b"requests")[1].split()
        self.asked.append(1)
        return int(numbers[2]) - len(self.asked)


@contextlib.contextmanager
def running_upstream() -> Iterator[Upstream]:
    """Whole answers: nginx where it is installed, else the built-in one; stopped at exit."""
    nginx = shutil.which("nginx")
    if nginx is None:
        with _running_builtin("whole") as upstream:
            yield upstream
        return
    with tempfile.TemporaryDirectory(prefix="akr-bench-", ignore_cleanup_errors=True) as name:
        folder, port = Path(name), free_port()
        config = folder / "nginx.conf"
        config.write_text(_nginx_config(folder, port))
        command = [nginx, "-p", name, "-e", f"{name}/error.log", "-c", str(config)]
        with running_process(command, stderr=subprocess.DEVNULL) as process:
            _wait(port, process)
            yield Upstream(f"nginx {_version(nginx)}", port)


@contextlib.contextmanager
def running_streaming_upstream() -> Iterator[Upstream]:
    """Streamed answers, event by event; always the built-in one, because nginx would send a whole stream at once."""
    with _running_builtin("stream") as upstream:
        yield upstream


@contextlib.contextmanager
def _running_builtin(kind: str) -> Iterator[Upstream]:
    port = free_port()
    command = python_module("benchmarks.builtin_upstream", "--port", str(port), "--kind", kind)
    with running_process(command) as process:
        _wait(port, process)
        yield Upstream("built-in asyncio server (nginx is not installed)" if kind == "whole" else "built-in", port)


def _nginx_config(folder: Path, port: int) -> str:
    headers = "\n".join(f"      add_header {name} '{value}';" for name, value in ANSWER_HEADERS)
    return _CONFIG.format(folder=folder, port=port, path=PATH, headers=headers, answer=ANSWER.decode())


def _version(nginx: str) -> str:
    told = subprocess.run([nginx, "-v"], capture_output=True, text=True, check=False, timeout=10).stderr
    return told.strip().rpartition("/")[2]


def _wait(port: int, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + START_SECONDS_MAX
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
            connection.request("POST", PATH, body=b"{}", headers={"content-type": "application/json"})
            if connection.getresponse().status == 200:
                connection.close()
                return
        time.sleep(0.02)
    raise RuntimeError("the upstream did not start")
