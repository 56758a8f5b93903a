"""However late settlements come: what was really used, counted when it was admitted, never exceeds the bucket.

The proof is a second bucket, written here, that knows from the start what each request will really use.
"""

import random
from fractions import Fraction

import pytest

from apikeyrouter.domain.models.accounting import Admission
from tests.ledger.support import MINUTE, SECOND, Clock, bucket, cost, lane, local_cell, used, wish

HISTORIES = 25
REQUESTS = 60
BUCKETS = [(100, MINUTE, 100), (7, SECOND, 40), (1_499_977, 1440 * MINUTE, 90)]
"""Amount, period and burst; the last needs ticks of more than a microsecond."""


@pytest.mark.parametrize(("amount", "period_us", "burst"), BUCKETS)
async def test_a_late_settlement_never_mints_what_others_can_use(amount: int, period_us: int, burst: int) -> None:
    given_back = 0
    for seed in range(HISTORIES):
        draw, clock = random.Random(seed), Clock()
        cell = await local_cell(lane("lane", bucket(amount, period_us, burst=burst, name="tpm")), clock=clock)
        real: list[tuple[int, int]] = []
        waiting: list[tuple[bytes, int]] = []
        fills_us = burst * period_us // amount
        for _ in range(REQUESTS):
            clock.advance(draw.choice([0, 1, fills_us // 50, fills_us // 7, fills_us // 2]))
            held = draw.randint(1, burst)
            actual = draw.choice([0, held // 3, held])
            asked = wish(charge=cost(0, tokens=held), lease_us=draw.choice([SECOND, 60 * MINUTE]))
            if isinstance(await cell.reserve(asked), Admission):
                real.append((clock.now_us, actual))
                waiting.append((asked.rid, actual))
                given_back += held - actual
            while waiting and draw.random() < 0.5:
                rid, tokens = waiting.pop(draw.randrange(len(waiting)))
                await cell.settle(used(rid, tokens=tokens))
        assert fullest(real, Fraction(amount, period_us)) <= burst, f"seed {seed}"
    assert given_back > 0


def fullest(arrivals: list[tuple[int, int]], rate: Fraction) -> Fraction:
    """The highest level of a bucket that counts each arrival as what it really used."""
    level, highest, at_us = Fraction(0), Fraction(0), 0
    for now_us, amount in arrivals:
        level = max(Fraction(0), level - (now_us - at_us) * rate) + amount
        highest, at_us = max(highest, level), now_us
    return highest
