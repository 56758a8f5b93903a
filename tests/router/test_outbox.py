"""Ends that cannot be delivered are kept on disk, outlive the process, and are booked exactly once."""

import asyncio
import json
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from apikeyrouter.domain.models.accounting import Candidate, ReserveRequest, Settlement
from apikeyrouter.infrastructure.ledger import outbox_file
from apikeyrouter.infrastructure.ledger.outbox_file import Entry, OutboxFile, left_over, outbox_summary
from apikeyrouter.infrastructure.state_store.redis_store import RedisStateStore
from apikeyrouter.router import ApiKeyRouter
from apikeyrouter.simulator import SimulatorProcess
from tests.router.faulty import ALWAYS, faults_in
from tests.router.house import MASTER_KEY, SCOPE, House, config_of, house, intent, until

pytestmark = pytest.mark.asyncio(loop_scope="package")
LEDGER = "ns at redis://somewhere"


def entry(number: int = 1) -> Entry:
    """The end of a reservation."""
    rid = bytes([number]) * 16
    request = ReserveRequest(rid=rid, candidates=(Candidate(lanes=("lane",)),), scopes=("all",))
    settled = Settlement(rid=rid, input_tokens=1, output_tokens=2, cost_nanousd=3)
    return Entry(kind="settle", rid=rid, settlement=settled, request=request, at=7)


def kept(directory: Path, *entries: Entry) -> Path:
    """A file that a dead process left."""
    file = OutboxFile.make(directory, LEDGER)
    assert file.append(entries) == len(entries)
    file.close()
    return file.path


def read(directory: Path, ledger: str | None = LEDGER) -> tuple[list[Entry], int]:
    """What is left over there, and how many lines are broken."""
    entries: list[Entry] = []
    broken = 0
    for found in left_over(directory, ledger):
        entries += found.entries
        broken += found.broken
        found.close()
    return entries, broken


async def test_what_is_kept_is_read_again(tmp_path: Path) -> None:
    cancel = Entry(kind="cancel", rid=b"c" * 16)
    release = Entry(kind="release", rid=b"r" * 16, sent=True, failed_lanes=2, latency_us=5, request=entry().request)
    path = kept(tmp_path / "made" / "here", entry(), cancel, release)
    assert read(path.parent) == ([entry(), cancel, release], 0)
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert outbox_summary(path.parent) == (1, 3, path.stat().st_mtime)


async def test_who_only_looks_removes_nothing(tmp_path: Path) -> None:
    empty = kept(tmp_path)
    assert outbox_summary(tmp_path) == (0, 0, 0.0)
    assert empty.exists()
    assert read(tmp_path) == ([], 0)
    assert not empty.exists()


@pytest.mark.parametrize("cut", [1, 10, 60])
async def test_a_torn_tail_loses_only_itself(tmp_path: Path, cut: int) -> None:
    path = kept(tmp_path, entry(1), entry(2), entry(3))
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - cut)
    assert read(tmp_path) == ([entry(1), entry(2), *([entry(3)] if cut == 1 else [])], int(cut > 1))


async def test_a_broken_line_in_the_middle_loses_only_itself(tmp_path: Path) -> None:
    path = kept(tmp_path, entry(1), entry(2), entry(3))
    lines = path.read_bytes().split(b"\n")
    lines[2] = lines[2].replace(b"3", b"4")
    path.write_bytes(b"\n".join(lines))
    assert read(tmp_path) == ([entry(1), entry(3)], 1)


async def test_the_file_of_a_living_process_or_of_another_ledger_is_left_alone(tmp_path: Path) -> None:
    living = OutboxFile.make(tmp_path, LEDGER)
    living.append([entry()])
    assert read(tmp_path) == ([], 0)
    living.close()
    assert read(tmp_path, "another at redis://somewhere") == ([], 0)
    assert read(tmp_path) == ([entry()], 0)


async def test_a_file_takes_no_more_than_it_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox_file, "BYTES_MAX", 1000)
    file = OutboxFile.make(tmp_path, LEDGER)
    taken = file.append([entry(number) for number in range(1, 9)])
    assert 0 < taken < 8
    assert file.path.stat().st_size <= 1000
    assert file.pending == {bytes([number]) * 16 for number in range(1, taken + 1)}
    file.close()


def files_in(directory: Path) -> list[Path]:
    """What is there."""
    return list(directory.iterdir())


# --- routers ---------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def keeping(simulator: SimulatorProcess, redis_url: str, directory: Path) -> AsyncIterator[House]:
    """A router that keeps ends on disk."""
    async with house(
        simulator, RedisStateStore(redis_url), ["a1", "b1"], settings={"outbox_dir": str(directory)}
    ) as made:
        yield made


async def served_while_away(made: House, count: int) -> None:
    """Requests that are answered, and whose settlements reach the disk and no further."""
    faults_in(made.router).unreachable["settle"] = ALWAYS
    await asyncio.gather(*(made.route(f"number {n}") for n in range(count)))
    await until(lambda: made.router.books.keeper.kept == count)


async def test_what_a_closed_router_could_not_deliver_the_next_one_books_once(
    simulator: SimulatorProcess, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("apikeyrouter.serving.life.FLUSH_SECONDS_AT_CLOSE", 0.1)
    async with keeping(simulator, redis_url, tmp_path) as made:
        await served_while_away(made, 6)
    (path,) = files_in(tmp_path)
    copied = shutil.copy(path, tmp_path / "copy.txt")
    async with keeping(simulator, redis_url, tmp_path) as made:
        assert await made.at_rest() == await made.billed() > 0
        assert made.router.books.settled == 6
        await until(lambda: path not in files_in(tmp_path))
    shutil.move(copied, tmp_path / "again.outbox")  # as if the process had died before it removed the file
    async with keeping(simulator, redis_url, tmp_path) as made:
        await until(lambda: files_in(tmp_path) == [])
        assert await made.at_rest() == await made.billed()
        assert made.router.books.unmatched == 0


async def test_when_the_store_is_back_the_file_goes(
    simulator: SimulatorProcess, redis_url: str, tmp_path: Path
) -> None:
    async with keeping(simulator, redis_url, tmp_path) as made:
        await served_while_away(made, 4)
        assert len(files_in(tmp_path)) == 1
        made.router.ledger.engine.unreachable["settle"] = 0  # type: ignore[attr-defined]
        assert await made.at_rest() == await made.billed()
        await until(lambda: not files_in(tmp_path))


async def test_without_room_on_disk_ends_stay_in_memory_and_are_booked(
    simulator: SimulatorProcess, redis_url: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("no directory")
    async with keeping(simulator, redis_url, tmp_path / "file") as made:
        faults = faults_in(made.router)
        faults.unreachable["settle"] = ALWAYS
        await asyncio.gather(*(made.route() for _ in range(3)))
        calls = faults.calls["settle"]
        await until(lambda: faults.calls["settle"] > calls + 2)
        faults.unreachable["settle"] = 0
        assert await made.at_rest() == await made.billed()


async def test_what_is_older_than_any_tombstone_is_listed_and_not_booked(
    simulator: SimulatorProcess, redis_url: str, tmp_path: Path
) -> None:
    async with keeping(simulator, redis_url, tmp_path) as made:
        ledger = f"{RedisStateStore(redis_url).namespace} at {redis_url}"
        old = entry()
        request = ReserveRequest(rid=old.rid, candidates=(Candidate(lanes=("k:a1",)),), scopes=(SCOPE,))
        file = OutboxFile.make(tmp_path, ledger)
        file.append([Entry(kind="settle", rid=old.rid, settlement=old.settlement, request=request, at=1)])
        file.close()
        assert await made.router.books.take_over() == 1
        assert await made.at_rest() == 0
        assert made.router.books.unmatched == 0
        await until(lambda: not files_in(tmp_path))


async def test_a_worker_killed_with_its_store_away_loses_no_settlement(
    simulator: SimulatorProcess, redis_url: str, tmp_path: Path
) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.router.test_outbox", redis_url, simulator.openai_url, simulator.anthropic_url,
        str(tmp_path), stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    while not (line := await process.stdout.readline()).startswith(b"{"):
        assert line, "the worker ended before it was killed"
    os.kill(process.pid, signal.SIGKILL)
    await process.wait()
    assert json.loads(line) == {"kept": 9}
    async with keeping(simulator, redis_url, tmp_path) as made:
        assert await made.at_rest() == await made.billed() > 0
        assert made.router.books.settled == 9


async def _work(redis_url: str, openai_url: str, anthropic_url: str, directory: str) -> None:
    """Serve nine requests whose ends reach the disk only, say so, and be killed."""

    class Urls:
        pass

    urls = Urls()
    urls.openai_url, urls.anthropic_url = openai_url, anthropic_url  # type: ignore[attr-defined]
    settings = {"encryption_key": MASTER_KEY, "outbox_dir": directory}
    async with ApiKeyRouter(state_store=RedisStateStore(redis_url), config=settings) as router:
        await router.apply(config_of(urls, ["a1", "b1"]))  # type: ignore[arg-type]
        faults_in(router).unreachable["settle"] = ALWAYS
        await asyncio.gather(*(router.route(intent()) for _ in range(9)))
        await until(lambda: router.books.keeper.kept == 9)
        print(json.dumps({"kept": 9}), flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_work(*sys.argv[1:]))
