"""What these tests do with processes: start them, wait for what they say, and end only those, by their ids."""

import contextlib
import fcntl
import io
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

SECONDS_MAX = 60.0
CHAT = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hello"}]}
_OURS = ("APIKEYROUTER_", "PROXY_", "OPENAI_", "ANTHROPIC_", "REDIS_URL", "MANAGEMENT_API_", "MONGODB_")


def clean_environ(**more: str) -> dict[str, str]:
    """This process's environment without anything that configures the router, and `more`."""
    return {name: value for name, value in os.environ.items() if not name.startswith(_OURS)} | more


def _hear_interrupts() -> None:
    """What a shell starts in the background ignores SIGINT, and so do its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextlib.contextmanager
def running(
    arguments: Sequence[str], *, cwd: Path, environ: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """A Python process with these arguments; told to end at exit if it still runs, and killed if it does not."""
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=cwd,
        env=dict(environ or clean_environ()),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=_hear_interrupts,
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(SECONDS_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


def command(
    *arguments: str, cwd: Path, environ: Mapping[str, str] | None = None, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run the `apikeyrouter` command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "apikeyrouter.cli", *arguments],
        cwd=cwd, env=dict(environ or clean_environ()), input=stdin, capture_output=True, text=True, check=False,
        timeout=180,
    )  # fmt: skip


def invoke(*arguments: str, cwd: Path, environ: Mapping[str, str], stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run the `apikeyrouter` command to its end, in this process: what takes a second otherwise is its imports."""
    from apikeyrouter.cli import main

    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.chdir(cwd)
        patch.setattr(os, "environ", dict(environ))
        patch.setattr(sys, "argv", ["apikeyrouter", *arguments])
        patch.setattr(sys, "stdin", io.StringIO(stdin))
        with pytest.raises(SystemExit) as left:
            main()
    code = left.value.code
    return subprocess.CompletedProcess(arguments, code if isinstance(code, int) else 0, out.getvalue(), err.getvalue())


def on_terminal(*arguments: str, cwd: Path, environ: Mapping[str, str], width: int) -> str:
    """What the `apikeyrouter` command shows on a terminal so many characters wide."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, width, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "apikeyrouter.cli", *arguments],
        cwd=cwd, env={**environ, "TERM": "xterm-256color"}, stdin=theirs, stdout=theirs, stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # how a terminal tells that nobody writes to it any more
        while part := os.read(ours, 65536):
            shown += part
    os.close(ours)
    assert process.wait(SECONDS_MAX) == 0, shown
    return shown.decode().replace("\r\n", "\n")


def hear(process: subprocess.Popen[str], event: str) -> dict[str, Any]:
    """The next JSON line with this event on its standard output; other lines are dropped."""
    while True:
        line = next_line(process)
        with contextlib.suppress(ValueError):
            told: dict[str, Any] = json.loads(line)
            if told.get("event") == event:
                return told


def next_line(process: subprocess.Popen[str]) -> str:
    """The next line of its standard output, at most a minute from now."""
    assert process.stdout is not None
    assert select.select([process.stdout], [], [], SECONDS_MAX)[0], "nothing was said for a minute"
    line = process.stdout.readline()
    assert line, f"the process ended with {process.wait()} and said nothing more"
    return line


def wait_until(condition: Callable[[], object]) -> None:
    """Return when the condition holds; fail after a minute."""
    deadline = time.monotonic() + SECONDS_MAX
    while not condition():
        assert time.monotonic() < deadline, "it never became true"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    """Whether a process (not one that has ended and waits to be noticed) has this id."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return not Path("/proc/self").exists()


def ask(url: str, body: Mapping[str, Any] = CHAT, *, path: str = "/v1/chat/completions") -> httpx.Response:
    """One request on a connection of its own."""
    return httpx.post(url + path, json=dict(body), timeout=SECONDS_MAX)
