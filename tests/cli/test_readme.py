"""The README's examples run as they stand, against simulated providers."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from apikeyrouter.infrastructure.config.compile import compile_config
from apikeyrouter.infrastructure.config.config_file import parse_config
from tests.cli.processes import clean_environ, hear, running

REPOSITORY = Path(__file__).parents[2]
README = (REPOSITORY / "README.md").read_text("utf-8")
DEFAULT_ADDRESS = "http://127.0.0.1:8000"


def blocks(language: str) -> list[str]:
    """The README's fenced blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def titles(sources: list[str]) -> list[str]:
    """A name for each: its first line."""
    return [source.partition("\n")[0] for source in sources]


@pytest.fixture(scope="module")
def service_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A service from nothing, on a free port."""
    arguments = ["-m", "apikeyrouter.cli", "quickstart", "--port", "0", "--json"]
    with running(arguments, cwd=tmp_path_factory.mktemp("readme")) as process:
        yield hear(process, "listening")["url"]


@pytest.fixture(scope="module")
def provider_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Simulated providers on a free port."""
    arguments = ["-m", "apikeyrouter.cli", "simulate", "--port", "0"]
    with running(arguments, cwd=tmp_path_factory.mktemp("provider")) as process:
        assert process.stdout is not None
        yield process.stdout.readline().removeprefix("ready ").strip()


@pytest.mark.parametrize("source", blocks("python"), ids=titles(blocks("python")))
def test_python_examples_print_an_answer(source: str, service_url: str, provider_url: str, tmp_path: Path) -> None:
    environ = clean_environ(OPENAI_API_KEY="sk-sim-alpha-1", OPENAI_BASE_URL=f"{provider_url}/v1")
    told = subprocess.run(
        [sys.executable, "-c", source.replace(DEFAULT_ADDRESS, service_url)],
        cwd=tmp_path, env=environ, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    assert "Hello" in told.stdout


def test_the_curl_example_gets_an_answer(service_url: str) -> None:
    source = next(block for block in blocks("sh") if block.startswith("curl"))
    told = subprocess.run(
        ["/bin/sh", "-c", source.replace(DEFAULT_ADDRESS, service_url)],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert '"choices"' in told.stdout


def test_the_configuration_example_is_valid(tmp_path: Path) -> None:
    (source,) = blocks("yaml")
    secret = tmp_path / "anthropic"
    secret.write_text("sk-ant-of-the-readme")
    config = parse_config(source.replace("/run/secrets/anthropic", str(secret)))
    environ = {"OPENAI_KEY_1": "sk-1", "OPENAI_KEY_2": "sk-2", "APP1_TOKEN": "a-token-long-enough"}
    assert len(compile_config(config, environ=environ).keys) == 3


def test_every_file_that_the_readme_points_to_exists() -> None:
    linked = re.findall(r"\]\((?!https?:)([^)#]+)", README)
    assert [path for path in linked if not (REPOSITORY / path).exists()] == []
