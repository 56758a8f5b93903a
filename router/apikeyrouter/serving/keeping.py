"""Keeping ends of reservations on disk while the ledger cannot be reached, and taking over those of dead processes."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

from apikeyrouter.infrastructure.ledger.outbox_file import Entry, OutboxFile, left_over
from apikeyrouter.infrastructure.observability.events import EventLog

SPILL_MAX = 1024
"""Ends that are written at once."""
_log = EventLog("apikeyrouter")


class Keeper:
    """The files of one process: its own, made when there is something to keep, and those it took over.

    `directory` None: nothing is kept on disk. `ledger` names the ledger that the files are of.
    """

    def __init__(self, directory: Path | None = None, ledger: str = "") -> None:
        self.directory, self.ledger = directory, ledger
        self._own: OutboxFile | None = None
        self.files: list[OutboxFile] = []
        """Those in which something waits to be delivered."""
        self._told = False

    def has(self, rid: bytes) -> bool:
        """Whether it is on disk, and not delivered."""
        return any(rid in file.pending for file in self.files)

    @property
    def kept(self) -> int:
        """How many are on disk and not delivered."""
        return sum(len(file.pending) for file in self.files)

    @property
    def keeps(self) -> bool:
        """Whether ends are kept on disk."""
        return self.directory is not None

    async def keep(self, entries: Sequence[Entry]) -> None:
        """Write what is not on disk yet, as far as there is room. Trouble with the disk is said once an outage."""
        if self.directory is None or not entries:
            return
        try:
            taken = await asyncio.to_thread(self._append, entries[:SPILL_MAX])
        except OSError as exc:
            self._trouble(str(exc))
            return
        if taken < min(len(entries), SPILL_MAX):
            self._trouble("the file is full")

    def _append(self, entries: Sequence[Entry]) -> int:
        assert self.directory is not None
        if self._own is None:
            self._own = OutboxFile.make(self.directory, self.ledger)
            self.files.append(self._own)
        return self._own.append(entries)

    def _trouble(self, why: str) -> None:
        if not self._told:
            self._told = True
            _log.error("outbox.not_kept", directory=str(self.directory), error=why)

    def delivered(self, rid: bytes) -> None:
        """The ledger has it."""
        for file in self.files:
            file.pending.discard(rid)

    async def clear(self) -> None:
        """Remove files in which everything was delivered."""
        done = [file for file in self.files if not file.pending]
        if not done:
            return
        self.files = [file for file in self.files if file.pending]
        for file in done:
            if file is self._own:
                self._own, self._told = None, False
            try:
                await asyncio.to_thread(file.remove)
            except OSError as exc:
                self._trouble(str(exc))

    async def take_over(self) -> list[Entry]:
        """What dead processes of this machine have left, for this one to deliver."""
        if self.directory is None:
            return []
        try:
            found = await asyncio.to_thread(lambda: list(left_over(self.directory, self.ledger)))  # type: ignore[arg-type]
        except OSError as exc:
            self._trouble(str(exc))
            return []
        entries: list[Entry] = []
        for file in found:
            _log.warning("outbox.taken_over", file=file.path.name, count=len(file.entries), broken=file.broken)
            entries += file.entries
            file.entries = []
            self.files.append(file)
        return entries

    def close(self) -> None:
        """Let go of the files; the next process takes over what is in them."""
        for file in self.files:
            file.close()
        self.files, self._own = [], None
