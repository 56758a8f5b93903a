"""Who goes first of those that wait, and who has to go where there are too many."""

import pytest

from apikeyrouter.domain.components.wait_lines import Place, WaitLines, Who, read_priority
from apikeyrouter.domain.models.system_error import InvalidRequestError

INTERACTIVE, BATCH = 0, 1


def joined(lines: WaitLines, *whos: Who) -> list[Place]:
    places = [lines.join("line", who) for who in whos]
    assert None not in places
    return [place for place in places if place is not None]


def served(lines: WaitLines) -> list[str]:
    """The clients in the order in which they are served."""
    order = []
    while (place := lines.first("line")) is not None:
        order.append(place.who.principal)
        lines.leave(place, served=True)
    return order


def test_those_of_one_client_go_in_the_order_in_which_they_came() -> None:
    lines = WaitLines()
    places = joined(lines, *[Who("a")] * 4)
    order = []
    while (place := lines.first("line")) is not None:
        order.append(place)
        lines.leave(place, served=True)
    assert order == places


def test_clients_take_turns_whoever_has_how_many_waiting() -> None:
    lines = WaitLines()
    joined(lines, *[Who("a")] * 6, *[Who("b")] * 2)
    assert served(lines) == ["a", "b", "a", "b", "a", "a", "a", "a"]


@pytest.mark.parametrize(("heavy", "light"), [(3, 1), (0.75, 0.25)])
def test_turns_go_by_weight(heavy: float, light: float) -> None:
    lines = WaitLines()
    joined(lines, *[Who("a", weight=heavy)] * 6, *[Who("b", weight=light)] * 6)
    assert served(lines)[:8].count("a") == 6


def test_persons_go_before_batches() -> None:
    lines = WaitLines()
    joined(lines, Who("a", BATCH), Who("a", BATCH), Who("b", INTERACTIVE), Who("a", INTERACTIVE))
    assert [place.who.priority for place in sorted(lines.all())] == [0, 0, 1, 1]
    assert served(lines) == ["b", "a", "a", "a"]


def test_a_client_that_comes_late_has_no_turns_saved_up() -> None:
    lines = WaitLines()
    joined(lines, *[Who("a")] * 10)
    for _ in range(6):
        first = lines.first("line")
        assert first is not None
        lines.leave(first, served=True)
    joined(lines, *[Who("b")] * 4)
    assert served(lines) == ["a", "b", "a", "b", "a", "b", "a", "b"]


def test_who_leaves_is_passed_over() -> None:
    lines = WaitLines()
    first, second, third = joined(lines, Who("a"), Who("a"), Who("a"))
    lines.leave(second)
    lines.leave(second)
    assert lines.length == 2
    lines.leave(first, served=True)
    assert lines.first("line") is third
    lines.leave(third)
    assert (lines.length, lines.firsts(), lines.all()) == (0, [], [])


def test_a_newcomer_goes_behind_those_that_go_before_it_and_no_others() -> None:
    lines = WaitLines()
    assert not lines.goes_before("line", Who("a"))
    joined(lines, Who("a"), Who("a"))
    assert lines.goes_before("line", Who("a"))
    assert lines.goes_before("line", Who("b", BATCH))
    assert not lines.goes_before("line", Who("b")), "of equals, who has nobody waiting goes first"
    lines.passed("line", Who("b"))
    assert lines.goes_before("line", Who("b")), "that was its turn"
    assert not lines.goes_before("another", Who("a"))


def test_who_waits_for_something_else_keeps_its_place_among_its_equals() -> None:
    lines = WaitLines()
    first, second = joined(lines, Who("a"), Who("a"))
    moved = lines.move(first, "own")
    assert lines.first("own") is moved
    assert lines.first("line") is second
    back = lines.move(moved, "line")
    assert lines.first("own") is None
    assert lines.length == 2
    lines.leave(second)
    assert lines.first("line") is back


def test_where_all_is_full_those_with_most_give_way_to_those_with_less() -> None:
    lines = WaitLines(4)
    places = joined(lines, *[Who("a")] * 4)
    assert lines.join("line", Who("a")) is None
    woken: list[str] = []
    places[-1].wake = lambda: woken.append("last")
    assert lines.join("line", Who("b")) is not None
    assert (places[-1].pushed_out, lines.length, woken) == (True, 4, ["last"])
    assert lines.join("line", Who("b")) is not None
    assert lines.join("line", Who("b")) is None, "they have two each"
    assert sorted(place.who.principal for place in lines.all()) == ["a", "a", "b", "b"]


def test_where_all_is_full_a_batch_gives_way_to_a_person() -> None:
    lines = WaitLines(2)
    batch = joined(lines, Who("a", BATCH), Who("b", BATCH))
    assert lines.join("line", Who("a", BATCH)) is None
    assert lines.join("line", Who("a")) is not None
    assert lines.join("line", Who("a")) is not None
    assert [place.pushed_out for place in batch] == [True, True]
    assert lines.join("line", Who("c", BATCH)) is None


def test_many_that_come_and_go_behind_one_that_stays_leave_nothing() -> None:
    lines = WaitLines()
    (stays,) = joined(lines, Who("a"))
    memories = 0
    for number in range(20_000):
        before = lines._lines["line"].latest
        (place,) = joined(lines, Who(f"client-{number}"))
        lines.leave(place)
        memories += lines._lines["line"].latest is not before
    assert memories < 10, "who comes does not pay for looking through all that came before"
    assert lines.length == 1
    assert lines.first("line") is stays
    assert len(lines._lines["line"].heap) < 100


def test_a_priority_that_there_is_not_is_refused() -> None:
    assert (read_priority("interactive"), read_priority("batch")) == (0, 1)
    with pytest.raises(InvalidRequestError, match=r"x-akr-priority: must be one of interactive, batch"):
        read_priority("urgent", field="x-akr-priority")
