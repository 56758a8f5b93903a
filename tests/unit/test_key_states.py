"""The state machine of a key."""

import re
from datetime import UTC, datetime, timedelta
from itertools import product
from pathlib import Path

import pytest

from apikeyrouter.domain.components.key_states import IllegalTransitionError, due_transition, move, path_between
from apikeyrouter.domain.models.api_key import LEGAL_TRANSITIONS, APIKey, KeyState
from apikeyrouter.domain.models.system_error import InvalidRequestError

NOW = datetime(2026, 3, 1, tzinfo=UTC)
LEGAL = {
    (KeyState.Available, KeyState.Throttled), (KeyState.Available, KeyState.Exhausted),
    (KeyState.Available, KeyState.Disabled), (KeyState.Available, KeyState.Invalid),
    (KeyState.Throttled, KeyState.Available), (KeyState.Throttled, KeyState.Exhausted),
    (KeyState.Throttled, KeyState.Disabled), (KeyState.Throttled, KeyState.Invalid),
    (KeyState.Exhausted, KeyState.Recovering), (KeyState.Exhausted, KeyState.Disabled),
    (KeyState.Exhausted, KeyState.Invalid),
    (KeyState.Recovering, KeyState.Available), (KeyState.Recovering, KeyState.Throttled),
    (KeyState.Recovering, KeyState.Exhausted), (KeyState.Recovering, KeyState.Disabled),
    (KeyState.Recovering, KeyState.Invalid),
    (KeyState.Invalid, KeyState.Available), (KeyState.Invalid, KeyState.Disabled),
    (KeyState.Disabled, KeyState.Available),
}  # fmt: skip
"""Written by hand, on purpose: the table under test must not be its own witness."""


def key(state: KeyState, until: datetime | None = None) -> APIKey:
    return APIKey(id="k1", provider_id="p", state=state, state_until=until)


@pytest.mark.parametrize(("start", "end"), list(product(KeyState, KeyState)))
def test_exactly_the_documented_transitions_are_possible(start: KeyState, end: KeyState) -> None:
    if start is end or (start, end) in LEGAL:
        changed, transition = move(key(start), end, now=NOW, reason="why")
        assert changed.state is end
        assert (transition.from_state, transition.to_state, transition.reason) == (start, end, "why")
    else:
        with pytest.raises(IllegalTransitionError, match="possible"):
            move(key(start), end, now=NOW, reason="why")


def test_the_table_speaks_of_every_state() -> None:
    assert set(LEGAL_TRANSITIONS) == set(KeyState)


def test_only_available_and_recovering_keys_are_eligible() -> None:
    assert {state for state in KeyState if state.eligible} == {KeyState.Available, KeyState.Recovering}


def test_a_move_leaves_the_old_object_alone_and_sets_the_time_limit() -> None:
    before = key(KeyState.Available)
    after, transition = move(before, KeyState.Throttled, now=NOW, reason="429", actor="router", for_seconds=30)
    assert before.state is KeyState.Available
    assert after.state_until == transition.until == NOW + timedelta(seconds=30)
    assert after.updated_at == NOW


def test_a_time_limit_means_nothing_to_a_state_that_does_not_end_by_itself() -> None:
    after, _ = move(key(KeyState.Available), KeyState.Disabled, now=NOW, reason="operator", for_seconds=30)
    assert after.state_until is None


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), 1e12])
def test_an_absurd_time_limit_is_refused(seconds: float) -> None:
    with pytest.raises(InvalidRequestError, match="for_seconds"):
        move(key(KeyState.Available), KeyState.Throttled, now=NOW, reason="x", for_seconds=seconds)


@pytest.mark.parametrize(
    ("state", "returns_to"),
    [(KeyState.Throttled, KeyState.Available), (KeyState.Exhausted, KeyState.Recovering)],
)
def test_a_key_returns_at_its_time_and_not_before(state: KeyState, returns_to: KeyState) -> None:
    waiting = key(state, until=NOW)
    assert due_transition(waiting, now=NOW - timedelta(microseconds=1)) is None
    due = due_transition(waiting, now=NOW)
    assert due is not None
    assert (due[0].state, due[0].state_until) == (returns_to, None)


@pytest.mark.parametrize("state", [KeyState.Available, KeyState.Disabled, KeyState.Invalid, KeyState.Recovering])
def test_other_states_do_not_end_by_themselves(state: KeyState) -> None:
    assert due_transition(key(state, until=NOW), now=NOW + timedelta(days=999)) is None


def test_a_key_that_waits_for_no_stated_time_waits() -> None:
    assert due_transition(key(KeyState.Exhausted), now=NOW) is None


@pytest.mark.parametrize(("start", "end"), list(product(KeyState, KeyState)))
def test_every_state_can_be_reached_by_legal_steps(start: KeyState, end: KeyState) -> None:
    walked = start
    for step in path_between(start, end):
        assert (walked, step) in LEGAL
        walked = step
    assert walked is end


def test_the_way_back_from_exhausted_leads_over_recovering() -> None:
    assert path_between(KeyState.Exhausted, KeyState.Available) == (KeyState.Recovering, KeyState.Available)
    assert path_between(KeyState.Available, KeyState.Available) == ()


def test_the_documentation_has_the_same_table() -> None:
    text = (Path(__file__).parents[2] / "docs" / "key-states.md").read_text()
    rows = re.findall(r"^\| (\w+) \| ([\w, ]+) \|$", text.partition("| from |")[2].partition("\n\n")[0], re.MULTILINE)
    documented = {(KeyState(start), KeyState(end)) for start, ends in rows for end in ends.split(", ")}
    assert documented == LEGAL
