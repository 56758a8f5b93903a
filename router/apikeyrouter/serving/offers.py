"""What each option would take of a request, and what follows from that for their order. Pure."""

from collections.abc import Callable, Mapping, Sequence

import msgspec

from apikeyrouter.domain.components.objectives import Plan
from apikeyrouter.domain.components.ordering import Row, row_of, settled
from apikeyrouter.domain.components.pool import Offered, Option, Ranked
from apikeyrouter.domain.components.price_book import ModelPrice
from apikeyrouter.domain.components.scoring import WORST
from apikeyrouter.domain.components.token_estimator import TokenEstimate, TokenEstimator
from apikeyrouter.domain.interfaces.wire import ParsedRequest
from apikeyrouter.domain.models.accounting import AMOUNT_MAX, UNPRICED, Alike, Candidate, Charge, Places, candidate_at
from apikeyrouter.domain.models.call import Call
from apikeyrouter.domain.models.ranking import Exclusion
from apikeyrouter.domain.models.usage import Usage

FREE_OPERATIONS = frozenset({"count_tokens", "response", "delete_response", "cancel_response", "input_items"})
"""What providers neither bill nor count as tokens; it still is a request."""
INJECTED_TOKEN_CAP = 4096
"""Most output tokens per choice where a hard budget or a cost limit applies and the client gave no cap."""
OFFERED_MAX = 256
"""Combinations of options that a pool remembers for each client with lanes of its own."""
ParsedFor = Callable[[Option], tuple[str, ParsedRequest | None]]
"""The operation and the request in an option's dialect; None for an adapter that only takes intents."""
_NO_CHARGE = Charge(expected_nanousd=UNPRICED, bound_nanousd=UNPRICED)


class Offers:
    """What each option would take: computed once per (provider, model, price), shared by the options that are alike."""

    def __init__(
        self,
        estimator: TokenEstimator,
        call: Call,
        parsed_for: ParsedFor,
        *,
        hard: bool,
        cost_max_nanousd: int | None = None,
        capped: bool = False,
    ) -> None:
        self._estimator, self._call, self._parsed_for, self._hard = estimator, call, parsed_for, hard
        self._cost_max, self._capped = cost_max_nanousd, capped
        self.warm: Mapping[str, int] = {}
        """Quota groups that hold the prompt's cache, with the input tokens that it should save."""
        self._known: dict[int, tuple[Charge, TokenEstimate, int | None]] = {}
        self._unbounded: dict[int, int] = {}
        """By rate: the bound of the expected answer, where no token cap brings it within `cost_max_nanousd`."""

    def all(self, options: Sequence[Option], known: Offered) -> Sequence[Candidate]:
        """A candidate for each option. `known`: what was offered together before, to a client with the same lanes."""
        together = tuple(options)
        places = known[together] if together in known else self._together(together, known)
        if places is not None:
            return Alike(places, self.details(together[0])[0])
        more = self._call.lanes
        return tuple([candidate_at(option.place(more), self.details(option)[0]) for option in together])

    def _together(self, options: tuple[Option, ...], known: Offered) -> Places | None:
        """Where options are counted that are offered together; None where not all cost the same."""
        alike = len({option.rate for option in options}) == 1
        places = Places.of(option.place(self._call.lanes) for option in options) if alike else None
        if len(known) >= OFFERED_MAX:
            known.clear()
        known[options] = places
        return places

    def details(self, option: Option) -> tuple[Charge, TokenEstimate, int | None]:
        """What an option would take, the estimate behind it, and the token cap it needs."""
        known = self._known.get(option.rate)
        if known is None:
            known = self._known[option.rate] = self._compute(option, self._hard or option.hard)
        return known

    def is_bounded(self, option: Option) -> bool:
        """Whether a hard budget holds the bound of what the request may cost there."""
        return (self._hard or option.hard) and self.details(option)[0].bound_nanousd != UNPRICED

    def tokens(self, option: Option) -> tuple[int, int]:
        """Input and output tokens that the request is expected to take there."""
        estimate = self.details(option)[1]
        return estimate.input_tokens, estimate.output_tokens

    def expected(self, option: Option, *, cached: bool = True) -> int | None:
        """Nano-dollars that the request is expected to cost there; None: unknown. `cached`: with what a cache saves."""
        charge, estimate, _ = self.details(option)
        if charge.expected_nanousd == UNPRICED or option.price is None:
            return None if charge.expected_nanousd == UNPRICED else charge.expected_nanousd
        tokens = self.warm.get(option.key.quota_group, 0) if cached else 0
        if not tokens:
            return charge.expected_nanousd
        used = Usage(
            input_tokens=estimate.input_tokens, output_tokens=charge.output_tokens,
            cache_read_tokens=min(tokens, estimate.input_tokens),
        )  # fmt: skip
        plain = Usage(input_tokens=estimate.input_tokens, output_tokens=charge.output_tokens)
        return max(0, charge.expected_nanousd - option.price.cost(plain) + option.price.cost(used))

    def settle(self, plan: Plan, ranked: Ranked) -> None:
        """Bring candidates into the order of what *this* request costs; take out those where it costs too much."""
        bounded = self._cost_max is not None or self._capped
        if bounded:
            self._exclude(ranked)
        if plan.costs >= 0:
            self._reorder(plan, ranked)
        if bounded or plan.costs >= 0:
            ranked.ranking.expected_nanousd = tuple(map(self._told, ranked.options))

    def _told(self, option: Option) -> int:
        """What the request is expected to cost there, as facts tell it."""
        if not self.warm:
            return (self._known.get(option.rate) or self.details(option))[0].expected_nanousd
        expected = self.expected(option)
        return UNPRICED if expected is None else expected

    def _exclude(self, ranked: Ranked) -> None:
        ranking = ranked.ranking
        found = [self._exclusion(option) for option in ranked.options]
        excluded = [exclusion for exclusion in found if exclusion is not None]
        if excluded:
            ranking.excluded = [*ranking.excluded, *excluded]
            ranking.equals = sum(1 for exclusion in found[: ranking.equals] if exclusion is None)
            kept = [at for at, exclusion in enumerate(found) if exclusion is None]
            ranking.standings = [ranking.standings[at] for at in kept]
            ranked.options = [ranked.options[at] for at in kept]

    def _reorder(self, plan: Plan, ranked: Ranked) -> None:
        """Where they cost the same, they stand as they stood."""
        ranking = ranked.ranking
        if len({option.rate for option in ranked.options}) <= 1 and not self.warm:
            return
        rows: list[Row] = []
        for option, standing in zip(ranked.options, ranking.standings, strict=True):
            expected = self.expected(option)
            values = list(standing.values)
            values[plan.costs] = WORST if expected is None else float(expected)
            rows.append(row_of(plan, option, standing, values, len(rows)))
        rows, ranking.equals = settled(plan, rows)
        ranked.options = [row.option for row in rows]
        ranking.standings = [row.standing() for row in rows]

    def _exclusion(self, option: Option) -> Exclusion | None:
        most = self._most(option)
        if most is None:
            return None
        expected = self.details(option)[0].expected_nanousd
        cost = self._unbounded.get(option.rate, expected)
        if cost != UNPRICED and cost <= most:
            return None
        value = None if cost == UNPRICED else cost / 1e9
        return Exclusion(
            option.key.id, option.provider.id, option.model, "max_cost_per_request", most / 1e9, value
        )  # fmt: skip

    def _most(self, option: Option) -> int | None:
        """What the request may cost there."""
        own = option.cost_max_nanousd
        return self._cost_max if own is None or (self._cost_max is not None and self._cost_max < own) else own

    def _compute(self, option: Option, hard: bool) -> tuple[Charge, TokenEstimate, int | None]:
        _, parsed = self._parsed_for(option)
        if self._call.operation in FREE_OPERATIONS:
            return Charge(), TokenEstimate(0, 0, 0, 0), None
        if parsed is None:
            return _NO_CHARGE, TokenEstimate(0, 0, None, None), None
        produces = self._call.operation != "embedding" and not parsed.opaque
        uncapped = produces and parsed.max_output_tokens is None
        cap = INJECTED_TOKEN_CAP if hard and uncapped else None
        most, context = self._most(option), option.able.context_tokens
        if most is not None and uncapped and option.price is not None:
            plain = self._estimator.estimate(option.provider.id, option.model, parsed, context_tokens=context)
            cap, bound = _affordable(option.price, parsed, plain, most)
            if cap is None:
                self._unbounded[option.rate] = bound
        estimate = self._estimator.estimate(
            option.provider.id, option.model, parsed, token_cap=cap, context_tokens=context
        )
        charge = _charge(option, parsed, estimate, cap, produces=produces)
        if option.price is None and self._call.told_costs:
            expected, bound = self._call.told_costs.get(option.provider.id, (UNPRICED, UNPRICED))
            charge = msgspec.structs.replace(charge, expected_nanousd=expected, bound_nanousd=bound)
        if self._estimator.cost_ratios and charge.expected_nanousd > 0:
            ratio = self._estimator.cost_ratios.get((option.provider.id, option.model), 1.0)
            charge = msgspec.structs.replace(charge, expected_nanousd=round(charge.expected_nanousd * ratio))
        return _countable(charge), estimate, cap


def _countable(charge: Charge) -> Charge:
    """A charge that the ledger can hold. What is larger than it can count fits no limit and no budget there is."""
    told, most = charge.input_tokens + charge.output_tokens, AMOUNT_MAX
    metered = told if charge.metered_tokens is None else charge.metered_tokens
    if max(told, metered, charge.expected_nanousd, charge.bound_nanousd) <= most:
        return charge
    return Charge(
        input_tokens=min(charge.input_tokens, most), output_tokens=min(charge.output_tokens, most),
        metered_tokens=min(metered, most), expected_nanousd=min(charge.expected_nanousd, most),
        bound_nanousd=min(charge.bound_nanousd, most),
    )  # fmt: skip


def _affordable(
    price: ModelPrice, parsed: ParsedRequest, estimate: TokenEstimate, most_nanousd: int
) -> tuple[int | None, int]:
    """The output cap per choice that keeps a request's bound within an amount, and that bound.

    None: no cap does that and leaves room for the answer that is expected. What has no bound on its input is capped all
    the same, and held to its expected cost.
    """
    choices, tier = parsed.choices, parsed.service_tier
    if estimate.bound_input is None:
        return INJECTED_TOKEN_CAP, price.expected(estimate.input_tokens, estimate.output_tokens, tier)
    expected = -(-estimate.output_tokens // choices)
    cap, bound = max(INJECTED_TOKEN_CAP, expected), 0
    while cap >= expected:
        bound = price.bound(estimate.bound_input, (cap + parsed.extra_output_tokens) * choices, tier)
        if bound <= most_nanousd:
            return cap, bound
        cap = cap * 3 // 4 if cap * 3 // 4 > expected else min(cap - 1, expected)
    return None, bound


def _charge(
    option: Option, parsed: ParsedRequest, estimate: TokenEstimate, cap: int | None, *, produces: bool
) -> Charge:
    price = option.price
    output = estimate.output_tokens if produces else 0
    bound_output = estimate.bound_output if produces else 0
    expected = bound = UNPRICED
    if price is not None:
        expected = price.expected(estimate.input_tokens, output, parsed.service_tier)
        if estimate.bound_input is not None and bound_output is not None:
            bound = price.bound(estimate.bound_input, bound_output, parsed.service_tier)
    metered = None
    stated = cap if parsed.max_output_tokens is None else parsed.max_output_tokens
    if produces and stated is not None and getattr(option.provider.wire, "meters_output_cap", False):
        metered = estimate.input_tokens + stated * parsed.choices
    return Charge(
        input_tokens=estimate.input_tokens, output_tokens=output, metered_tokens=metered,
        expected_nanousd=expected, bound_nanousd=bound,
    )  # fmt: skip
