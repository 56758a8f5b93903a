"""Every command of every script fails once: nothing was written, or everything, or a repeat of the call mends it."""

from collections import Counter, defaultdict
from collections.abc import Mapping

import pytest

from apikeyrouter.infrastructure.ledger.codes import Code
from apikeyrouter.infrastructure.ledger.scripts import SCRIPT_NAMES
from tests.faults.failing_commands import COMMANDS_MAX, Failed, FailingCell
from tests.ledger.histories import Call, Offer, Wish
from tests.ledger.support import SECOND, cell_key

SEEDS, EVENTS = (2, 3), 220
READERS = ("audit", "snapshot")


@pytest.fixture(scope="module")
def failures() -> Mapping[str, list[Failed]]:
    """Each failure of each call of two random histories, by script."""
    found: dict[str, list[Failed]] = defaultdict(list)
    for seed in SEEDS:
        cell = FailingCell()
        for call in cell.live(seed, EVENTS):
            found[call.name].extend(cell.each_failure(call))
    return found


def test_every_script_failed_in_many_places_and_none_makes_too_many_commands(
    failures: Mapping[str, list[Failed]],
) -> None:
    assert set(failures) == set(SCRIPT_NAMES)
    assert all(len({(failed.k, failed.of) for failed in failures[name]}) > 1 for name in SCRIPT_NAMES)
    assert max(failed.of for found in failures.values() for failed in found) <= COMMANDS_MAX


@pytest.mark.parametrize("script", SCRIPT_NAMES)
def test_what_fails_before_the_first_write_leaves_nothing_and_is_right_when_repeated(
    failures: Mapping[str, list[Failed]], script: str
) -> None:
    untouched = [failed for failed in failures[script] if failed.nothing_written]
    assert untouched
    assert [failed for failed in untouched if not failed.repeat_is_right] == []


@pytest.mark.parametrize("script", READERS)
def test_what_only_reads_leaves_nothing_wherever_it_fails(failures: Mapping[str, list[Failed]], script: str) -> None:
    assert all(failed.nothing_written for failed in failures[script])


@pytest.mark.parametrize("script", [name for name in SCRIPT_NAMES if name != "sweep"])
def test_what_fails_halfway_is_mended_by_its_repeat(failures: Mapping[str, list[Failed]], script: str) -> None:
    wrong = Counter((failed.k, failed.of) for failed in failures[script] if not failed.repeat_is_right)
    assert wrong == {}


def test_a_sweep_that_fails_halfway_leaves_nothing_that_is_counted_and_not_held(
    failures: Mapping[str, list[Failed]],
) -> None:
    """Its repeat may find later what it was about to resolve: suspense counts until then."""
    cell = FailingCell()
    for failed in failures["sweep"]:
        cell.be(failed.repeated)
        if failed.reply and failed.reply[0] == Code.OK:
            assert cell.drift() == [], f"command {failed.k} of {failed.of}"


@pytest.fixture
def cell() -> FailingCell:
    """A cell with a lane that admits all."""
    made = FailingCell()
    made.run(Call("open", [1]))
    made.run(Call("configure", ["put", 0, "l:free", 5, 0, 0, 0, 0, 0]))
    return made


def wish(rid: bytes) -> Call:
    """A reserve for one second."""
    return Wish(rid=rid, lease_us=SECOND, offers=(Offer(("free",)),)).reserve()


def test_a_lease_without_a_record_does_not_stop_the_cell(cell: FailingCell) -> None:
    call = cell.engine._lua.globals()[b"redis"][b"call"]
    call(b"ZADD", cell_key("D").encode(), float(cell.clock.now_us), b"r:nobody's")
    cell.run(wish(b"r:1"))
    cell.clock.advance(2 * SECOND)
    swept = cell.run(Call("sweep", []))
    assert swept is not None
    assert swept[0] == Code.OK
    admitted = cell.run(wish(b"r:2"))
    assert admitted is not None
    assert admitted[0] == Code.ADMITTED


@pytest.mark.parametrize("script", ["sweep", "reserve"])
def test_an_expired_lease_is_ended_whichever_command_of_the_sweep_failed(cell: FailingCell, script: str) -> None:
    cell.run(wish(b"r:dead"))
    cell.clock.advance(2 * SECOND)
    call = Call("sweep", []) if script == "sweep" else wish(b"r:next")
    for failed in cell.each_failure(call):
        cell.be(failed.repeated)
        cell.clock.advance(SECOND // 2)
        cell.run(Call("sweep", []))
        assert cell.drift() == [], f"command {failed.k} of {failed.of}"


def test_a_configuration_that_is_put_again_is_taken_over_whichever_command_failed(cell: FailingCell) -> None:
    call = Call("configure", ["put", 0, "l:free", 5, 1, 0, 0, 0, 0])
    wrong = [failed.k for failed in cell.each_failure(call) if failed.repeated.image["C0"] != failed.right.image["C0"]]
    wrong += [failed.k for failed in cell.each_failure(call) if failed.reply[4] < failed.right_reply[4]]
    assert wrong == []
