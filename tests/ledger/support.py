"""What the ledger's tests share: a clock that tests move, short builders, and looks at a cell's raw state."""

from collections.abc import Mapping
from itertools import count
from typing import cast

import redis

from apikeyrouter.domain.models.accounting import (
    Admission,
    Candidate,
    Charge,
    Denial,
    LaneConfig,
    Limit,
    LimitKind,
    Metric,
    Outcome,
    Period,
    ReserveRequest,
    ScopeConfig,
    Settlement,
)
from apikeyrouter.infrastructure.ledger.ledger import ScriptLedger
from apikeyrouter.infrastructure.ledger.local_engine import LocalEngine

SECOND = 1_000_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR
START_US = 1_800_000_000_000_000
"""2027-01-15 08:00:00 UTC: the beginning of an hour, a minute and a fairness epoch."""
NAMESPACE = "test"
CELL = "main"
STRUCTURES = ("C0", "C1", "L", "D", "S", "G", "U")
Image = dict[str, dict[bytes, bytes]]

_rids = count(1)


class Clock:
    """Integer microseconds that pass when a test says so."""

    def __init__(self, now_us: int = START_US) -> None:
        self.now_us = now_us

    def __call__(self) -> int:
        return self.now_us

    def advance(self, by_us: int) -> None:
        """Let time pass."""
        self.now_us += by_us


class LocalCell(ScriptLedger):
    """A ledger in this process over a clock of the test's."""

    engine: LocalEngine

    def __init__(self, clock: Clock | None = None) -> None:
        self.time = clock or Clock()
        super().__init__(LocalEngine(namespace=NAMESPACE, cell=CELL, clock_us=self.time))

    def image(self) -> Image:
        """Everything that the cell holds, by structure."""
        return local_image(self.engine)

    async def admit(self, request: ReserveRequest) -> Admission:
        """Reserve, which must be admitted."""
        return admitted(await self.reserve(request))

    async def deny(self, request: ReserveRequest) -> Denial:
        """Reserve, which must be denied."""
        return denied(await self.reserve(request))


async def local_cell(*configs: LaneConfig | ScopeConfig, clock: Clock | None = None) -> LocalCell:
    """An open cell in this process with these lanes and scopes."""
    cell = LocalCell(clock)
    await cell.open()
    await configure(cell, *configs)
    return cell


async def configure(ledger: ScriptLedger, *configs: LaneConfig | ScopeConfig) -> None:
    """Put lanes and scopes."""
    lanes = [config for config in configs if isinstance(config, LaneConfig)]
    scopes = [config for config in configs if isinstance(config, ScopeConfig)]
    await ledger.put(lanes=lanes, scopes=scopes)


def local_image(engine: LocalEngine) -> Image:
    """Everything that a cell in this process holds, by structure."""
    look = engine._lua.globals()
    peek, ranks = look[b"peek"], look[b"scores"]
    image: Image = {}
    for name in STRUCTURES:
        key = cell_key(name).encode()
        fields = {bytes(field): bytes(value) for field, value in peek(key).items()}
        scores = {bytes(member): repr(float(score)).encode() for member, score in ranks(key).items()}
        image[name] = fields | scores
    return image


def redis_image(client: "redis.Redis") -> Image:
    """Everything that a cell on a server holds, by structure; without the clock that the test itself sets."""
    image: Image = {}
    for name in STRUCTURES:
        key = cell_key(name)
        if name in ("D", "S", "G"):
            scores = cast("list[tuple[bytes, float]]", client.zrange(key, 0, -1, withscores=True))
            image[name] = {member: repr(score).encode() for member, score in scores}
        else:
            image[name] = cast("dict[bytes, bytes]", client.hgetall(key))
    image["L"].pop(b"\nvirtual_now", None)
    return image


def whole_image(client: "redis.Redis") -> dict[bytes, object]:
    """Every key of a server with what it holds. What a server dumps of it would not do: a hash may change its order."""
    read = {b"hash": client.hgetall, b"string": client.get}
    return {
        key: read[kind](key) if (kind := client.type(key)) in read else client.zrange(key, 0, -1, withscores=True)
        for key in client.scan_iter()
    }


def cell_key(name: str) -> str:
    """The full key of one structure of the tests' cell."""
    return f"{NAMESPACE}:{{c:{CELL}}}:{name}"


def set_virtual_now(client: "redis.Redis", now_us: int) -> None:
    """Set the clock of a cell whose scripts were built with virtual time."""
    client.hset(cell_key("L"), "\nvirtual_now", str(now_us))


# --- builders ------------------------------------------------------------------------------------------------------


def bucket(
    amount: int, period_us: int = MINUTE, *, burst: int | None = None, name: str = "rpm", metric: Metric | None = None
) -> Limit:
    """A bucket without headroom; `tpm` counts tokens, `rpm` requests."""
    return Limit(
        name=name, metric=metric or _METRICS[name], kind=LimitKind.BUCKET, amount=amount, period_us=period_us,
        burst=burst,
    )  # fmt: skip


def window(amount: int, period_us: int = MINUTE, *, name: str = "rpm") -> Limit:
    """A fixed window."""
    return Limit(name=name, metric=_METRICS[name], kind=LimitKind.FIXED, amount=amount, period_us=period_us)


def sliding(amount: int, period_us: int = MINUTE, *, name: str = "rpm") -> Limit:
    """A sliding window."""
    return Limit(name=name, metric=_METRICS[name], kind=LimitKind.SLIDING, amount=amount, period_us=period_us)


def calendar(amount: int, period: Period = Period.DAILY, *, timezone: str = "UTC", name: str = "rpd") -> Limit:
    """A calendar window."""
    return Limit(
        name=name, metric=_METRICS[name], kind=LimitKind.CALENDAR, amount=amount, calendar=period, timezone=timezone
    )


def in_flight(amount: int) -> Limit:
    """A limit on what is under way."""
    return Limit(name="concurrency", metric=Metric.CONCURRENCY, kind=LimitKind.CONCURRENCY, amount=amount)


_METRICS: Mapping[str, Metric] = {
    "rpm": Metric.REQUESTS, "rpd": Metric.REQUESTS, "rps": Metric.REQUESTS, "rph": Metric.REQUESTS,
    "tpm": Metric.TOKENS, "tpd": Metric.TOKENS, "itpm": Metric.INPUT_TOKENS, "otpm": Metric.OUTPUT_TOKENS,
    "spend": Metric.SPEND,
}  # fmt: skip


def lane(id: str = "lane", *limits: Limit, fair: bool = False) -> LaneConfig:
    """A lane without a breaker."""
    return LaneConfig(id=id, limits=limits, fair=fair)


def budget(id: str = "budget", limit: int = 1000, *, hard: bool = True, period: Period = Period.TOTAL) -> ScopeConfig:
    """A budget with the default rules."""
    return ScopeConfig(id=id, limit_nanousd=limit, hard=hard, period=period)


def cost(nanousd: int, *, bound: int | None = None, tokens: int = 0, output: int = 0) -> Charge:
    """A charge of this many nano-dollars, expected and bound alike unless told."""
    return Charge(
        input_tokens=tokens, output_tokens=output, expected_nanousd=nanousd,
        bound_nanousd=nanousd if bound is None else bound,
    )  # fmt: skip


def new_rid() -> bytes:
    """A reservation id that no test has used yet."""
    return next(_rids).to_bytes(16, "big")


def wish(
    *lanes: str,
    scopes: tuple[str, ...] = (),
    charge: Charge | None = None,
    rid: bytes | None = None,
    lease_us: int = 30 * SECOND,
    principal: str = "",
    weight: int = 1,
    pool: str = "",
    config_version: int = 0,
) -> ReserveRequest:
    """A reserve of one candidate over these lanes (default: `lane`)."""
    candidate = Candidate(lanes=lanes or ("lane",), charge=charge or Charge())
    return ReserveRequest(
        rid=rid or new_rid(), candidates=(candidate,), scopes=scopes, lease_us=lease_us, principal=principal,
        weight=weight, pool=pool, config_version=config_version,
    )  # fmt: skip


def used(rid: bytes, *, tokens: int = 0, output: int = 0, cost: int = 0, outcome: Outcome = Outcome.SUCCESS,
         failed_lanes: int = 0) -> Settlement:  # fmt: skip
    """A settlement."""
    return Settlement(
        rid=rid, input_tokens=tokens, output_tokens=output, cost_nanousd=cost, outcome=outcome,
        failed_lanes=failed_lanes,
    )  # fmt: skip


def admitted(answer: Admission | Denial) -> Admission:
    """The answer, which must be an admission."""
    assert isinstance(answer, Admission), answer
    return answer


def denied(answer: Admission | Denial) -> Denial:
    """The answer, which must be a denial."""
    assert isinstance(answer, Denial), answer
    return answer
