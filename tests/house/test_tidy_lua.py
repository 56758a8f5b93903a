"""The scripts' headers, includes and tables: what a reader is told is what runs."""

import re

import pytest

from apikeyrouter.infrastructure.ledger.codes import Code
from apikeyrouter.infrastructure.ledger.scripts import SCRIPT_NAMES, STRUCTURES, load_library, source_lines
from tests.house.tree import ROOT, read, tracked

SECTIONS = ["PURPOSE", "KEYS", "ARGV", "RETURNS", "IDEMPOTENT", "COST"]
FLAGS = {"no-writes", "allow-oom"}
BANNED = {
    r"\bKEYS\[": "slots have names, given by the loader",
    r"\btostring\(": "1e15 becomes 1e+15",
    r"string\.format\('(?!%\.0f')": "amounts are packed, not printed",
    r"\bmath\.random": "scripts are deterministic",
    r"\bos\.|\bloadstring\b|\bsetfenv\b": "not in a script",
    r"redis\.pcall": "an error after a write must not be swallowed",
}
INCLUDES = sorted(name for name in tracked() if name.startswith("lua/include/"))
_CODE_WORD = re.compile(rf"\b(?:{'|'.join(Code.__members__)})\b")


@pytest.mark.parametrize("name", SCRIPT_NAMES)
def test_a_header_has_every_section_in_order(name: str) -> None:
    shebang, *lines = read(f"lua/{name}.lua").splitlines()
    assert re.fullmatch(r"#!lua( flags=[a-z,-]+)?", shebang)
    assert set(shebang.partition("flags=")[2].split(",")) - {""} <= FLAGS
    found = [match.group(1) for line in lines if (match := re.match(r"-- ([A-Z]{4,})\b", line))]
    assert found == SECTIONS


@pytest.mark.parametrize("name", SCRIPT_NAMES)
def test_a_header_names_the_codes_that_the_script_returns(name: str) -> None:
    told = set(_CODE_WORD.findall(_section(name, "RETURNS")))
    code = "\n".join(line for line in _with_includes(name).splitlines() if not line.lstrip().startswith("--"))
    replied = set()
    for call in re.findall(r"reply_(?:stamp|transition|admitted)\(([^,()]+)", code) + re.findall(
        r"return nil, (.+)", code
    ):
        replied |= set(_CODE_WORD.findall(call))
    makes_the_cell = {"NO_CELL"} if name == "open" else set()
    assert replied - told == makes_the_cell, "codes that the header does not name"
    assert told - set(_CODE_WORD.findall(code)) == set(), "codes that the script cannot return"


@pytest.mark.parametrize("name", SCRIPT_NAMES)
def test_a_script_that_promises_to_write_nothing_has_no_commit(name: str) -> None:
    writes = re.search(r"'(?:HSET|HDEL|ZADD|ZREM|HSETNX|HINCRBY|DEL|UNLINK|SET)'", _with_includes(name))
    assert ("no-writes" in load_library().scripts[name].flags) == (writes is None)


@pytest.mark.parametrize("name", SCRIPT_NAMES)
def test_a_script_declares_the_keys_that_its_parts_name(name: str) -> None:
    code = "\n".join(line.partition("--")[0] for line in _with_includes(name).splitlines())
    named = {key for key in STRUCTURES if re.search(rf"\b{key}\b", code)}
    declared = set(load_library().scripts[name].keys)
    assert declared <= named
    # `commit` names every structure; what a script never fills is never written
    fills = {"D": ("lease_end(", "reservation_open("), "G": ("reservation_bury(",), "S": ("reservation_expire(",)}
    called = re.sub(r"local function \w+\(", "", code)
    undeclared = {key for key in named - declared if key not in fills or any(call in called for call in fills[key])}
    assert undeclared <= {"S"}


@pytest.mark.parametrize("path", [name for name in tracked() if name.startswith("lua/") and name.endswith(".lua")])
def test_lua_calls_nothing_that_the_laws_forbid(path: str) -> None:
    code = "\n".join(line.partition("--")[0] for line in read(path).splitlines())
    assert {why for pattern, why in BANNED.items() if re.search(pattern, code)} == set()


def test_every_file_is_a_script_or_part_of_one() -> None:
    files = {name.removeprefix("lua/") for name in tracked() if name.startswith("lua/") and name.endswith(".lua")}
    used = {line.file for virtual in (False, True) for line in source_lines(virtual_time=virtual)}
    assert used - {""} == files


def test_every_include_begins_with_what_it_is_for() -> None:
    assert [name for name in INCLUDES if not re.match(r"-- [A-Z`].+[.:,;]", read(name))] == []


def test_the_codes_are_the_same_on_both_sides() -> None:
    told: dict[str, int] = {}
    for names, numbers in re.findall(r"^local ([A-Z_, ]+) = ([\d, ]+)$", read("lua/include/codes.lua"), re.MULTILINE):
        told.update(zip(names.split(", "), map(int, numbers.split(", ")), strict=True))
    assert told == {code.name: code.value for code in Code}


def test_the_table_of_scripts_names_each_and_only_keys_it_declares() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \|[^|]+\| ([^|]+) \|$", read("lua/README.md"), re.MULTILINE))
    assert sorted(rows) == sorted(SCRIPT_NAMES)
    scripts = load_library().scripts
    for name, writes in rows.items():
        named = set(writes.replace("–", "").split())
        assert named <= set(scripts[name].keys), name
        assert bool(named) == ("no-writes" not in scripts[name].flags), name


@pytest.mark.parametrize("document", ["lua/README.md", "docs/redis-keys.md"])
def test_every_key_of_a_cell_is_in_the_table_of_keys(document: str) -> None:
    declared = {key for script in load_library().scripts.values() for key in script.keys}
    rows = re.findall(r"^\| ([^|]+?) \| (?:hash|sorted set) \|", read(document), re.MULTILINE)
    told = {key.partition(":")[0] for row in rows for key in row.replace("`", "").replace(",", "").split()}
    assert declared <= told
    assert {key for key in told if re.fullmatch(r"[A-Z]\d?", key)} == declared


def test_the_wheel_gets_the_whole_folder() -> None:
    assert '"lua" = "apikeyrouter/_lua"' in read("pyproject.toml")
    assert (ROOT / "lua" / "include").is_dir()


def _section(name: str, title: str) -> str:
    header = read(f"lua/{name}.lua").partition("\n")[2].split("\n\n")[0]
    match = re.search(rf"-- {title}\b(.*?)(?=\n-- (?:{'|'.join(SECTIONS)})\b|\Z)", header, re.DOTALL)
    assert match is not None, title
    return match.group(1)


def _with_includes(name: str) -> str:
    """A script with all it is made of."""
    parts, waiting = dict[str, str](), [f"lua/{name}.lua"]
    while waiting:
        path = waiting.pop()
        if path not in parts:
            parts[path] = read(path)
            needed = re.findall(r"^-- @include (\w+)$", parts[path], re.MULTILINE)
            waiting += [f"lua/include/{part}.lua" for part in needed]
    return "\n".join(parts.values())


def test_the_page_on_keys_names_every_command_that_a_restricted_user_needs() -> None:
    called = {name.lower() for name in re.findall(r"redis\.call\('([A-Z]+)'", load_library().text)}
    page = read("docs/redis-keys.md")
    allowed = set(re.findall(r"[\s`]\+([a-z]+)", page))
    assert called <= allowed, "a command that is denied in the middle of a script cannot be taken back"
