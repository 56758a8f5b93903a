"""Admission: which options a request may take, what each may cost, and one atomic reserve for the first that fits."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from apikeyrouter.domain.components.catalogue import Catalogue
from apikeyrouter.domain.components.pool import Option, Pool, Snapshot
from apikeyrouter.domain.components.token_estimator import TokenEstimate, TokenEstimator
from apikeyrouter.domain.interfaces.ledger import Ledger
from apikeyrouter.domain.interfaces.wire import ParsedRequest
from apikeyrouter.domain.models.accounting import (
    CANDIDATES_MAX,
    UNPRICED,
    Admission,
    Candidate,
    Charge,
    Loss,
    ReserveRequest,
    RetryKind,
)
from apikeyrouter.domain.models.call import Call

CANDIDATES = 8
"""K: options offered to the first reserve of an attempt."""
ROUNDS_MAX = 200
"""Further rounds of CANDIDATES_MAX options before a denial is final; more keys than that are not looked at."""
FREE_OPERATIONS = frozenset({"count_tokens"})
"""What providers neither bill nor count as tokens; it still is a request."""
INJECTED_TOKEN_CAP = 4096
"""Output cap per choice where a hard budget applies and the client gave none."""
ParsedFor = Callable[[Option], tuple[str, ParsedRequest | None]]
"""The operation and the request in an option's dialect; None for an adapter that only takes intents."""


@dataclass(slots=True, kw_only=True)
class Admitted:
    """A held option, with what was expected of it."""

    option: Option
    admission: Admission
    request: ReserveRequest
    charge: Charge
    estimate: TokenEstimate
    token_cap: int | None
    offered: list[Option]
    operation: str
    parsed: ParsedRequest | None


@dataclass(slots=True, kw_only=True)
class Refused:
    """Nothing was held. `losses` pairs every option that was seen with why it lost; `binding` None: there was none."""

    losses: list[tuple[Option, Loss]]
    binding: Loss | None
    needed_nanousd: int


class Admissions:
    """Holds capacity and money for calls. Pure but for the ledger it asks."""

    def __init__(
        self,
        ledger: Ledger,
        catalogue: Catalogue,
        estimator: TokenEstimator,
        snapshot: Snapshot,
        *,
        lease_us: int,
    ) -> None:
        self._ledger, self._catalogue, self._estimator, self._snapshot = ledger, catalogue, estimator, snapshot
        self.lease_us = lease_us
        self.config_version = 0
        """The configuration this process decides under; the ledger refuses any other."""

    async def admit(
        self,
        call: Call,
        pool: Pool,
        parsed_for: ParsedFor,
        *,
        objective: str,
        skip: Sequence[Option],
        any_version: bool,
    ) -> Admitted | Refused:
        """Hold the best option with room in every lane and every budget, or find that there is none.

        Raises:
            StaleConfigError: another process changed limits or budgets; take them over and decide again. Not with
                `any_version`.
            InvalidRequestError: the request cannot be put into an option's dialect.
        """
        version = 0 if any_version else self.config_version
        shared = self._catalogue.shared_scopes(call.team, call.client)
        options = pool.rank(objective, CANDIDATES, snapshot=self._snapshot, now=time.perf_counter(), skip=skip)
        seen = list(skip)
        losses: list[tuple[Option, Loss]] = []
        offers = _Offers(self._estimator, call, parsed_for, hard=shared.hard)
        for _ in range(ROUNDS_MAX):
            if not options:
                break
            request = ReserveRequest(
                rid=new_rid(), candidates=offers.all(options), scopes=shared.ids, lease_us=self.lease_us,
                config_version=version,
                principal=call.principal, weight=call.weight, pool=pool.model,
            )  # fmt: skip
            answer = await self._ledger.reserve(request)
            if isinstance(answer, Admission):
                option = options[answer.index]
                charge, estimate, cap = offers.details(option)
                operation, parsed = parsed_for(option)
                return Admitted(
                    option=option, admission=answer, request=request, charge=charge, estimate=estimate, token_cap=cap,
                    offered=options, operation=operation, parsed=parsed,
                )  # fmt: skip
            losses.extend(zip(options, answer.losses, strict=True))
            seen.extend(options)
            options = pool.rest(seen, CANDIDATES_MAX)
        needed = max((offers.details(option)[0].bound_nanousd for option, _ in losses), default=UNPRICED)
        binding = min((loss for _, loss in losses), key=_soonest, default=None)
        return Refused(losses=losses, binding=binding, needed_nanousd=needed)

    def offer(self, call: Call, option: Option, parsed_for: ParsedFor) -> tuple[Charge, TokenEstimate]:
        """What a call would take of an option. Nothing is held."""
        shared = self._catalogue.shared_scopes(call.team, call.client)
        charge, estimate, _ = _Offers(self._estimator, call, parsed_for, hard=shared.hard).details(option)
        return charge, estimate


class _Offers:
    """What each option would take: computed once per (provider, model, price), shared by the options that are alike."""

    def __init__(self, estimator: TokenEstimator, call: Call, parsed_for: ParsedFor, *, hard: bool) -> None:
        self._estimator, self._call, self._parsed_for, self._hard = estimator, call, parsed_for, hard
        self._known: dict[int, tuple[Charge, TokenEstimate, int | None]] = {}

    def all(self, options: Sequence[Option]) -> tuple[Candidate, ...]:
        """A candidate for each option."""
        made = []
        for option in options:
            lanes, words = option.place(self._call.lanes)
            charge = self.details(option)[0]
            made.append(Candidate(lanes=lanes, scopes=option.scopes, words=words, charge=charge))
        return tuple(made)

    def details(self, option: Option) -> tuple[Charge, TokenEstimate, int | None]:
        """What an option would take, the estimate behind it, and the token cap it needs."""
        known = self._known.get(option.rate)
        if known is None:
            known = self._known[option.rate] = self._compute(option, self._hard or option.hard)
        return known

    def _compute(self, option: Option, hard: bool) -> tuple[Charge, TokenEstimate, int | None]:
        _, parsed = self._parsed_for(option)
        if self._call.operation in FREE_OPERATIONS:
            return Charge(), TokenEstimate(0, 0, 0, 0, 0), None
        if parsed is None:
            return _NO_CHARGE, TokenEstimate(0, 0, None, None, 0), None
        produces = self._call.operation != "embedding"
        cap = INJECTED_TOKEN_CAP if hard and produces and parsed.max_output_tokens is None else None
        estimate = self._estimator.estimate(option.provider.id, option.model, parsed, token_cap=cap)
        charge = _charge(option, parsed, estimate, cap, produces=produces)
        if self._estimator.cost_ratios and charge.expected_nanousd > 0:
            ratio = self._estimator.cost_ratios.get((option.provider.id, option.model), 1.0)
            charge = msgspec.structs.replace(charge, expected_nanousd=round(charge.expected_nanousd * ratio))
        return charge, estimate, cap


_NO_CHARGE = Charge(expected_nanousd=UNPRICED, bound_nanousd=UNPRICED)


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


def new_rid() -> bytes:
    """A new reservation id: 48 bits of Unix milliseconds, then random (UUIDv7's order without its markers)."""
    return (time.time_ns() // 1_000_000).to_bytes(6, "big") + os.urandom(10)


def _soonest(loss: Loss) -> tuple[bool, int]:
    return loss.retry_kind is RetryKind.NEVER, loss.retry_at_us
