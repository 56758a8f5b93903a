"""What style asks of the Python tree beyond what ruff, mypy and the import contracts check."""

import ast
import re
from collections.abc import Iterator

import pytest

from tests.house.tree import CODE, functions, python_files, read

FUNCTION_LINES_MAX = 60
FILE_LINES_MAX = 500
LONG_FUNCTIONS: set[str] = set()
"""Functions that may be longer. The list only ever gets shorter."""
LONG_FILES = {"tests/ledger/oracle.py", "tests/ledger/test_state_machine.py"}
"""Files that may be longer. The list only ever gets shorter."""
CORE = ("router/apikeyrouter/domain/", "router/apikeyrouter/router.py", "router/apikeyrouter/serving/")
PROVIDERS = re.compile(r"openai|anthropic|azure|gemini|mistral|groq|deepseek|bedrock", re.IGNORECASE)
LIBRARY = "router/apikeyrouter/"
COMMANDS = ("router/apikeyrouter/cli.py", "router/apikeyrouter/commands/")
BANNED = {
    "time.sleep": "blocks the event loop",
    "asyncio.get_event_loop": "makes loops by accident",
    "logging.basicConfig": "the library never configures logging",
    "structlog.configure": "the library never configures logging",
    "os.putenv": "the environment is the application's",
    "pickle.loads": "runs what it reads",
    "yaml.load": "runs what it reads",
    "eval": "runs what it reads",
    "exec": "runs what it reads",
}
MAY = {
    ("router/apikeyrouter/strict_yaml.py", "yaml.load"),  # with a loader that makes plain types
    ("service/apikeyrouter_proxy/logs.py", "structlog.configure"),
}


def test_no_function_is_very_long() -> None:
    long = {
        f"{name}:{node.name}"
        for name in python_files()
        for node in functions(name)
        if (node.end_lineno or 0) - node.lineno + 1 > FUNCTION_LINES_MAX
    }
    assert long == LONG_FUNCTIONS, "shorten what is new here; take off the list what has become short"


def test_no_file_is_very_long() -> None:
    long = {name for name in python_files() if len(read(name).splitlines()) > FILE_LINES_MAX}
    assert long == LONG_FILES, "split what is new here; take off the list what has become short"


def test_nothing_banned_is_called() -> None:
    found = {(name, call) for name in python_files(*CODE) for call in _calls(name) if call in BANNED}
    sync_ok = {(name, call) for name, call in found if call == "time.sleep" and not _sleeps_in_async(name)}
    assert {f"{name}: {call} {BANNED[call]}" for name, call in found - sync_ok - MAY} == set()


def test_the_library_prints_nothing() -> None:
    printing = [name for name in python_files(LIBRARY) if not name.startswith(COMMANDS) and "print" in _calls(name)]
    assert printing == [name for name in printing if name.startswith("router/apikeyrouter/simulator/")]


def test_the_core_names_no_provider() -> None:
    named = {
        f"{name}:{node.lineno}: {node.value!r}"
        for name in python_files(*CORE)
        for node in _strings(ast.parse(read(name)))
        if PROVIDERS.search(str(node.value))
    }
    assert named == set()


@pytest.mark.parametrize("name", python_files(*CODE, "tools/"))
def test_everything_public_says_what_it_guarantees(name: str) -> None:
    tree = ast.parse(read(name))
    silent = [] if ast.get_docstring(tree) or not tree.body else ["the module"]
    assert [*silent, *_undocumented(tree)] == []


def test_tests_have_sentences_as_names() -> None:
    short = {
        f"{name}:{node.name}"
        for name in python_files("tests/")
        for node in functions(name)
        if node.name.startswith("test_") and node.name.count("_") < 2
    }
    assert short == set()


def _calls(name: str) -> set[str]:
    return {ast.unparse(node.func) for node in ast.walk(ast.parse(read(name))) if isinstance(node, ast.Call)}


def _sleeps_in_async(name: str) -> bool:
    return any(
        isinstance(node, ast.Call) and ast.unparse(node.func) == "time.sleep"
        for function in functions(name)
        if isinstance(function, ast.AsyncFunctionDef)
        for node in ast.walk(function)
    )


def _strings(tree: ast.Module) -> Iterator[ast.Constant]:
    """String literals that are no docstrings."""
    prose = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            yield node


def _undocumented(node: ast.Module | ast.ClassDef, prefix: str = "") -> Iterator[str]:
    for child in node.body:
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) or child.name.startswith("_"):
            continue
        if any(ast.unparse(decorator).endswith((".setter", "overload")) for decorator in child.decorator_list):
            continue  # the property, or the whole function, says it
        if not ast.get_docstring(child):
            yield prefix + child.name
        if isinstance(child, ast.ClassDef):
            yield from _undocumented(child, f"{prefix}{child.name}.")
