"""Ends of reservations that could not be delivered, on disk: one file a process, read by the next one if it dies.

Each line is a checksum and a JSON object. A line that is broken (the last one of a process that was killed, say) is
passed over, and the others count. A living process holds a lock on its file; one without a lock is left over.
"""

import contextlib
import fcntl
import os
import secrets
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Literal

import msgspec
from msgspec import structs

from apikeyrouter.domain.models.accounting import ReserveRequest, Settlement

BYTES_MAX = 64 * 1024 * 1024
"""A file takes no more; what does not go in stays in memory."""
FILES_MAX = 1024
_SUFFIX = ".outbox"


class Entry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How one reservation ended. `unheld`: the ledger has never heard of it. `request`: of the candidate that was held,
    alone; `sent`, `failed_lanes`, `latency_us` are of releases.
    """

    kind: Literal["settle", "release", "cancel"]
    rid: bytes
    settlement: Settlement | None = None
    sent: bool = False
    failed_lanes: int = 0
    latency_us: int = 0
    request: ReserveRequest | None = None
    unheld: bool = False
    at: int = 0
    """When its lease was last renewed or so, in seconds since 1970."""


class _Head(msgspec.Struct, frozen=True, kw_only=True):
    """Whose ledger the file is of."""

    ledger: str


class OutboxFile:
    """One file. Its methods block; call them in a thread. `pending`: reservations in it that were not delivered yet."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self._file = path, file
        self.pending: set[bytes] = set()
        self.entries: list[Entry] = []
        """What a dead process had left in it."""
        self.broken = 0
        """Lines that could not be read."""

    @classmethod
    def make(cls, directory: Path, ledger: str) -> "OutboxFile":
        """A new file of this process. Errors: OSError."""
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = directory / f"{os.getpid()}-{secrets.token_hex(4)}{_SUFFIX}"
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        made = cls(path, os.fdopen(handle, "r+b", buffering=0))
        fcntl.flock(handle, fcntl.LOCK_EX)
        made._write([_line(_Head(ledger=ledger))])
        return made

    def append(self, entries: Sequence[Entry]) -> int:
        """Keep these, safe from a crash of process and machine when it returns; how many there was room for.

        Errors: OSError.
        """
        room = BYTES_MAX - self._file.seek(0, os.SEEK_END)
        lines: list[bytes] = []
        for entry in entries:
            lines.append(_line(entry))
            room -= len(lines[-1])
            if room < 0:
                lines.pop()
                break
        self._write(lines)
        taken = len(lines)
        self.pending.update(entry.rid for entry in entries[:taken])
        return taken

    def _write(self, lines: Sequence[bytes]) -> None:
        if lines:
            self._file.write(b"".join(lines))
            os.fsync(self._file.fileno())

    def remove(self) -> None:
        """Everything in it was delivered. Errors: OSError."""
        self.path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Let go of it; what is in it is left over."""
        self._file.close()


def left_over(directory: Path, ledger: str | None = None, *, tidy: bool = True) -> Iterator[OutboxFile]:
    """Files that dead processes left, of this ledger (None: of any), locked and read; an empty one is removed (`tidy`)
    or passed over.

    Whoever takes one removes or closes it.
    """
    for path in sorted(directory.glob(f"*{_SUFFIX}"))[:FILES_MAX]:
        with contextlib.suppress(OSError):  # another process has it, or has just removed it
            file = path.open("r+b", buffering=0)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                file.close()
                continue
            found = OutboxFile(path, file)
            whose = _read(found)
            if not found.entries and not found.broken:
                found.remove() if tidy else found.close()
            elif path.exists() and (ledger is None or whose == ledger):
                yield found
            else:
                found.close()


def outbox_summary(directory: Path, ledger: str | None = None) -> tuple[int, int, float]:
    """Files that dead processes left, ends in them, and when the oldest was written last (Unix seconds; 0: none).
    `ledger`: only those of this one. Nothing is written or removed."""
    files, ends, oldest = 0, 0, 0.0
    for found in left_over(directory, ledger, tidy=False):
        at = found.path.stat().st_mtime
        files, ends, oldest = files + 1, ends + len(found.entries), min(oldest or at, at)
        found.close()
    return files, ends, oldest


def _read(found: OutboxFile) -> str:
    """Take in what can be read; whose ledger it is of."""
    found._file.seek(0)
    whose = ""
    for number, line in enumerate(found._file.read().split(b"\n")):
        if not line:
            continue
        sum_, _, told = line.partition(b" ")
        if sum_ != _sum(told):
            found.broken += 1
            continue
        try:
            if number == 0:
                whose = msgspec.json.decode(told, type=_Head).ledger
            else:
                found.entries.append(_entry(told))
        except msgspec.DecodeError:
            found.broken += 1
    found.pending = {entry.rid for entry in found.entries}
    return whose


def _entry(told: bytes) -> Entry:
    entry = msgspec.json.decode(told, type=Entry)
    if entry.request is None:
        return entry
    request = structs.replace(entry.request, candidates=tuple(entry.request.candidates))
    return structs.replace(entry, request=request)


def _line(told: Entry | _Head) -> bytes:
    text = msgspec.json.encode(told)
    return b"%b %b\n" % (_sum(text), text)


def _sum(text: bytes) -> bytes:
    return b"%08x" % zlib.crc32(text)
