"""Stickiness: which quota group holds a prompt's cache, for how long it is believed, and when that decides."""

from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from apikeyrouter.domain.components.pool import Snapshot
from apikeyrouter.domain.components.stickiness import (
    GROUPS_MAX,
    MISSES_MAX,
    PREFIX_BYTES,
    WARM_LONG_SECONDS,
    WARM_SECONDS,
    SessionKey,
    Sessions,
    session_key,
    turn_of,
)
from apikeyrouter.domain.interfaces.wire import ParsedRequest
from apikeyrouter.domain.models.system_error import InvalidRequestError
from apikeyrouter.domain.models.usage import Usage
from apikeyrouter.serving.sticking import Sticking

KEY: SessionKey = ("m", "tenant", "s")


def usage(tokens: int = 3000, **fields: Any) -> Usage:
    """What a long prompt used."""
    return Usage(input_tokens=tokens, output_tokens=10, **fields)


def served(sessions: Sessions, group: str, told: Usage, *, unasked: bool = True, expected: int = 0) -> None:
    """One answer of the session."""
    sessions.served(KEY, group, told, unasked=unasked, expected=expected, now=0)


def test_a_group_that_served_a_long_prompt_is_warm_for_as_long_as_caches_live() -> None:
    sessions = Sessions()
    served(sessions, "a", usage(3000))
    assert sessions.warm(KEY, WARM_SECONDS - 1) == {"a": 3000}
    assert sessions.warm(KEY, WARM_SECONDS + 1) == {}
    assert sessions.warm(("m", "other", "s"), 1) == sessions.warm(("n", "tenant", "s"), 1) == {}


def test_a_short_prompt_is_cached_by_nobody() -> None:
    sessions = Sessions()
    served(sessions, "a", usage(1000))
    assert sessions.warm(KEY, 1) == {}


def test_who_caches_only_when_asked_is_warm_by_what_it_says() -> None:
    sessions = Sessions()
    served(sessions, "a", usage(), unasked=False)
    assert sessions.warm(KEY, 1) == {}
    served(sessions, "a", usage(cache_write_tokens=2000), unasked=False)
    assert sessions.warm(KEY, 1) == {"a": 2000}
    served(sessions, "a", usage(cache_read_tokens=2000, cache_write_tokens=500), unasked=False)
    assert sessions.warm(KEY, 1) == {"a": 2500}
    served(sessions, "a", usage(cache_write_long_tokens=2000), unasked=False)
    assert sessions.warm(KEY, WARM_LONG_SECONDS - 1) == {"a": 2000}


def test_a_cache_that_was_not_there_twice_is_believed_no_longer_until_it_shows() -> None:
    sessions = Sessions()
    served(sessions, "a", usage())
    for _ in range(MISSES_MAX):
        assert sessions.warm(KEY, 1) == {"a": 3000}
        served(sessions, "a", usage(), expected=3000)
    assert sessions.warm(KEY, 1) == {}
    served(sessions, "a", usage(cache_read_tokens=2900))
    assert sessions.warm(KEY, 1) == {"a": 3000}


def test_a_hot_prompt_may_be_warm_in_several_groups_and_in_no_more_than_so_many() -> None:
    sessions = Sessions()
    for number in range(GROUPS_MAX + 2):
        served(sessions, f"g{number}", usage())
    assert list(sessions.warm(KEY, 1)) == [f"g{number}" for number in range(2, GROUPS_MAX + 2)]


def test_what_is_remembered_of_sessions_is_bounded() -> None:
    sessions = Sessions(kept_max=3)
    for number in range(5):
        sessions.served(("m", "t", str(number)), "a", usage(), unasked=True, expected=0, now=0)
        sessions.warm(("m", "t", "0"), 1)
    kept = [number for number in range(5) if sessions.warm(("m", "t", str(number)), 1)]
    assert kept == [0, 3, 4]


def parsed(text: str, **fields: Any) -> ParsedRequest:
    """A request with a message of this text."""
    members = {"messages": [{"role": "user", "content": text}], **fields}
    return ParsedRequest(
        model="m", stream=False, choices=1, max_output_tokens=None, input_bytes=len(text), messages=1, extra_tokens=0,
        unbounded=False, include_usage=True, text_bytes=len(text),
        fields={name: msgspec.json.encode(told) for name, told in members.items()},
    )  # fmt: skip


def test_a_session_is_what_the_client_calls_one_else_the_cache_key_else_a_long_beginning() -> None:
    long = "x" * (2 * PREFIX_BYTES)
    assert session_key("m", "t", "told", parsed(long, prompt_cache_key="k"), implicit=True) == ("m", "t", "told")
    assert session_key("m", "t", None, parsed(long, prompt_cache_key="k"), implicit=False) == ("m", "t", b'"k"')
    assert session_key("m", "t", None, parsed(long), implicit=False) is None
    assert session_key("m", "t", None, parsed("short"), implicit=True) is None
    assert session_key("m", "t", None, None, implicit=True) is None
    derived = session_key("m", "t", None, parsed(long + "one"), implicit=True)
    assert derived is not None
    assert derived == session_key("m", "t", None, parsed(long + "two"), implicit=True)
    assert derived != session_key("m", "u", None, parsed(long), implicit=True)
    assert derived != session_key("m", "t", None, parsed(long, system="be brief"), implicit=True)
    assert derived != session_key("m", "t", None, parsed("y" + long), implicit=True)


@pytest.mark.parametrize("named", ["s", "späth", "\ud800", b"bytes"])
def test_a_session_begins_at_the_same_place_in_every_process(named: str | bytes) -> None:
    assert turn_of(("m", "t", named)) == turn_of(("m", "t", named)) >= 0


def test_a_provider_that_cannot_be_asked_a_request_takes_no_session_from_the_others() -> None:
    def parsed_for(sample: Any) -> tuple[str, ParsedRequest]:
        if sample == "mute":
            raise InvalidRequestError("there is no such thing here", field="parameters")
        return "chat", parsed("x" * PREFIX_BYTES)

    call: Any = SimpleNamespace(operation="chat", intent=object(), session="s", principal="tenant", team=None)
    plan: Any = SimpleNamespace(costs=-1)
    pool: Any = SimpleNamespace(model="m", samples=["mute", "able"])
    sticking = Sticking(Sessions(), Snapshot())
    found = sticking.session(call, pool, plan, parsed_for, 0.0)
    assert found is not None
    assert found.turn == turn_of(KEY)
    pool.samples = ["mute"]
    assert sticking.session(call, pool, plan, parsed_for, 0.0) is not None, "the client has named it"
