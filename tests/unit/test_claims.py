"""What is told of principals that were denied: what the ledger cannot know, and no more than it needs."""

import time
from collections.abc import Coroutine
from typing import Any

import pytest

from apikeyrouter.domain.models.accounting import Candidate, Loss, Reason, ReserveRequest, RetryKind, Stamp
from apikeyrouter.serving import claims
from apikeyrouter.serving.claims import CLAIM_EVERY_US, Claims

NOW_US = 1_800_000_000_000_000


class Told:
    """A ledger that keeps what it was told, and who does things behind requests."""

    def __init__(self) -> None:
        self.stamp = Stamp(epoch=1, seq=1, now_us=NOW_US, config_version=1)
        self.claims: list[tuple[str, str, int]] = []
        self.now = 100.0

    async def claim(self, request: ReserveRequest, *, stay_us: int) -> Stamp:
        self.claims.append((request.pool, request.principal, stay_us))
        return self.stamp

    def do(self, work: Coroutine[Any, Any, object]) -> Any:
        """At once: nothing in it waits."""
        with pytest.raises(StopIteration):
            work.send(None)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    made = Told()
    monkeypatch.setattr(time, "perf_counter", lambda: made.now)
    return made


def denied(reason: Reason = Reason.LIMIT, *, wait_us: int = 0, kind: RetryKind = RetryKind.ESTIMATED) -> Loss:
    return Loss(
        index=0, reason=reason, where="g:a:*", limit="concurrency", retry_at_us=NOW_US + wait_us, retry_kind=kind
    )


def request(principal: str = "app", pool: str = "a-model") -> ReserveRequest:
    return ReserveRequest(
        rid=bytes(16), candidates=(Candidate(lanes=("lane",)),), scopes=(), principal=principal, pool=pool
    )


@pytest.mark.parametrize(
    ("wait_us", "stay_us"), [(0, 1_000_000), (500_000, 1_500_000), (60_000_000, 10_000_000), (-5, 1_000_000)]
)
def test_it_is_waited_for_a_second_longer_than_a_caller_was_told_to_wait(
    told: Told, wait_us: int, stay_us: int
) -> None:
    Claims(told, told.do).note(request(), denied(wait_us=wait_us))
    assert told.claims == [("a-model", "app", stay_us)]


@pytest.mark.parametrize(
    "binding",
    [
        denied(Reason.BUDGET), denied(Reason.COOLDOWN), denied(Reason.NEVER_FITS, kind=RetryKind.NEVER),
        denied(Reason.LIMIT, kind=RetryKind.NEVER),
    ],
)  # fmt: skip
def test_only_who_waits_for_room_claims_any(told: Told, binding: Loss) -> None:
    Claims(told, told.do).note(request(), binding)
    assert told.claims == []


def test_who_has_no_name_claims_nothing(told: Told) -> None:
    Claims(told, told.do).note(request(principal=""), denied())
    assert told.claims == []


def test_a_principal_is_told_of_four_times_a_second_in_each_pool_however_often_it_is_denied(told: Told) -> None:
    made = Claims(told, told.do)
    for _ in range(100):
        for who, pool in (("app", "one"), ("app", "two"), ("other", "one")):
            made.note(request(who, pool), denied(Reason.FAIR_SHARE))
    assert [told_of[:2] for told_of in told.claims] == [("one", "app"), ("two", "app"), ("one", "other")]
    told.now += CLAIM_EVERY_US / 1e6
    made.note(request("app", "one"), denied())
    assert len(told.claims) == 4


def test_what_is_known_of_many_principals_is_forgotten_when_it_is_over(told: Told) -> None:
    made = Claims(told, told.do)
    for number in range(claims.KNOWN_MAX):
        made.note(request(str(number)), denied())
    told.now += 1
    made.note(request("one more"), denied())
    assert len(made._again) == 1
