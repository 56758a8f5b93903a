"""The process that stands over an embedded Valkey: starts it, starts it again, and ends it when nobody uses it.

`embedded_valkey.py` runs this file as a program of its own (`python -I -S`: standard library only, 10 MB). It leaves
the session of the worker that started it, so that the death of that worker, of whatever kind, concerns nobody else.

Users hold a shared lock on one file. The kernel drops a dead process's lock, `kill -9` included, so the guard needs no
list of users and no heartbeat: it asks for the exclusive lock, and gets it when the last one has gone. Should the
guard itself be killed, the server gets SIGTERM from the kernel (Linux) and ends in order; the next worker starts both.

Signals: SIGTERM and SIGINT mean "end as soon as nobody uses it", without the wait for late comers.
"""

import argparse
import ctypes
import fcntl
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

GUARD_LOCK = "guard.lock"
USERS_LOCK = "users.lock"
PID_FILE = "guard.pid"
LOG_FILE = "valkey.log"
READY_LINE = b"ready\n"

LOG_BYTES_MAX = 1_000_000
LOOK_SECONDS = 0.25
LOCK_ATTEMPTS_MAX = 50
LINGER_SECONDS = 3.0
"""Between the last user's end and the server's: a reload, or a restart of all workers at once, finds it running."""
RESTART_SECONDS_MIN = 0.1
RESTART_SECONDS_MAX = 5.0
READY_SECONDS_MAX = 120.0
"""Loading a large append-only file takes a while."""
STOP_SECONDS_MAX = 30.0
_PR_SET_PDEATHSIG = 1


def main(argv: Sequence[str] | None = None) -> int:
    """Detach, start the server, tell so on standard output (`ready`, or an error line), and stand over it."""
    options = _parse(argv)
    if os.fork():
        os._exit(0)
    lock = _guard_lock(options.directory)
    if lock is None:
        return 1  # another guard stands here already
    guard = _Guard(options, lock)
    try:
        return guard.run()
    finally:
        guard.clean_up()


def _guard_lock(directory: Path) -> BinaryIO | None:
    """This guard's lock. A look at it by somebody else takes it for a moment, so one refusal means nothing."""
    for _ in range(LOCK_ATTEMPTS_MAX):
        if (lock := try_lock(directory / GUARD_LOCK, fcntl.LOCK_EX)) is not None:
            return lock
        time.sleep(0.01)
    return None


def try_lock(path: Path, kind: int, *, create: bool = True) -> BinaryIO | None:
    """A file that holds the lock (LOCK_SH or LOCK_EX) until it is closed, or None when another has it.

    Errors: FileNotFoundError with `create` False. A look must not make files in a directory that is being removed.
    """
    file = path.open("ab" if create else "rb")
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    except BaseException:
        file.close()
        raise
    return file


def answers(path: Path, *, seconds_max: float = 1.0) -> bool:
    """Whether a server at this unix socket answers PING; false while it is still loading."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(seconds_max)
        try:
            connection.connect(os.fspath(path))
            connection.sendall(b"PING\r\n")
            return connection.recv(64).startswith(b"+PONG")
        except OSError:
            return False


class _Guard:
    def __init__(self, options: argparse.Namespace, lock: BinaryIO) -> None:
        self._options = options
        self._lock = lock
        self._directory: Path = options.directory
        self._leaving = False
        self._unused_since: float | None = None
        self._wakeup, wakeup_end = socket.socketpair()
        wakeup_end.setblocking(False)
        self._wakeup.setblocking(False)
        self._wakeup_end = wakeup_end
        self._exclusive: BinaryIO | None = None

    def run(self) -> int:
        """Start, stand, stop. The exit code."""
        self._listen_to_signals()
        (self._directory / PID_FILE).write_text(f"{os.getpid()}\n")
        process = self._start()
        if not self._wait_until_ready(process):
            self._stop(process)
            return self._say(f"error the embedded Valkey did not start; {self._directory / LOG_FILE} says why\n", 1)
        self._say(READY_LINE.decode(), 0)
        self._leave_the_callers_output()
        self._stand(process)
        return 0

    def clean_up(self) -> None:
        """Leave nothing behind: the socket and the pid file, or the whole directory of an ephemeral server."""
        self._options.socket.unlink(missing_ok=True)
        if self._options.socket.parent != self._directory:
            with suppress(OSError):
                self._options.socket.parent.rmdir()
        (self._directory / PID_FILE).unlink(missing_ok=True)
        if self._options.ephemeral:
            shutil.rmtree(self._directory, ignore_errors=True)

    def _stand(self, process: subprocess.Popen[bytes]) -> None:
        pause_seconds = RESTART_SECONDS_MIN
        while not self._is_unused():
            self._rest(LOOK_SECONDS)
            if process.poll() is None:
                continue
            # Also when we are to leave: whoever signals every process at once still wants his settlements booked.
            self._rest(pause_seconds)
            pause_seconds = min(pause_seconds * 2, RESTART_SECONDS_MAX)
            process = self._start()
            if self._wait_until_ready(process):
                pause_seconds = RESTART_SECONDS_MIN
        self._stop(process)

    def _is_unused(self) -> bool:
        """True once nobody has held the users' lock for the linger; from then on this process holds it."""
        lock = try_lock(self._directory / USERS_LOCK, fcntl.LOCK_EX)
        if lock is None:
            self._unused_since = None
            return False
        now = time.monotonic()
        self._unused_since = self._unused_since or now
        if self._leaving or now - self._unused_since >= self._options.linger:
            self._exclusive = lock
            return True
        lock.close()
        return False

    def _start(self) -> subprocess.Popen[bytes]:
        self._options.socket.parent.mkdir(mode=0o700, exist_ok=True)
        self._options.socket.unlink(missing_ok=True)
        with self._open_log() as log:
            return subprocess.Popen(  # noqa: S603  (the server program that the caller found)
                [self._options.program, *self._arguments()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )

    def _arguments(self) -> list[str]:
        data = self._directory / "valkey"
        data.mkdir(mode=0o700, exist_ok=True)
        persistence = "no" if self._options.ephemeral else "yes"
        return [
            *("--port", "0", "--unixsocket", str(self._options.socket), "--unixsocketperm", "700"),
            *("--dir", str(data), "--save", "", "--appendonly", persistence, "--appendfsync", "everysec"),
            *("--maxmemory-policy", "noeviction", "--daemonize", "no", "--databases", "1"),
        ]

    def _open_log(self) -> BinaryIO:
        path = self._directory / LOG_FILE
        too_long = path.exists() and path.stat().st_size > LOG_BYTES_MAX
        return path.open("wb" if too_long else "ab")

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> bool:
        deadline = time.monotonic() + READY_SECONDS_MAX
        while process.poll() is None and time.monotonic() < deadline:
            if answers(self._options.socket):
                return True
            self._rest(0.02)
        return False

    def _stop(self, process: subprocess.Popen[bytes]) -> None:
        """In order: SIGTERM makes the server write and sync what it has."""
        process.terminate()
        try:
            process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _listen_to_signals(self) -> None:
        signal.set_wakeup_fd(self._wakeup_end.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, self._on_leave)
        signal.signal(signal.SIGINT, self._on_leave)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def _on_leave(self, *_: object) -> None:
        self._leaving = True

    def _rest(self, seconds: float) -> None:
        """Until a signal comes, at most that long."""
        readable, _, _ = select.select([self._wakeup], [], [], seconds)
        if readable:
            with suppress(BlockingIOError):
                self._wakeup.recv(4096)

    def _say(self, line: str, code: int) -> int:
        with suppress(OSError):  # the caller may be gone
            os.write(1, line.encode())
        return code

    def _leave_the_callers_output(self) -> None:
        with self._open_log() as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)


def _end_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="stand over an embedded Valkey")
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--socket", type=Path, required=True)
    parser.add_argument("--program", required=True)
    parser.add_argument("--ephemeral", action="store_true")
    parser.add_argument("--linger", type=float, default=LINGER_SECONDS)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
