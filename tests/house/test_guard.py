"""The guard against dearer requests: when it speaks up, and of what."""

import pytest
from benchmarks.counting import Counted
from benchmarks.guard import compare, least


def counted(bytecodes: int, c_calls: int = 100, **modules: int) -> dict[str, Counted]:
    return {"one at a time": Counted(bytecodes=bytecodes, c_calls=c_calls, modules=modules)}


@pytest.mark.parametrize(("bytecodes", "c_calls"), [(1101, 100), (1000, 111)])
def test_more_than_a_tenth_more_is_too_many(bytecodes: int, c_calls: int) -> None:
    lines, dearer = compare(counted(1000), counted(bytecodes, c_calls))
    assert dearer
    assert "TOO MANY" in lines[0]
    assert "guard-keep" in lines[-1]


def test_what_has_become_dearer_is_named_and_nothing_else() -> None:
    lines, _ = compare(counted(1000, sse=400, pool=600), counted(1300, sse=800, pool=500))
    assert [line.strip() for line in lines[1:-1]] == ["sse: 400 → 800 bytecodes"]


def test_up_to_a_tenth_more_passes_and_much_less_asks_to_be_kept() -> None:
    assert compare(counted(1000), counted(1100, 110)) == (
        ["one at a time: 1,100 bytecodes (+10.0%), 110 calls into C (+10.0%)"],
        False,
    )
    lines, dearer = compare(counted(1000), counted(800, 80))
    assert not dearer
    assert "guard-keep" in lines[-1]


def test_of_two_counts_the_cheaper_one_is_taken() -> None:
    assert least(counted(1200, sse=1), counted(1000, pool=2)) == counted(1000, pool=2)
    assert least(counted(900), counted(1000)) == counted(900)
