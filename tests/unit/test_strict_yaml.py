"""Strict YAML: what is read, and what is refused, with libyaml and without."""

import subprocess
import sys

import pytest
import yaml

from apikeyrouter.strict_yaml import DEPTH_MAX, StrictYamlError, read_yaml

BOMB = "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\n"


@pytest.fixture(params=["libyaml", "pure"])
def parser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each of the two parsers; PyYAML's wheels have both."""
    kind: str = request.param
    if kind == "pure":
        monkeypatch.delattr(yaml, "CSafeLoader", raising=False)
    elif not hasattr(yaml, "CSafeLoader"):
        pytest.skip("this PyYAML was built without libyaml")
    return kind


@pytest.mark.usefixtures("parser")
def test_scalars_lists_and_mappings_are_read() -> None:
    text = "a: 1\nb: [x, 2.5, null, yes]\nc: {d: 'é'}\n"
    told = {"a": 1, "b": ["x", 2.5, None, True], "c": {"d": "é"}}
    assert read_yaml(text) == told
    assert read_yaml(text.encode()) == told
    assert read_yaml("") is None


@pytest.mark.usefixtures("parser")
@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a: 1\nb: 2\na: 3\n", r"^line 3, column 1: 'a' is written twice$"),
        ("x:\n  - {a: 1, b: 2, a: 3}\n", r"^line 2, column 18: 'a' is written twice$"),
        (BOMB, r"^line 2, column 8: aliases are not allowed here$"),
        ("a: &a [*a]", r"aliases are not allowed here"),
        ("a: [1\nb: 2", r"^line 2, column "),
        ("\t- a", r"^line 1, column "),
        (b"a: \xff\xfe", r"."),
        ("a: \x00", r"."),
        ("? [a, b]\n: 1", r"^line 1, column 3: a key must be a scalar$"),
        ("? {a: b}\n: 1", r"a key must be a scalar"),
        ("a: 2026-13-01", r"a value cannot be read: month must be in 1..12"),
        ("a: !!int x", r"a value cannot be read"),
        ("a: !!bool x", r"a value cannot be read"),
        ("a: !!timestamp x", r"a value cannot be read"),
        ("a: " + "9" * 5000, r"a value cannot be read"),
        ("a: !!python/object/apply:os.getcwd []", r"^line 1, column 4: the tag tag:yaml.org,2002:python"),
        ("a: !!python/name:os.getcwd ''", r"^line 1, column 4: could not determine a constructor"),
        ("a: !!map [1]", r"^line 1, column 4: the tag tag:yaml.org,2002:map is not allowed"),
        ("a: 1\n---\nb: 2", r"line 2"),
        ("[" * (DEPTH_MAX + 1) + "]" * (DEPTH_MAX + 1), rf"^line 1, column {DEPTH_MAX + 1}: more than {DEPTH_MAX} lev"),
        ("- " * (DEPTH_MAX + 1) + "a", rf"more than {DEPTH_MAX} levels"),
    ],
)  # fmt: skip
def test_what_is_not_strict_is_refused_with_its_place(text: str | bytes, complaint: str) -> None:
    with pytest.raises(StrictYamlError, match=complaint):
        read_yaml(text)


@pytest.mark.usefixtures("parser")
def test_the_deepest_that_is_allowed_is_read() -> None:
    found = read_yaml("[" * DEPTH_MAX + "]" * DEPTH_MAX)
    for _ in range(DEPTH_MAX - 1):
        (found,) = found
    assert found == []


def test_nesting_without_end_ends_no_process() -> None:
    script = """
from apikeyrouter.strict_yaml import StrictYamlError, read_yaml
for text in ("[" * 1_000_000, "- " * 100_000, "{a: " * 300_000, "? " * 100_000):
    try:
        read_yaml(text)
    except StrictYamlError as exc:
        print(exc)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) == 4


@pytest.mark.usefixtures("parser")
@pytest.mark.parametrize(
    "text",
    [
        "- 1\n- 0x1f\n- 1_000\n- 1.5\n- 1e3\n- .inf\n- 12:30",
        "- on\n- No\n- ~\n-\n- null\n- 'no'\n- \"5\"\n- ! 5\n- !!str 5\n- !!int '5'",
        "a: 2026-11-22\nb: 2026-11-22T01:02:03Z\nc: !!binary aGVsbG8=\nd: {}\ne: []",
        "text: |\n  two\n  lines\nfolded: >\n  one\n  line\n1: one\n1.5: more\ntrue: yes\n~: none",
        "- &a {x: [1, {y: z}]}\n- !!map {a: 1}\n- !!seq [a]\n- - - deep\n- k: {a: b,\n     c: d}",
        "%YAML 1.1\n---\na: b\n...\n",
    ],
)
def test_values_are_what_pyyaml_takes_them_for(text: str) -> None:
    assert read_yaml(text) == yaml.safe_load(text)


def test_libyaml_reads_where_it_is_there() -> None:
    if not yaml.__with_libyaml__:
        pytest.skip("this PyYAML was built without libyaml")
    with pytest.raises(StrictYamlError) as refused:
        read_yaml("a: 1\na: 2")
    assert refused.value.__cause__ is not None
    assert "yaml._yaml" in type(refused.value.__cause__.problem_mark).__module__  # type: ignore[attr-defined]
