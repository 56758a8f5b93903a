"""What was compared when a request was routed: numbers only, kept with its facts and put into words on demand."""

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

ObjectiveKey = tuple[str, tuple[str, ...], tuple[tuple[str, float | str], ...], tuple[tuple[str, float], ...]]
"""An objective as plain data: primary, secondaries, constraints (money as text), weights."""


class Standing(NamedTuple):
    """One candidate as it was compared. `place`: of its target in an alias. `out_until_us`: its lane is out until then
    (Unix microseconds; 0: it is not). `values`: its measures, in the order of the ranking's `measures`. `scarce`: what
    is left of its quota, from 0 (abundant) to 3 (exhausted). `weight`: its key's."""

    key_id: str
    provider_id: str
    model: str
    place: int
    out_until_us: int
    values: tuple[float, ...]
    scarce: int = 0
    weight: float = 1.0


class Exclusion(NamedTuple):
    """A candidate that a hard constraint excluded: the constraint, its bound, and the candidate's own number.

    `value` None: it is not known, and what is not known cannot keep within a bound.
    """

    key_id: str
    provider_id: str
    model: str
    constraint: str
    bound: float
    value: float | None


class Barred(NamedTuple):
    """A candidate that a policy refused, and why in words."""

    key_id: str
    provider_id: str
    model: str
    policy_id: str
    why: str


class Ranking(msgspec.Struct, kw_only=True, omit_defaults=True, gc=False):
    """Candidates in the order in which they were offered to the ledger.

    `ranked`: how many of the measures, from the front, ranked them; 0: turns alone. `equals`: how many at the head were
    equally good and took turns. `expected_nanousd`: what this request was expected to cost with each, -1 where that is
    not known. `cached_tokens`: what each was expected to have cached of it; () where nobody had anything. `sticky`:
    index of the candidate that was put first for that, else -1, and what it was to save.
    """

    objective: ObjectiveKey
    measures: tuple[str, ...]
    standings: list[Standing]
    ranked: int = 0
    equals: int = 0
    excluded: list[Exclusion] = msgspec.field(default_factory=list)
    expected_nanousd: tuple[int, ...] = ()
    sticky: int = -1
    cached_tokens: tuple[int, ...] = ()
    saved_nanousd: int = 0

    def but(self, places: Sequence[int]) -> "Ranking":
        """The same of the candidates at these places alone."""
        return msgspec.structs.replace(
            self, standings=[self.standings[at] for at in places], equals=sum(at < self.equals for at in places),
            expected_nanousd=tuple(self.expected_nanousd[at] for at in places) if self.expected_nanousd else (),
            cached_tokens=tuple(self.cached_tokens[at] for at in places) if self.cached_tokens else (),
            sticky=places.index(self.sticky) if self.sticky in places else -1,
        )  # fmt: skip

    @classmethod
    def nobody(cls, objective: ObjectiveKey) -> "Ranking":
        """The ranking of a request that nobody may serve."""
        return cls(objective=objective, measures=(), standings=[])
