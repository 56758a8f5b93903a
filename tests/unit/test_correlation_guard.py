"""Refusals in a row: when they are the provider's fault, and when each key's own."""

from apikeyrouter.domain.components.correlation_guard import (
    Guard,
    Refusal,
    Suspects,
    alike,
)

GUARD = Guard()
GROUPS = {"g1", "g2", "g3"}


def refusals(*keys: str, at: float = 100.0) -> list[Refusal]:
    """Each key in a group of its own number."""
    return [Refusal(key, f"g{1 + number % 3}", at) for number, key in enumerate(keys)]


def spared(*keys: str, answered_at: float = 0.0, now: float = 101.0, at: float = 100.0) -> set[str]:
    return {one.key_id for one in alike(refusals(*keys, at=at), GROUPS, GUARD, answered_at=answered_at, now=now)}


def test_few_keys_refused_speak_for_themselves() -> None:
    assert spared(*"ab"[: GUARD.keys - 1]) == set()


def test_several_keys_of_several_groups_are_spared() -> None:
    assert spared("a", "b", "c") == {"a", "b", "c"}
    assert spared("a", "b", "c", "d") == {"a", "b", "c", "d"}


def test_one_key_refused_often_is_one_key() -> None:
    assert spared("a", "a", "a", "a") == set()


def test_one_organisation_among_several_is_no_evidence_against_the_provider() -> None:
    same = [Refusal(key, "g1", 100.0) for key in "abcd"]
    assert alike(same, GROUPS, GUARD, answered_at=0.0, now=101.0) == []
    assert len(alike(same, {"g1"}, GUARD, answered_at=0.0, now=101.0)) == 4  # it is all there is


def test_a_good_answer_in_between_clears_the_provider() -> None:
    assert spared("a", "b", "c", answered_at=100.5) == set()
    assert spared("a", "b", "c", answered_at=99.0) == {"a", "b", "c"}


def test_refusals_of_long_ago_do_not_count() -> None:
    assert spared("a", "b", "c", now=100.0 + GUARD.within_seconds + 0.1) == set()


def test_suspicion_lasts_from_the_latest_refusal_and_ends_with_a_good_answer() -> None:
    suspects = Suspects()
    assert not suspects.has("p", answered_at=0.0, now=10.0)
    suspects.add("p", 10.0, GUARD.suspect_seconds)
    suspects.add("p", 50.0, GUARD.suspect_seconds)
    assert suspects.has("p", answered_at=9.0, now=50.0 + GUARD.suspect_seconds - 1)
    assert not suspects.has("q", answered_at=0.0, now=20.0)
    assert not suspects.has("p", answered_at=11.0, now=52.0)
    suspects.add("p", 60.0, GUARD.suspect_seconds)
    assert not suspects.has("p", answered_at=0.0, now=60.0 + GUARD.suspect_seconds + 1)
