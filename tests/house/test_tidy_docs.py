"""Documents and settings: what is written down is there, and says nothing about the machine it was written on."""

import re

import pytest

from apikeyrouter.infrastructure.config.settings import _LIBRARY_ONLY, RouterSettings, ServiceSettings
from tests.house.tree import ROOT, read, tracked

TEXT = [name for name in tracked() if not name.endswith((".json", ".png", ".gif", ".ico"))]
MARKDOWN = [name for name in TEXT if name.endswith(".md")]
MACHINE = re.compile(r"(?<![\w.])/(?:work|root|home/\w+|Users/\w+)/")
REGISTRY = re.compile(
    r"py" + r"pi\.org|python" + r"hosted\.org|artifac" + r"tory|/simple/?\"|--index" + r"-url", re.IGNORECASE
)
_DOCUMENT = re.compile(r"(?<![\w/.<-])([\w./-]*\w\.md)\b")
_LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#\s]+)")
_SETTING = re.compile(r"^#?([A-Z][A-Z0-9_]+)=(.*)$", re.MULTILINE)
CITED_ELSEWHERE = {"providers.md", "accounting.md", "contract.md", "design.md", "RESULTS.md"}
"""Documents that comments cite and that are not in the repository yet. The list only ever gets shorter."""


@pytest.mark.parametrize("name", TEXT)
def test_nothing_names_a_machine_or_a_registry(name: str) -> None:
    text = read(name)
    assert MACHINE.findall(text) == []
    assert REGISTRY.findall(text) == []


@pytest.mark.parametrize("name", MARKDOWN)
def test_links_between_documents_lead_somewhere(name: str) -> None:
    assert [link for link in _LINK.findall(read(name)) if not (ROOT / name).parent.joinpath(link).exists()] == []


def test_documents_that_code_cites_are_in_the_tree() -> None:
    present = {name.rpartition("/")[2] for name in MARKDOWN}
    cited = {
        document.rpartition("/")[2]
        for name in TEXT
        if name.endswith((".py", ".lua", ".toml", ".md")) and not name.startswith("tests/house/")
        for document in _DOCUMENT.findall(read(name))
    }
    assert cited - present <= CITED_ELSEWHERE


def test_the_example_environment_lists_every_setting_with_its_default() -> None:
    listed = dict(_SETTING.findall(read(".env.example")))
    wanted = {f"APIKEYROUTER_{name.upper()}": field.default for name, field in RouterSettings.model_fields.items()}
    wanted |= {f"APIKEYROUTER_{name.upper()}": None for name in _LIBRARY_ONLY}
    missing = [name for name in wanted if name not in listed]
    for name, field in ServiceSettings.model_fields.items():
        bare, prefixed = name.upper(), f"APIKEYROUTER_{name.upper()}"
        if bare not in listed and prefixed not in listed:
            missing.append(bare)
            continue
        wanted[bare if bare in listed else prefixed] = field.default
    assert missing == []
    stale = {
        name: listed[name]
        for name, default in wanted.items()
        if default is not None and listed[name] != (str(default).lower() if isinstance(default, bool) else str(default))
    }
    assert stale == {}


def test_every_variable_of_the_service_is_in_the_example() -> None:
    listed = dict(_SETTING.findall(read(".env.example")))
    read_by_code = set(re.findall(r'"(PROXY_[A-Z_]+)"', read("service/apikeyrouter_proxy/options.py")))
    assert sorted(read_by_code - listed.keys()) == []


def test_decisions_are_pages_of_one_screen() -> None:
    pages = [name for name in MARKDOWN if name.startswith("docs/adr/")]
    assert {name: len(read(name).splitlines()) for name in pages if len(read(name).splitlines()) > 60} == {}
    assert [name for name in pages if not read(name).startswith("# ")] == []
