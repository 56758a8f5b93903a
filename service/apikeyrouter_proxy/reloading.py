"""Reading the configuration file again: asked of one worker, done by all that have it; or when a secret has changed."""

import asyncio
import contextlib
import hashlib
import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path

import structlog

from apikeyrouter.domain.interfaces.state_store import StateStore
from apikeyrouter.domain.models.system_error import ApiKeyRouterError
from apikeyrouter.infrastructure.cancellation import end_task
from apikeyrouter.infrastructure.config.compiled import CompiledConfig
from apikeyrouter.serving.changing import digest_of
from apikeyrouter_proxy.audit_log import Author

__all__ = ["KIND", "PROCESS", "Reloads"]

KIND = "config_reload"
SECRET_FILE, PROCESS = "a secret's file", "process"
"""Who had a file read again, where nobody asked for it; and the role of who has no admin key."""
LATEST = "latest"
LOOK_SECONDS = 1.0
"""How often the files that secrets come from are looked at."""
_log = structlog.get_logger("apikeyrouter")
Read = Callable[[], Awaitable[CompiledConfig]]
Take = Callable[[CompiledConfig], Awaitable[None]]
Note = Callable[[Author, CompiledConfig], Awaitable[None]]
"""Tells who had a file taken over, and what was in force before."""


class Reloads:
    """One worker's part. What a worker took over it announces; the others read their file again, unless theirs is the
    same already."""

    def __init__(self, store: StateStore, path: str | None, *, read: Read, take: Take, note: Note) -> None:
        self._store, self._path, self._read, self._take_over, self._note = store, path, read, take, note
        self._taken = CompiledConfig()
        self._turn = asyncio.Lock()
        self._digest = ""
        self._announced = ""
        self._files: frozenset[Path] = frozenset()
        self._seen: dict[Path, tuple[int, int]] = {}
        self._task: asyncio.Task[None] | None = None

    def took(self, compiled: CompiledConfig) -> None:
        """That file is in force here."""
        self._taken, self._files = compiled, compiled.files
        self._seen = _marks(self._files)
        self._digest = _digest_of(self._path, compiled.files)

    async def reload(self, author: Author) -> CompiledConfig:
        """Take the file over here, then tell the others. Errors: ConfigurationError; then nothing changed anywhere."""
        async with self._turn:
            before, compiled = self._taken, await self._take()
            await self._note(author, before)
            self._announced = secrets.token_hex(8)
            await self._store.save_document(KIND, LATEST, {"id": self._announced, "digest": self._digest})
            return compiled

    async def follow(self) -> None:
        """Somebody may have announced a reload."""
        told = await self._store.get_document(KIND, LATEST)
        async with self._turn:
            if told is None or told.get("id") == self._announced:
                return
            self._announced = str(told.get("id"))
            if not self._digest or told.get("digest") == self._digest:
                return
            await self._quietly()
            if self._digest != told.get("digest"):
                _log.warning("configuration.differs", reason="another worker has another configuration file")

    async def follow_file(self, digest: str) -> None:
        """Another file is in force than the one that was read here: the file as it is now, if it is that one."""
        async with self._turn:
            try:
                compiled = await self._read()
                if digest_of(compiled) == digest:
                    await self._take_over(compiled)
                    self.took(compiled)
            except ApiKeyRouterError as exc:  # whoever asks for this file is told; requests go on
                _log.error("configuration.refused", error=str(exc))

    def start(self) -> None:
        """Begin to look at the files that secrets come from."""
        self._task = asyncio.get_running_loop().create_task(self._look(), name="apikeyrouter.secret_files")

    async def close(self) -> None:
        """Stop."""
        await end_task(self._task)
        self._task = None

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            if self._files and _marks(self._files) != self._seen:
                async with self._turn:
                    before, self._seen = self._taken, _marks(self._files)  # what is wrong is complained about once
                    await self._quietly()
                    await self._note((SECRET_FILE, PROCESS), before)

    async def _take(self) -> CompiledConfig:
        compiled = await self._read()
        await self._take_over(compiled)
        self.took(compiled)
        return compiled

    async def _quietly(self) -> None:
        try:
            await self._take()
            _log.info("configuration.reloaded")
        except ApiKeyRouterError as exc:
            _log.error("configuration.refused", error=str(exc))


def _marks(files: frozenset[Path]) -> dict[Path, tuple[int, int]]:
    found: dict[Path, tuple[int, int]] = {}
    for file in files:
        with contextlib.suppress(OSError):
            told = file.stat()
            found[file] = (told.st_mtime_ns, told.st_size)
    return found


def _digest_of(path: str | None, files: frozenset[Path]) -> str:
    """Of a configuration file and the secrets it takes from files; "" where there is none."""
    if path is None:
        return ""
    digest = hashlib.sha256()
    for file in (Path(path), *sorted(files)):
        with contextlib.suppress(OSError):
            digest.update(file.read_bytes())
        digest.update(b"\0")
    return digest.hexdigest()
