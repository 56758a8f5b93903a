"""The tree that the house tests look at: the files of the repository, as git knows them."""

import ast
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
CODE = ("router/apikeyrouter", "service/apikeyrouter_proxy", "service/apikeyrouter_dashboard")


@cache
def tracked() -> tuple[str, ...]:
    """Every text file of the repository that is there, by path from its root."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    return tuple(name for name in listed.decode().split("\0") if name and (ROOT / name).is_file())


def read(name: str) -> str:
    """A file's text."""
    return (ROOT / name).read_text(encoding="utf-8")


def python_files(*folders: str) -> list[str]:
    """Tracked Python files under the folders; all without any."""
    return [name for name in tracked() if name.endswith(".py") and (not folders or name.startswith(folders))]


def functions(name: str) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function of a file, nested ones too."""
    for node in ast.walk(ast.parse(read(name))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node
