"""What the ledger counts: limits, lanes, scopes, candidates, and its answers.

Units are fixed here once: amounts are integers (requests, tokens, nano-dollars), times are integer
microseconds of the ledger's own clock. Nothing in this file does I/O.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import overload

import msgspec

from apikeyrouter.domain.models.system_error import LedgerConfigError

AMOUNT_MAX = 2**53 - 1
"""Largest integer a Lua number holds exactly; larger amounts are refused, never rounded."""

CANDIDATES_MAX = 64
LANES_PER_CANDIDATE_MAX = 6
SHARED_SCOPES_MAX = 8
SCOPES_PER_CANDIDATE_MAX = 4
LIMITS_PER_LANE_MAX = 8
ID_BYTES_MAX = 200
UNPRICED = -1
"""A cost that is not known. Never 0: a scope's `unpriced` rule says what happens."""


class Metric(StrEnum):
    """What a limit counts."""

    REQUESTS = "requests"
    TOKENS = "tokens"
    INPUT_TOKENS = "input_tokens"
    OUTPUT_TOKENS = "output_tokens"
    SPEND = "spend"
    CONCURRENCY = "concurrency"


class LimitKind(StrEnum):
    """How a limit refills. `accounting.md` §2.5 says which provider has which."""

    BUCKET = "bucket"
    FIXED = "fixed"
    CALENDAR = "calendar"
    SLIDING = "sliding"
    CONCURRENCY = "concurrency"


class Period(StrEnum):
    """A calendar period, in the time zone of whoever declares it."""

    HOURLY = "hourly"
    DAILY = "daily"
    WEEKLY = "weekly"
    MONTHLY = "monthly"
    TOTAL = "total"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """One limit of a lane, e.g. 500 requests a minute as a bucket.

    `name` is what a denial calls it: rpm, tpm, itpm, otpm, rpd, tpd, spend, concurrency (or any other short name).
    `amount` per `period_us` (buckets, fixed, sliding) or per `calendar` period in `timezone` (calendar), or in flight
    (concurrency). `burst` is the bucket's capacity (default `amount`); `headroom` (0 … 0.5) is taken off it.
    """

    name: str
    metric: Metric
    kind: LimitKind
    amount: int
    period_us: int = 60_000_000
    burst: int | None = None
    headroom: float = 0.0
    calendar: Period = Period.DAILY
    timezone: str = "UTC"
    refund: bool = True
    """Whether tokens held but not used come back at settlement. False where the provider keeps its estimate."""
    slabs: bool = False
    """Whether a worker may hold a second of requests at once. Of a bucket so much less is admitted at once."""


_QUOTA_UNITS = (Metric.TOKENS, Metric.REQUESTS, Metric.INPUT_TOKENS, Metric.OUTPUT_TOKENS)
LIMIT_NAMES = (
    *("rpm", "tpm", "itpm", "otpm", "rpd", "tpd", "spend", "concurrency", "rps", "rph", "tph", "itpd", "otpd"),
    *(f"{unit}_{period}{turn}" for unit in _QUOTA_UNITS for period in Period for turn in ("", "~")),
)
"""Names a limit may have; its position + 1 is its code in the scripts. Quotas have two: a reset takes the other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Breaker:
    """Circuit breaker of a lane: opens after `failures` in a row within `window_us`, then one probe fleet-wide.

    It stays open for `open_us`, doubled at each failed probe up to `open_max_us`.
    """

    failures: int = 5
    window_us: int = 10_000_000
    open_us: int = 5_000_000
    open_max_us: int = 300_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneConfig:
    """What a provider meters (or one key's own caps). No limits: *unlearned*, unlimited until a header reveals one."""

    id: str
    limits: tuple[Limit, ...] = ()
    breaker: Breaker | None = None
    fair: bool = False
    """Whether principals share this lane fairly when its headroom is scarce."""
    set_aside: float = 0.0
    """Part of each limit (0 … 0.5) that workers divide among them for when the store is away, and that the ledger does
    not admit. 0: closed then."""


class UnpricedRule(StrEnum):
    """What a scope does with a request whose cost cannot be bounded or priced."""

    DENY = "deny"
    FLAT = "flat"
    METER = "meter"


class SuspenseRule(StrEnum):
    """What becomes of the money of an expired reservation, after `suspense_after_us`."""

    CHARGE = "charge"
    REFUND = "refund"
    HOLD = "hold"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScopeConfig:
    """A budget. Under `hard`, settled + held + suspense ≤ limit after every admission."""

    id: str
    limit_nanousd: int
    hard: bool
    period: Period
    timezone: str = "UTC"
    unpriced: UnpricedRule = UnpricedRule.DENY
    flat_nanousd: int = 0
    suspense: SuspenseRule = SuspenseRule.CHARGE
    suspense_after_us: int = 3_600_000_000
    bounded: bool = False
    """Whether requests pass while the store is away. A soft scope's are booked when it is back, a hard one's are paid
    out of what workers hold of it for that."""
    set_aside: float = 0.0
    """The part of a bounded hard scope that workers hold together for when the store is away."""


class Charge(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Amounts of one attempt. `expected` for ranking and lanes, `bound` for hard scopes; UNPRICED where unknown.

    `metered_tokens` is what limits on all tokens count at arrival (input plus the output cap at some providers);
    None: input plus output.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    metered_tokens: int | None = None
    expected_nanousd: int = 0
    bound_nanousd: int = 0


class Words(msgspec.Struct, frozen=True):
    """Where a candidate is counted, checked, and as the scripts read it: the fields of lanes and scopes."""

    ids: tuple[tuple[str, ...], tuple[str, ...]]
    """The lanes and scopes that they were made of."""
    lanes: tuple[bytes, ...]
    scopes: tuple[bytes, ...]
    text: bytes
    """All of them, each with an end of line, as they stand when the candidate is not the first."""


class Candidate(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One way to serve a request: the lanes it is metered in, its own scopes, and what it is expected to take."""

    lanes: tuple[str, ...]
    scopes: tuple[str, ...] = ()
    words: Words | None = None
    """Lanes and scopes as the ledger sends them (`place_words`), where they were made in advance."""
    charge: Charge = msgspec.field(default_factory=Charge)


def candidate_at(words: Words, charge: Charge) -> Candidate:
    """A candidate that is counted there, and takes that."""
    return Candidate(lanes=words.ids[0], scopes=words.ids[1], words=words, charge=charge)


class Places(msgspec.Struct, frozen=True, eq=False):
    """Where some candidates are counted that all take the same: made once, for all requests that are offered them."""

    words: tuple[Words, ...]
    scopes: tuple[tuple[str, ...], ...]
    """Their own scopes, each combination once."""
    text: bytes
    """All but the first, as the scripts read them."""

    @classmethod
    def of(cls, words: Iterable[Words]) -> "Places":
        """Of candidates in this order."""
        first, *others = words
        scopes = tuple(dict.fromkeys(each.ids[1] for each in (first, *others)))
        return cls((first, *others), scopes, b"".join([b"1\n%b\n" % each.text for each in others]))


class Alike(Sequence[Candidate]):
    """Candidates that take the same of a request, in places that were made in advance."""

    __slots__ = ("charge", "places")

    def __init__(self, places: Places, charge: Charge) -> None:
        self.places, self.charge = places, charge

    def __len__(self) -> int:
        return len(self.places.words)

    @overload
    def __getitem__(self, at: int) -> Candidate: ...

    @overload
    def __getitem__(self, at: slice) -> tuple[Candidate, ...]: ...

    def __getitem__(self, at: int | slice) -> Candidate | tuple[Candidate, ...]:
        if isinstance(at, slice):
            return tuple([candidate_at(words, self.charge) for words in self.places.words[at]])
        return candidate_at(self.places.words[at], self.charge)


def check_id(value: str, *, what: str) -> str:
    """`value` if it can name a lane or a scope. Errors: LedgerConfigError."""
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        size = 0  # half a character
    if not 0 < size <= ID_BYTES_MAX or "\n" in value:
        raise LedgerConfigError(f"{what} id must be one line of 1 to {ID_BYTES_MAX} bytes, got {value!r}")
    return value


def check_names(names: tuple[str, ...], *, what: str) -> None:
    """Each counts once for a request, and has a name that a record can hold. Errors: LedgerConfigError."""
    for name in names:
        check_id(name, what=what)
    if len(set(names)) < len(names):
        raise LedgerConfigError(f"a {what} is named twice: {', '.join(names)}")


def place_words(lanes: tuple[str, ...], scopes: tuple[str, ...]) -> Words:
    """A candidate's lanes and scopes as the scripts read them. Errors: LedgerConfigError: too many, or none can be."""
    if not 1 <= len(lanes) <= LANES_PER_CANDIDATE_MAX or len(scopes) > SCOPES_PER_CANDIDATE_MAX:
        raise LedgerConfigError(
            f"a candidate has 1 to {LANES_PER_CANDIDATE_MAX} lanes and at most {SCOPES_PER_CANDIDATE_MAX} scopes"
        )
    check_names(lanes, what="lane")
    check_names(scopes, what="scope")
    lane_fields = tuple(f"l:{id}".encode() for id in lanes)
    scope_fields = tuple(f"s:{id}".encode() for id in scopes)
    text = b"".join(b"%b\n" % field for field in (*lane_fields, *scope_fields))
    return Words(ids=(lanes, scopes), lanes=lane_fields, scopes=scope_fields, text=text)


CELL_AT = 9
"""Which byte of a reservation id is the number of its cell."""


def rid_in(cell: int, rid: bytes) -> bytes:
    """A reservation id as one of that cell."""
    return rid[:CELL_AT] + bytes((cell,)) + rid[CELL_AT + 1 :]


class ReserveRequest(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Hold the first candidate that has room in every lane and every scope, or nothing.

    `rid` is made by the caller, one per attempt, and makes every transition idempotent; its byte `CELL_AT` is its cell.
    `config_version` 0 means "whatever is active"; otherwise a reserve made under another configuration is refused as
    STALE_CONFIG.
    """

    rid: bytes
    candidates: Sequence[Candidate]
    scopes: tuple[str, ...] = ()
    lease_us: int = 30_000_000
    config_version: int = 0
    principal: str = ""
    weight: int = 1
    pool: str = ""
    calls: int = 1
    """A slab is for many calls: its charges are of all of them."""


class Reason(IntEnum):
    """Why a candidate, or the whole request, was not admitted. Values are the scripts' codes."""

    LIMIT = 1
    COOLDOWN = 2
    BREAKER_OPEN = 3
    PROBE_IN_FLIGHT = 4
    BUDGET = 5
    UNPRICED = 6
    FAIR_SHARE = 7
    NEVER_FITS = 8
    CLOCK_SUSPECT = 9
    STORE_FORGOT = 10


class RetryKind(IntEnum):
    """How far a retry time can be trusted."""

    EXACT = 1
    ESTIMATED = 2
    NEVER = 3


class Stamp(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Where in the cell's history an answer stands. A `seq` that goes back proves lost writes (law 9)."""

    epoch: int
    seq: int
    now_us: int
    config_version: int


class Loss(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Why one candidate lost: `where` is the id of the binding lane or scope, `limit` the name of its binding limit."""

    index: int
    reason: Reason
    where: str
    limit: str
    retry_at_us: int
    retry_kind: RetryKind


class Admission(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Held: candidate `index` (into the request's candidates) until `deadline_us`, renewable."""

    stamp: Stamp
    rid: bytes
    index: int
    deadline_us: int
    probe: bool
    soft_exceeded: tuple[str, ...]
    losses: tuple[Loss, ...]
    replayed: bool
    standby: bool = False
    """Admitted while the store is away: it has not heard of it."""
    slab: bytes = b""
    """Admitted in process: it has a part of the reservation with this id, which holds for many calls."""


class Denial(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Nothing was held. `binding` is the loss that ends soonest; `losses` has one entry per candidate."""

    stamp: Stamp
    binding: Loss
    losses: tuple[Loss, ...]


class State(IntEnum):
    """States of a reservation. OPEN and SUSPENDED ones still count; the others are tombstones."""

    OPEN = 1
    SUSPENDED = 2
    SETTLED = 3
    RELEASED = 4
    CANCELLED = 5
    EXPIRED = 6


class Outcome(IntEnum):
    """What an attempt says about the health of its lanes."""

    NEUTRAL = 0
    SUCCESS = 1
    FAILURE = 2


class SlabUse(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What stays counted of a slab's calls where a limit refunds nothing (of each the larger of what it began with and
    what it used), the metered tokens that they used, and how they ended. What no call took comes back."""

    calls: int
    metered_tokens: int
    input_tokens: int
    output_tokens: int
    cost_nanousd: int
    metered_used: int
    succeeded: int
    failed: int
    failed_in_a_row: int
    """At the end: what a breaker counts."""


class Settlement(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What was really used. `cost_nanousd` UNPRICED when the price is unknown."""

    rid: bytes
    input_tokens: int
    output_tokens: int
    cost_nanousd: int
    outcome: Outcome = Outcome.SUCCESS
    failed_lanes: int = 0
    """Bit i set: the failure speaks for the candidate's lane i (with Outcome.FAILURE)."""
    latency_us: int = 0
    estimated: bool = False
    slab: SlabUse | None = None
    """Of a slab: the sums of its calls are settled."""


class Result(IntEnum):
    """How a transition after reserve ended. Values are the scripts' codes."""

    OK = 1
    REPLAYED = 2
    CONFLICT = 3
    UNMATCHED = 4


class Transition(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Answer to settle, release, cancel, reassert: the result and the state the reservation is in now."""

    stamp: Stamp
    result: Result
    state: State | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitState:
    """One limit as the snapshot shows it. `used` of `capacity`; `full_again_us` when all of it is free again."""

    name: str
    metric: Metric
    kind: LimitKind
    capacity: int
    used: int
    reset_at_us: int
    learned: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneState:
    """A lane as the snapshot shows it. Health counts decay (halved every minute); latency is an EWMA."""

    id: str
    seq: int
    in_flight: int
    blocked_until_us: int
    breaker: str
    breaker_until_us: int
    successes: int
    failures: int
    latency_us: int
    requests_total: int
    failures_total: int
    last_used_us: int
    limits: tuple[LimitState, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScopeState:
    """A budget as the snapshot shows it. All amounts in nano-dollars."""

    id: str
    seq: int
    limit: int
    hard: bool
    settled: int
    held: int
    suspense: int
    unpriced: int
    unpriced_requests: int
    late: int
    starts_at_us: int
    resets_at_us: int
    granted: int = 0
    """Of what is free, what lies in other cells than the budget's home (`docs/topologies.md`)."""
    cells: tuple[tuple[str, "ScopeState"], ...] = ()
    """The same by the names of the cells, where there are several; `limit`: what that cell may spend."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What a provider said about one limit of a lane in its headers (already parsed, units as in Limit).

    `remaining` None: not told. `limit` 0: not told. `reset_us`: time until full (bucket) or until the window ends.
    """

    name: str
    metric: Metric
    kind: LimitKind
    period_us: int
    limit: int = 0
    remaining: int | None = None
    reset_us: int = 0
