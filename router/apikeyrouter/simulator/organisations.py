"""Organisations, their keys, and who is admitted: every limit that applies says yes, or nothing is taken."""

from __future__ import annotations

import random
from collections import OrderedDict
from typing import Any, NamedTuple

from apikeyrouter.simulator.config import (
    KeyConfig,
    LatencyConfig,
    OrganisationConfig,
    PriceConfig,
    exact_price,
    full_keys,
)
from apikeyrouter.simulator.limits import NEVER, InFlight
from apikeyrouter.simulator.meters import ConcurrencyMeter, Meter, Metric, Owner, build_meters
from apikeyrouter.simulator.prices import DEFAULT_PRICES, Price, Usage, cost_nanousd
from apikeyrouter.simulator.report import Tally, sum_tallies

__all__ = ["Admission", "Charge", "Denial", "Key", "Organisation"]

OUTPUT_COUNTED_AS_PRODUCED = frozenset({"anthropic", "mistral"})
"""Dialects whose caps are free: output counts against token limits when it is there."""
MODELS_REMEMBERED_MAX = 1_000
CACHED_PREFIXES_MAX = 4_096
UNPRICED = Price(0, 0, 0, 0)


class Charge(NamedTuple):
    """What an arrival is charged at once. Of output and spend, known only later, one unit must be left."""

    tokens: int
    input_tokens: int


class Denial(NamedTuple):
    """Why an arrival was refused: the limit that binds longest, and the ns until it would have room.

    ``wait_ns`` is :data:`NEVER` if the request is larger than the limit; of concurrency nothing is known (0).
    """

    meter: Meter | ConcurrencyMeter
    wait_ns: int
    requested: int
    remaining: int


class Meters(NamedTuple):
    """The limiters that apply to one key and model."""

    timed: tuple[Meter, ...]
    concurrency: tuple[ConcurrencyMeter, ...]


class Key:
    """One key of an organisation, with limits of its own and its counters."""

    def __init__(self, config: KeyConfig, organisation: Organisation, *, now_ns: int) -> None:
        self.id = config.id or config.key
        self.material = config.key
        self.models = config.models
        self.disabled = config.disabled
        self.organisation = organisation
        self.tally = Tally()
        self.meters, self.concurrency = build_meters(
            config.limits, owner=Owner("key", self.id), now_ns=now_ns, dialect=organisation.dialect
        )
        self._by_model: dict[str, Meters] = {}

    def meters_for(self, model: str) -> Meters:
        """The limiters of the key and its organisation that count requests for ``model``."""
        found = self._by_model.get(model)
        if found is None:
            if len(self._by_model) >= MODELS_REMEMBERED_MAX:
                self._by_model.clear()
            found = self._by_model[model] = self._select(model)
        return found

    def forget_selection(self) -> None:
        """The limits have changed."""
        self._by_model.clear()

    def _select(self, model: str) -> Meters:
        owner = self.organisation
        return Meters(
            tuple(meter for meter in [*owner.meters, *self.meters] if meter.covers(model)),
            tuple(meter for meter in [*owner.concurrency, *self.concurrency] if meter.covers(model)),
        )


class Admission:
    """An admitted request: holds its place in flight until :meth:`leave`, and is charged as it produces."""

    __slots__ = ("_key", "_left", "_meters")

    def __init__(self, key: Key, meters: Meters) -> None:
        self._key = key
        self._meters = meters
        self._left = False
        for concurrency in meters.concurrency:
            concurrency.in_flight.enter()
        key.tally.in_flight.enter()
        key.organisation.in_flight.enter()
        key.organisation.total.enter()

    def produce(self, output_tokens: int, now_ns: int) -> None:
        """Count output as it is produced: output limits, and tokens where the cap was free at arrival."""
        metrics: tuple[Metric, ...] = ("output_tokens",)
        if self._key.organisation.dialect in OUTPUT_COUNTED_AS_PRODUCED:
            metrics = ("output_tokens", "tokens")
        for meter in self._meters.timed:
            if meter.metric in metrics:
                meter.take(output_tokens, now_ns)

    def bill(self, usage: Usage, cost: int, now_ns: int) -> None:
        """Count ``cost`` (nano-dollars) against spend limits and write it to the key's counters."""
        self._key.tally.bill(usage, cost)
        for meter in self._meters.timed:
            if meter.metric == "spend":
                meter.take(cost, now_ns)

    def leave(self) -> None:
        """The request has ended; idempotent."""
        if self._left:
            return
        self._left = True
        for concurrency in self._meters.concurrency:
            concurrency.in_flight.leave()
        self._key.tally.in_flight.leave()
        self._key.organisation.in_flight.leave()
        self._key.organisation.total.leave()


class Organisation:
    """What the provider meters: limits shared by all its keys, prices, behaviour."""

    def __init__(
        self,
        config: OrganisationConfig,
        *,
        prices: dict[str, PriceConfig],
        seed: int,
        now_ns: int,
        total: InFlight,
    ) -> None:
        self.id = config.id
        self.dialect = config.dialect
        self.born_ns = now_ns
        self.in_flight = InFlight()
        self.total = total
        self.configure(config)
        self._prices = {
            **DEFAULT_PRICES.get(config.dialect, {}),
            **{model: exact_price(price) for model, price in {**prices, **config.prices}.items()},
        }
        self._random = random.Random(f"{seed}/{config.id}")  # noqa: S311  (a simulation, not a secret)
        self._prefixes: OrderedDict[int, None] = OrderedDict()
        self.responses: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self.meters, self.concurrency = self._build(config, now_ns)
        self.keys = [Key(key, self, now_ns=now_ns) for key in full_keys(config)]

    def configure(self, config: OrganisationConfig) -> None:
        """Behave as ``config`` says from now on (limits and keys excepted)."""
        self.config = config
        charge_rejected = config.charge_rejected
        self.charges_rejected = config.dialect == "openai" if charge_rejected is None else charge_rejected

    def set_limits(self, config: OrganisationConfig, *, now_ns: int) -> None:
        """Replace the organisation's limits by those of ``config``, untouched."""
        self.meters, self.concurrency = self._build(config, now_ns)
        for key in self.keys:
            key.forget_selection()

    def _build(self, config: OrganisationConfig, now_ns: int) -> tuple[list[Meter], list[ConcurrencyMeter]]:
        owner = Owner("organisation", self.id)
        return build_meters(config.limits, owner=owner, now_ns=now_ns, dialect=self.dialect)

    # --- admission
    def admit(self, key: Key, model: str, charge: Charge, now_ns: int) -> Admission | Denial:
        """All limits of the organisation and the key at once: everything is taken, or a :class:`Denial`."""
        meters = key.meters_for(model)
        denial = self._find_denial(meters, charge, now_ns)
        if denial is None:
            for meter in meters.timed:
                meter.take(_at_arrival(meter.metric, charge), now_ns)
            return Admission(key, meters)
        denial.meter.refused += 1
        return denial

    def charge_refused(self, key: Key, model: str, now_ns: int) -> None:
        """A request that did not get in counts against request limits, where this provider does so."""
        if not self.charges_rejected:
            return
        for meter in key.meters_for(model).timed:
            if meter.metric == "requests":
                meter.limit.drain(1, now_ns)

    def _find_denial(self, meters: Meters, charge: Charge, now_ns: int) -> Denial | None:
        worst: Denial | None = None
        for meter in meters.timed:
            amount = _needed(meter.metric, charge)
            wait_ns = meter.limit.wait_ns(amount, now_ns)
            if wait_ns == 0:
                continue
            if wait_ns == NEVER:
                return Denial(meter, NEVER, amount, meter.limit.remaining(now_ns))
            if worst is None or wait_ns > worst.wait_ns:
                worst = Denial(meter, wait_ns, amount, meter.limit.remaining(now_ns))
        if worst is None:
            for concurrency in meters.concurrency:
                if not concurrency.in_flight.has_room():
                    return Denial(concurrency, 0, 1, 0)
        return worst

    # --- money, caches, time
    def cost_nanousd(self, model: str, usage: Usage) -> int:
        """The bill for ``usage`` of ``model``; 0 for a model without a price (``*`` prices the rest)."""
        return cost_nanousd(usage, self._prices.get(model) or self._prices.get("*") or UNPRICED)

    @property
    def priced_models(self) -> list[str]:
        """The models that have a price, for the model list."""
        return [model for model in self._prices if model != "*"]

    def remember_prefix(self, prefix: object) -> bool:
        """Whether the prompt cache has seen ``prefix``; it has from now on (the oldest is forgotten)."""
        key = hash(prefix)
        seen = key in self._prefixes
        self._prefixes[key] = None
        self._prefixes.move_to_end(key)
        if len(self._prefixes) > CACHED_PREFIXES_MAX:
            self._prefixes.popitem(last=False)
        return seen

    def latency_seconds(self, *, stream: bool) -> float:
        """How long until the (first byte of the) answer, drawn from the configured distribution."""
        configured = self.config.latency_ms
        if stream and self.config.first_token_ms is not None:
            configured = self.config.first_token_ms
        if isinstance(configured, LatencyConfig):
            return self._draw_ms(configured) / 1_000
        return configured / 1_000

    def _draw_ms(self, latency: LatencyConfig) -> float:
        if latency.dist == "uniform":
            return self._random.uniform(latency.min, latency.max)
        if latency.dist == "fixed" or latency.mean == 0:
            return latency.mean
        if latency.dist == "exponential":
            drawn = self._random.expovariate(1 / latency.mean)
        else:
            drawn = latency.mean * self._random.lognormvariate(0, latency.sigma)
        return min(max(drawn, latency.min), latency.max)

    # --- report
    def as_dict(self, now_ns: int) -> dict[str, Any]:
        """Counters, keys and limits as plain JSON types."""
        timed = [*self.meters, *(meter for key in self.keys for meter in key.meters)]
        concurrency = [*self.concurrency, *(meter for key in self.keys for meter in key.concurrency)]
        return {
            "dialect": self.dialect,
            **sum_tallies([key.tally for key in self.keys], self.in_flight),
            "request_capacity": self.request_capacity(now_ns),
            "keys": {key.id: key.tally.as_dict() for key in self.keys},
            "limits": [meter.as_dict(now_ns) for meter in timed] + [meter.as_dict() for meter in concurrency],
        }

    def request_capacity(self, now_ns: int) -> int | None:
        """The most requests that the organisation's limits could have admitted since the start; None: unlimited.

        Per pool of models the tightest request limit counts; pools add up, under the limit over all models.
        """
        tightest: dict[frozenset[str] | None, int] = {}
        for meter in self.meters:
            if meter.metric == "requests":
                allowed = meter.limit.allowed(meter.born_ns, now_ns)
                tightest[meter.pool] = min(allowed, tightest.get(meter.pool, allowed))
        over_all = tightest.pop(None, None)
        pools = sum(tightest.values()) if tightest else None
        return min((value for value in (over_all, pools) if value is not None), default=None)


def _at_arrival(metric: Metric, charge: Charge) -> int:
    if metric == "requests":
        return 1
    if metric == "tokens":
        return charge.tokens
    return charge.input_tokens if metric == "input_tokens" else 0


def _needed(metric: Metric, charge: Charge) -> int:
    """What must be left for an arrival: its charge, or one unit of what is only known later."""
    return max(1, _at_arrival(metric, charge)) if metric in ("output_tokens", "spend") else _at_arrival(metric, charge)
