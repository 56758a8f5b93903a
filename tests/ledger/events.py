"""What may happen to a cell: calls, good and bad, and what befalls its store and its clock."""

import struct
from dataclasses import dataclass

from apikeyrouter.infrastructure.ledger.engine import Argument

__all__ = ["WRONG_CALLS", "Call", "Event", "Flush", "Offer", "Schema", "Wind", "Wish", "doubles", "used_words"]

HOUR_US = 3_600_000_000


@dataclass(frozen=True, slots=True)
class Call:
    """One transition."""

    name: str
    args: list[Argument]
    pool: str = ""


@dataclass(frozen=True, slots=True)
class Offer:
    """A candidate: lanes, scopes of its own, and the number of its charge."""

    lanes: tuple[str, ...] = ("free",)
    own: tuple[str, ...] = ()
    charge: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What a caller asks to have held, good or bad, and the words that say so."""

    rid: bytes = b"r:wrong"
    version: int = 0
    lease_us: float = 1
    principal: str = ""
    weight: float = 1
    pool: str = ""
    shared: tuple[str, ...] = ()
    charges: tuple[tuple[float, ...], ...] = ((1, 1, 1, 1, 1),)
    offers: tuple[Offer, ...] = (Offer(),)
    calls: float = 1

    def reserve(self) -> Call:
        """Hold it."""
        return Call("reserve", self._words(self.weight, self.principal), self.pool)

    def reassert(self, index: float = 0) -> Call:
        """Book it again."""
        return Call("reassert", self._words(index, ""))

    def _words(self, weight: float, principal: str) -> list[Argument]:
        first, *others = self.offers
        counts = (len(first.lanes), len(self.shared), len(first.own))
        head = (self.version, self.lease_us, weight, *counts, self.calls)
        numbers = (*head, *(n for charge in self.charges for n in charge))
        fields = [f"l:{name}" for name in first.lanes] + [f"s:{name}" for name in (*self.shared, *first.own)]
        words: list[Argument] = [self.rid, principal, doubles(*numbers), *fields]
        rest = "".join(
            "".join(f"{word}\n" for word in (o.charge, *(f"l:{n}" for n in o.lanes), *(f"s:{n}" for n in o.own), ""))
            for o in others
        )
        return [*words, rest] if others else words


def used_words(rid: bytes, *numbers: float) -> list[Argument]:
    """One settlement: input, output, cost, outcome, failed lanes, latency."""
    return [rid, doubles(*numbers)]


def doubles(*numbers: float) -> bytes:
    """Numbers as the scripts read them."""
    return struct.pack(f"<{len(numbers)}d", *numbers)


@dataclass(frozen=True, slots=True)
class Wind:
    """The clock moves to this instant, forwards or backwards."""

    now_us: int


@dataclass(frozen=True, slots=True)
class Flush:
    """The store forgets: everything (scripts are kept), or only its scripts."""

    scripts_only: bool


@dataclass(frozen=True, slots=True)
class Schema:
    """The cell is another version's, or ours again."""

    ours: bool


Event = Call | Wind | Flush | Schema


_WRONG = b"r:wrong"
_TIGHT = Offer(("key/1",))
"""A lane that is often full, so that others are read."""
WRONG_CALLS = (
    Call("open", [-1]), Call("open", ["x"]), Call("configure", ["put", 0, "l:x", 2, 5]),
    Call("configure", ["put", 0, "l:x", 0]), Call("configure", ["put", "-", "l:x", 1, 5]),
    Call("configure", ["stage", 1, "l:x", 1, 2**53]), Call("reserve", [_WRONG]), Call("reserve", [_WRONG, "", ""]),
    Call("reserve", [_WRONG, "", doubles(0, 1, 1, 1, 0, 0, 1), "l:free"]), Call("reserve", [_WRONG, "", b"123456789"]),
    Call("reserve", [_WRONG, "", doubles(0, 1, 1, 2, 0, 0, 1, 1, 1, 1, 1, 1), "l:free"]),
    Wish(calls=0).reserve(), Wish(calls=-1).reserve(), Wish(calls=0).reassert(),
    Wish(weight=0).reserve(), Wish(lease_us=-1).reserve(), Wish(lease_us=1.5).reserve(),
    Wish(lease_us=float("nan")).reserve(), Wish(lease_us=float("inf")).reserve(), Wish(weight=2**53).reserve(),
    Wish(shared=tuple("abcdefghi")).reserve(), Wish(offers=(Offer(tuple("abcdefg")),)).reserve(),
    Wish(offers=(Offer(own=tuple("abcde")),)).reserve(), Wish(offers=(Offer(()),)).reserve(),
    Wish(charges=((1, 1, 1, -2, 1),)).reserve(), Wish(charges=((1, -1, 1, 1, 1),)).reserve(),
    Wish(charges=((1, 1, 0.5, 1, 1),)).reserve(), Wish(charges=()).reserve(),
    *(
        Wish(offers=(_TIGHT, wrong)).reserve()
        for wrong in (
            Offer(tuple("abcdefg")), Offer(own=tuple("abcde")), Offer(()), Offer(charge=0), Offer(charge=2),
            Offer(charge=-1), Offer(charge=2**60),
        )
    ),
    Wish(offers=(_TIGHT,) * 65).reserve(), Call("reserve", [*Wish(offers=(_TIGHT,)).reserve().args, "no text"]),
    Call("reserve", [*Wish(offers=(_TIGHT,)).reserve().args, "1\nl:free\n\n1"]),
    Call("settle", used_words(_WRONG, 1, 1, -2, 0, 0, 0)), Call("settle", used_words(_WRONG, 1, 1, 1, 0, 0)),
    Call("settle", []), Call("settle", [_WRONG]), Call("settle", used_words(_WRONG, 1, 1, 1, 0, 0, 0, 0)),
    *(
        Call("settle", used_words(_WRONG, 1, 1, 1, 0, 0, 0, *slab))
        for slab in ([1] * 8, [1] * 10, [1, 1, 1, 1, -1, 1, 1, 1, 1], [1] * 8 + [2], [1] * 7 + [20, 17])
    ),
    Call("settle", used_words(_WRONG, 2**53, 1, 1, 0, 0, 0)), Call("settle", used_words(_WRONG, 1, 1, 1, 0, -1, 0)),
    Call("settle", used_words(_WRONG, 1, 1, 1, 0, 0, 0) * 33),
    Call("release", [_WRONG, 0, -1, 0]), Call("release", [_WRONG, 0, 0, 1.5]),  # type: ignore[list-item]
    Wish(charges=((1, 1, 1, 1, 0.5),)).reassert(), Wish().reassert(-1), Call("reassert", [_WRONG]), Call("renew", [1]),
    Call("renew", [-1, _WRONG]), Call("renew", [1, *(b"r:%d" % n for n in range(129))]), Call("acknowledge", []),
    Call("acknowledge", [b"r:%d" % n for n in range(129)]), Call("record", ["l:free", -2]),
    Call("record", ["l:free", 0, 1, 1, 1]), Call("record", ["l:free", 0, *([1] * 9 * 9)]), Call("snapshot", [-1]),
    Call("snapshot", [0, *("l:free",) * 257]), Call("forgot", []), Call("forgot", [1, 2]), Call("forgot", [1, -2, 3]),
    Call("claim", []), Call("claim", ["p"]), Call("claim", ["", 1]), Call("claim", ["p", -1]),
    Call("claim", ["p", "x"]),     Call("forgot", ["x", 2, 3]), Call("forgot", [1, 2, HOUR_US + 1]),
    Call("grant", ["s:total"]), Call("grant", ["s:total", 0, 0, 0, 0, 0, 0]), Call("grant", ["s:total", 64, *[0] * 5]),
    Call("grant", ["s:total", 1, 0, 1, 2, 0, 0]), Call("grant", ["s:total", 1, 0, 0, 0, -1, 0]),
    Call("fund", ["s:funded"]), Call("fund", ["s:funded", 0, 1, 2, 0]), Call("fund", ["s:funded", 0, 1, 0, "x"]),
    Call("audit", [1, 0, 257]), Call("audit", [1, -1, 5]),
)  # fmt: skip
"""Calls that the typed ledger would not make."""
