"""The demo, short: no limit is exceeded, the books agree, the providers do refuse, and nothing is left behind."""

import json
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from apikeyrouter.commands.demo import incident
from tests.cli.processes import clean_environ, command, invoke, running, wait_until

Told = subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> tuple[Told, Told]:
    """A demo with a worker that is killed, and one without, at the same time: most of a demo is waiting."""

    def play(*arguments: str) -> Told:
        return command("demo", *arguments, "--workers", "2", "--json", cwd=tmp_path_factory.mktemp("demo"))

    with ThreadPoolExecutor() as pool:
        killed = pool.submit(play, "--seconds", "5")
        whole = pool.submit(play, "--seconds", "3", "--no-kill")
        return killed.result(), whole.result()


def test_the_demo_exceeds_no_limit_and_its_books_agree(demos: tuple[Told, Told]) -> None:
    told, _ = demos
    assert told.stdout, told.stderr
    figures = json.loads(told.stdout)
    assert figures["over_limit"] == 0
    assert figures["books_agree"]
    assert figures["held_nanousd"] == 0
    assert figures["killed_worker"]
    assert figures["control_rejected"] > 0
    assert figures["admitted"] <= figures["capacity"] or figures["utilisation"] <= 1
    assert told.returncode == figures["exit_code"] == 0


def test_without_a_killed_worker_the_books_agree_to_the_nano_dollar(demos: tuple[Told, Told]) -> None:
    figures = json.loads(demos[1].stdout)
    assert figures["settled_nanousd"] == figures["billed_nanousd"] > 0
    assert figures["suspense_nanousd"] == 0
    assert figures["lost"] == 0


def test_an_interrupted_demo_stops_everything_that_it_started(tmp_path: Path) -> None:
    environ_tmp = tmp_path / "tmp"
    environ_tmp.mkdir()
    arguments = ["-m", "apikeyrouter.cli", "demo", "--seconds", "60", "--json"]
    with running(arguments, cwd=tmp_path, environ=clean_environ(TMPDIR=str(environ_tmp))) as process:
        wait_until(lambda: list(environ_tmp.glob("apikeyrouter-demo-*")))
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    wait_until(lambda: not list(environ_tmp.iterdir()))


@pytest.mark.parametrize(("arguments", "seconds"), [((), None), (("--seconds", "5"), 5.0)])
def test_a_bad_day_lasts_as_long_as_asked_for_or_until_it_is_ended(
    arguments: tuple[str, ...], seconds: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    def run(**how: object) -> int:
        asked.append(how["seconds"])
        return 0

    monkeypatch.setattr(incident, "run", run)
    assert invoke("demo", "--incident", *arguments, cwd=tmp_path, environ=clean_environ()).returncode == 0
    assert asked == [seconds]
