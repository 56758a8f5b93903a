"""Every Python block of README and docs runs as it stands, against simulated providers; every file is valid.

Blocks with an address of the service, or with a loop of their own, are programs and run in a process of their own. The
others run one after the other, page by page, in a namespace that holds what the prose takes for granted.
"""

import ast
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

import apikeyrouter
from apikeyrouter import ApiKeyRouter, Message, RequestIntent
from apikeyrouter.domain import models
from apikeyrouter.infrastructure.adapters.openai_adapter import OpenAIAdapter
from apikeyrouter.infrastructure.config.compile import compile_config
from apikeyrouter.infrastructure.config.config_file import parse_config
from apikeyrouter.infrastructure.observability.events import EventLog
from apikeyrouter.simulator import SimulatorProcess
from tests.cli.processes import clean_environ, hear, running

REPOSITORY = Path(__file__).parents[2]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
SERVICE, PROVIDER = "http://127.0.0.1:8000", "http://127.0.0.1:9901"
MASTER_KEY = "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> list[str]:
    """A page's fenced blocks of a language, in order."""
    return [source for told, source in _BLOCK.findall(page.read_text("utf-8")) if told == language]


def is_program(source: str) -> bool:
    """Whether a block runs on its own."""
    return "asyncio.run(" in source or SERVICE in source


def name_of(page: Path) -> str:
    """A page's name."""
    return str(page.relative_to(REPOSITORY))


PROGRAMS = [(page, source) for page in PAGES for source in blocks(page, "python") if is_program(source)]
TALKS = [page for page in PAGES if any(not is_program(source) for source in blocks(page, "python"))]
FILES = [(page, source) for page in PAGES for source in blocks(page, "yaml")]


@pytest.fixture(scope="module")
def provider_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The simulated providers of the documents, on a free port."""
    arguments = ["-m", "apikeyrouter.cli", "simulate", "--port", "0"]
    with running(arguments, cwd=tmp_path_factory.mktemp("provider")) as process:
        assert process.stdout is not None
        yield process.stdout.readline().removeprefix("ready ").strip()


@pytest.fixture(scope="module")
def service_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A service from nothing, on a free port."""
    arguments = ["-m", "apikeyrouter.cli", "quickstart", "--port", "0", "--json"]
    with running(arguments, cwd=tmp_path_factory.mktemp("service")) as process:
        yield hear(process, "listening")["url"]


@pytest.mark.parametrize(("page", "source"), PROGRAMS, ids=[f"{name_of(page)}: {s[:30]!r}" for page, s in PROGRAMS])
def test_a_program_prints_an_answer(
    page: Path, source: str, service_url: str, provider_url: str, tmp_path: Path
) -> None:
    environ = clean_environ(OPENAI_API_KEY="sk-sim-alpha-1", OPENAI_BASE_URL=f"{provider_url}/v1")
    told = subprocess.run(
        [sys.executable, "-c", source.replace(SERVICE, service_url).replace(PROVIDER, provider_url)],
        cwd=tmp_path, env=environ, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    assert "Hello" in told.stdout


@pytest_asyncio.fixture
async def given(redis_url: str, provider_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[dict[str, Any]]:
    """What the prose around the blocks takes for granted: every public name, and things of which it speaks."""
    level = EventLog.level
    async with SimulatorProcess({"open": True}) as simulator:
        monkeypatch.setenv("OPENAI_BASE_URL", simulator.openai_url)
        monkeypatch.setenv("ANTHROPIC_BASE_URL", simulator.anthropic_url)
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", simulator.base_url("gemini"))
        async with ApiKeyRouter(config={"encryption_key": MASTER_KEY}) as router:
            await router.register_provider("openai", OpenAIAdapter())
            key = await router.register_key("sk-around-1", "openai")
            await router.register_key("sk-around-2", "openai")
            intent = RequestIntent(model="gpt-4o-mini", messages=[Message(role="user", content="Hello")])
            next_month = (datetime.now(UTC).replace(day=1) + timedelta(days=32)).replace(day=1)
            yield public_names() | {
                "__name__": "a_document", "asyncio": importlib.import_module("asyncio"), "router": router, "key": key,
                "key_id": key.id, "intent": intent, "answer": await router.route(intent), "redis_url": redis_url,
                "master_key": MASTER_KEY, "provider_url": simulator.openai_url, "OpenAIAdapter": OpenAIAdapter,
                "response": httpx.Response(200, headers={"x-ratelimit-remaining-requests": "10"}),
                "next_month_start": next_month.replace(hour=0, minute=0, second=0, microsecond=0),
            }  # fmt: skip
    EventLog.level = level


def public_names() -> dict[str, Any]:
    """What `apikeyrouter` and its models export."""
    modules = [apikeyrouter] + [
        importlib.import_module(f"{models.__name__}.{found.name}") for found in pkgutil.iter_modules(models.__path__)
    ]
    return {name: getattr(module, name) for module in modules for name in getattr(module, "__all__", ())}


@pytest.mark.parametrize("page", TALKS, ids=name_of)
async def test_the_blocks_of_a_page_run_one_after_the_other(
    page: Path, given: dict[str, Any], provider_url: str
) -> None:
    for source in blocks(page, "python"):
        if is_program(source):
            continue
        told = source.replace(PROVIDER, provider_url)
        code = compile(told, name_of(page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        running_code = eval(code, given)
        if inspect.iscoroutine(running_code):
            await running_code


@pytest.mark.parametrize(("page", "source"), FILES, ids=[f"{name_of(page)}: {s[:30]!r}" for page, s in FILES])
def test_a_configuration_is_valid(page: Path, source: str, tmp_path: Path) -> None:
    secret = tmp_path / "anthropic"
    secret.write_text("sk-ant-of-the-documents")
    config = parse_config(source.replace("/run/secrets/anthropic", str(secret)))
    names = re.findall(r"env:(\w+)", source)
    environ = {name: f"a-secret-long-enough-{number}" for number, name in enumerate(names)}
    compiled = compile_config(config, environ=environ)
    assert len(compiled.keys) == source.count('key: "')


def test_the_curl_example_gets_an_answer(service_url: str) -> None:
    source = next(block for block in blocks(REPOSITORY / "README.md", "sh") if block.startswith("curl"))
    told = subprocess.run(
        ["/bin/sh", "-c", source.replace(SERVICE, service_url)],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert '"choices"' in told.stdout


def test_the_index_leads_to_every_page() -> None:
    index = REPOSITORY / "docs" / "index.md"
    linked = {(index.parent / link).resolve() for link in re.findall(r"\]\(([^)#]+)", index.read_text("utf-8"))}
    pages = [page for page in PAGES[1:] if page != index and page.parent.name != "adr"]
    assert [name_of(page) for page in pages if page.resolve() not in linked] == []
