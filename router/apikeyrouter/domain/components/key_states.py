"""The state machine of a key: pure functions over `LEGAL_TRANSITIONS`. Storing and telling is the key manager's."""

from datetime import datetime, timedelta

from apikeyrouter.domain.models.api_key import LEGAL_TRANSITIONS, APIKey, KeyChange, KeyState, StateTransition
from apikeyrouter.domain.models.system_error import InvalidRequestError

__all__ = ["IllegalTransitionError", "due_transition", "move", "move_along", "noted", "path_between"]

_RETURNS_TO = {KeyState.Throttled: KeyState.Available, KeyState.Exhausted: KeyState.Recovering}
"""Where a state with a time limit leads when the time is over."""
COOLDOWN_SECONDS_MAX = 366 * 86_400
"""Longest a key may be throttled or exhausted by a stated time."""


class IllegalTransitionError(InvalidRequestError):
    """The table of transitions does not have this change. The message lists what is possible."""


def move(
    key: APIKey,
    to: KeyState,
    *,
    now: datetime,
    reason: str,
    actor: str = "router",
    for_seconds: float | None = None,
) -> tuple[APIKey, StateTransition]:
    """The key in its new state, and the entry for the audit trail.

    Moving to the state it is in renews the reason and the time limit. `for_seconds` (0 < s ≤ a year) limits throttled
    and exhausted; other states ignore it. Errors: IllegalTransitionError; InvalidRequestError for absurd times.
    """
    if to is not key.state and to not in LEGAL_TRANSITIONS[key.state]:
        raise IllegalTransitionError(_refusal(key, to), field="state")
    until = _until(to, now, for_seconds)
    changed = key.model_copy(update={"state": to, "state_reason": reason, "state_until": until, "updated_at": now})
    transition = StateTransition(
        entity_id=key.id, from_state=key.state, to_state=to, reason=reason, actor=actor, timestamp=now, until=until
    )
    return changed, transition


def due_transition(key: APIKey, *, now: datetime) -> tuple[APIKey, StateTransition] | None:
    """The return that is due by time: throttled → available, exhausted → recovering. None when nothing is due."""
    to = _RETURNS_TO.get(key.state)
    if to is None or key.state_until is None or key.state_until > now:
        return None
    return move(key, to, now=now, reason=f"{key.state.value} until {key.state_until.isoformat()}")


def move_along(key: APIKey, to: KeyState, *, now: datetime, reason: str, actor: str) -> KeyChange:
    """The key at the end of the shortest legal way, with one entry for each step."""
    transitions: list[StateTransition] = []
    for state in path_between(key.state, to):
        key, transition = move(key, state, now=now, reason=reason, actor=actor)
        transitions.append(transition)
    return KeyChange(key=key, transitions=tuple(transitions))


def noted(
    key: APIKey, *, now: datetime, reason: str, actor: str, before: bool = True, after: bool = True
) -> StateTransition:
    """An entry about something else than the state. Not `before`: the key is new; not `after`: it is gone."""
    return StateTransition(
        entity_id=key.id, from_state=key.state if before else None, to_state=key.state if after else None,
        reason=reason, actor=actor, timestamp=now, until=key.state_until,
    )  # fmt: skip


def path_between(start: KeyState, end: KeyState) -> tuple[KeyState, ...]:
    """The shortest legal way, without the start: what an operator's "make it available" takes, step by step.

    `()` when start is end. Every state can be reached from every other in at most len(KeyState) steps.
    """
    ways: list[tuple[KeyState, ...]] = [()]
    seen = {start}
    for _ in KeyState:
        for way in ways:
            if (way or (start,))[-1] is end:
                return way
        ways = [(*way, state) for way in ways for state in _next(way, start) if state not in seen]
        seen.update(way[-1] for way in ways)
    raise IllegalTransitionError(f"there is no way from {start.value} to {end.value}", field="state")


def _next(way: tuple[KeyState, ...], start: KeyState) -> list[KeyState]:
    legal = LEGAL_TRANSITIONS[way[-1] if way else start]
    return [state for state in KeyState if state in legal]


def _until(to: KeyState, now: datetime, for_seconds: float | None) -> datetime | None:
    if for_seconds is None or to not in _RETURNS_TO:
        return None
    if not isinstance(for_seconds, int | float) or not 0 < for_seconds <= COOLDOWN_SECONDS_MAX:
        raise InvalidRequestError(f"must be a number above 0 and at most {COOLDOWN_SECONDS_MAX}", field="for_seconds")
    return now + timedelta(seconds=for_seconds)


def _refusal(key: APIKey, to: KeyState) -> str:
    legal = ", ".join(sorted(state.value for state in LEGAL_TRANSITIONS[key.state]))
    return f"key {key.id} is {key.state.value} and cannot become {to.value}; possible: {legal}"
