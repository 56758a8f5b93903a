"""Secrets are compared in constant time, by structure: no `==` on a token, its hash, or key material."""

import ast
import re
from collections.abc import Iterator

import pytest

from tests.house.tree import ROOT

CODE = [*(ROOT / "router/apikeyrouter").rglob("*.py"), *(ROOT / "service").rglob("*.py")]
SECRET = re.compile(
    r"(?:^|_)(?:token|secret|password|ticket|material|sha256|credential|admin_key|management_key)s?(?:_|$)"
)
NO_SECRET = re.compile(r"token_(?:cap|count|bound|limit)|tokens|_tokens|count_token")
OPENLY = {
    "router/apikeyrouter/domain/components/key_manager.py": {"material"},
    "router/apikeyrouter/domain/components/key_registration.py": {"material"},
}
"""Who registers or rotates a provider key brings its material, and is told whether it was there: nothing to guess."""


def _names(node: ast.expr) -> Iterator[str]:
    """What an operand is called: names and attributes, not what is looked up by them."""
    if isinstance(node, ast.Name):
        yield node.id
    elif isinstance(node, ast.Attribute):
        yield node.attr
    elif isinstance(node, ast.Call):
        yield from _names(node.func)
    elif isinstance(node, ast.Subscript):
        yield from _names(node.slice) if isinstance(node.slice, ast.Name) else _names(node.value)
    elif isinstance(node, ast.Await):
        yield from _names(node.value)


def compared_openly(source: str) -> list[tuple[int, str]]:
    """Lines that compare something which is called like a secret by `==` or `!=`."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare) and any(isinstance(one, ast.Eq | ast.NotEq) for one in node.ops):
            names = [name.lower() for operand in (node.left, *node.comparators) for name in _names(operand)]
            found += [(node.lineno, name) for name in names if SECRET.search(name) and not NO_SECRET.search(name)]
    return found


def test_no_secret_is_compared_openly() -> None:
    found = {str(path.relative_to(ROOT)): compared_openly(path.read_text()) for path in CODE}
    openly = {path: {name for _, name in lines} for path, lines in found.items() if lines}
    assert openly == OPENLY, found


def test_who_lets_callers_in_compares_in_constant_time() -> None:
    doors = ("apikeyrouter_proxy/admin_keys.py", "apikeyrouter_proxy/clients.py", "apikeyrouter_dashboard/gate.py")
    for door in doors:
        assert "compare_digest(" in (ROOT / "service" / door).read_text(), door


@pytest.mark.parametrize(
    "line",
    [
        "caller.token_sha256 == given", "if secret != b'x': pass", "self._first_token == given.encode()",
        "tokens_by_name[token] == 1", "material(key) == told",
    ],
)  # fmt: skip
def test_an_open_comparison_would_be_found(line: str) -> None:
    assert compared_openly(line)
