"""The tutorial and the how-tos, as a newcomer goes through them: typed at a prompt, after what they say to do first."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.processes import clean_environ, running
from tests.docs.test_documents import PROVIDER, REPOSITORY, blocks, is_program

FIRST = REPOSITORY / "docs" / "how-to" / "prompt.md"
TUTORIAL = REPOSITORY / "docs" / "tutorial.md"
HOW_TOS = sorted(page for page in FIRST.parent.glob("*.md") if page != FIRST)
REDIS = "redis://127.0.0.1:6390/0"
SECONDS_MAX = 120


@pytest.fixture
def providers(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Simulated providers as the page starts them, but for the port."""
    (tmp_path / "providers.json").write_text('{"open": true}')
    told = ["-m", "apikeyrouter.cli", "simulate", "--port", "0"]
    with running([*told, *getattr(request, "param", [])], cwd=tmp_path) as process:
        assert process.stdout is not None
        yield process.stdout.readline().removeprefix("ready ").strip()


def typed(source: str, directory: Path, environ: dict[str, str]) -> tuple[str, str]:
    """What `python -m asyncio` writes to its standard output and error when somebody types this."""
    told = subprocess.run(
        [sys.executable, "-m", "asyncio"], cwd=directory, env=environ, input=source, capture_output=True, text=True,
        check=False, timeout=SECONDS_MAX,
    )  # fmt: skip
    return told.stdout, told.stderr


def lines(page: Path) -> str:
    """What of a page is for the prompt. A block that is entered is ended by an empty line."""
    return "\n".join(source + "\n" for source in blocks(page, "python") if not is_program(source))


@pytest.mark.parametrize("page", HOW_TOS, ids=lambda page: str(page.stem))
@pytest.mark.parametrize("providers", [["--config", "providers.json"]], indirect=True, ids=["open"])
def test_a_how_to_can_be_typed_at_the_prompt_that_it_asks_for(
    page: Path, providers: str, redis_url: str, tmp_path: Path
) -> None:
    exports = dict(re.findall(r"(\w+)=(\S+)", "\n".join(re.findall(r"^export (.*)$", FIRST.read_text(), re.M))))
    assert set(exports) >= {"OPENAI_BASE_URL", "ANTHROPIC_BASE_URL", "GOOGLE_GEMINI_BASE_URL"}
    environ = clean_environ(**{name: value.replace(PROVIDER, providers) for name, value in exports.items()})
    source = (lines(FIRST) + "\n" + lines(page) + "\nprint('the', 'end')\n").replace(REDIS, redis_url)
    told, errors = typed(source, tmp_path, environ)
    assert "Error" not in errors, errors
    assert "the end" in told


def test_the_tutorial_can_be_typed_as_it_stands(providers: str, tmp_path: Path) -> None:
    source = lines(TUTORIAL).replace(PROVIDER, providers) + "\nprint('the', 'end')\n"
    told, errors = typed(source, tmp_path, clean_environ())
    assert "Error" not in errors, errors
    assert "the end" in told
    assert "come back in" in told, "the limit is seen"
    assert "spent and" in told
    assert "-> invalid" in told


@pytest.mark.parametrize("page", HOW_TOS, ids=lambda page: str(page.stem))
def test_a_how_to_says_where_it_is_typed(page: Path) -> None:
    assert "(prompt.md)" in page.read_text()
