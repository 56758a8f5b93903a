"""How an attempt ends: with an answer, a failure, or unknown. Each hands its reservation in exactly once."""

import asyncio
import time
from collections.abc import Callable

import msgspec

from apikeyrouter.domain.components.output_estimator import OutputEstimator
from apikeyrouter.domain.components.pool import Option
from apikeyrouter.domain.components.token_estimator import TokenEstimator
from apikeyrouter.domain.interfaces.wire import Wire
from apikeyrouter.domain.models.accounting import AMOUNT_MAX, UNPRICED, Outcome, Settlement
from apikeyrouter.domain.models.call import AttemptFacts, Call, Facts
from apikeyrouter.domain.models.failure import Failure, FailureScope
from apikeyrouter.domain.models.usage import Usage
from apikeyrouter.infrastructure.adapters.transport import Timeouts
from apikeyrouter.infrastructure.observability.events import EventLog, working_for
from apikeyrouter.serving.admission import FREE_OPERATIONS, Admitted
from apikeyrouter.serving.answer_watch import AnswerWatch
from apikeyrouter.serving.bookkeeping import OpenHold, Release
from apikeyrouter.serving.outcomes import estimated_usage, failed_lanes, given_up, partial_usage
from apikeyrouter.serving.spread_books import AnyBooks

_log = EventLog("apikeyrouter")
AS_HELD = UNPRICED
"""Nobody knows the cost: each budget books what it held for it, a hard one the bound, so that it stays one."""
ABOVE_EVERY_SECONDS = 60.0
"""So often it is said of a provider that it told more than the bound that was held."""
TOKENS_MAX = 2**31
"""Most tokens of one request that are believed; the ledger takes no more. Told more, nothing was told."""


class Attempt(msgspec.Struct, kw_only=True, eq=False):
    """What one attempt works with. `timeouts` None: the call's deadline leaves no time."""

    call: Call
    facts: Facts
    own: AttemptFacts
    admitted: Admitted
    hold: OpenHold
    wire: Wire | None
    timeouts: Timeouts | None
    started: float = msgspec.field(default_factory=time.perf_counter)
    sent: bool = False
    """Whether the provider may have received something."""
    timed: bool = True
    """Whether the time it takes is the provider's: not where the application sends by itself."""
    first_us: int = 0
    """Microseconds until a stream's first token; 0: no stream, or not yet."""
    given_up: Failure | None = None
    """Why we ended it ourselves."""
    _task: "asyncio.Task[object] | None" = None
    _cancelled_before: int = 0
    _under_way: bool = True

    def __post_init__(self) -> None:
        self.admitted.option.key.under_way += 1

    def watch(self) -> None:
        """From now on a lost lease ends the task that runs this."""
        self._task = asyncio.current_task()
        self.hold.abort = self._abort

    def _abort(self, why: str) -> None:
        self.end_with(given_up(why))

    def end_with(self, failure: Failure) -> bool:
        """End the task that runs this, for a reason of ours; whether it runs."""
        if self._task is None or self._task.done():
            return False
        self.given_up = failure
        self._cancelled_before = self._task.cancelling()
        return self._task.cancel()

    def let_go(self) -> None:
        """It has ended: drop what refers back to it, so that nothing waits for the garbage collector."""
        self.hold.abort = None
        self._task = None
        self.admitted.option.key.under_way -= self._under_way
        self._under_way = False

    def was_given_up(self) -> Failure | None:
        """To be asked on CancelledError: the failure when the cancellation was ours alone, None when the caller's."""
        if self.given_up is None or self._task is None or self._task.uncancel() > self._cancelled_before:
            return None
        return self.given_up


class Endings:
    """Writes facts, teaches the estimator, hands settlements and releases in."""

    def __init__(
        self,
        books: AnyBooks,
        estimator: TokenEstimator,
        *,
        finished: Callable[[Call, Facts], None],
        broken: Callable[[Failure, Option], None],
    ) -> None:
        self._books, self._estimator, self._finished = books, estimator, finished
        self._broken = broken
        self._outputs = OutputEstimator()
        self._above_told: dict[str, float] = {}
        """By provider, when it was last said that it told more than was held (`time.monotonic()`)."""
        self.watch = AnswerWatch()

    def answered(
        self,
        attempt: Attempt,
        usage: Usage | None,
        *,
        produced: int,
        outcome: str = "ok",
        failed: bool = False,
        told_nanousd: int | None = None,
    ) -> None:
        """An answer, or a part of one. `usage` None: not told. `failed`: evidence against the provider.

        `produced`: bytes of output that were received. Not "ok": that was not all, so that `usage` is not either.

        `told_nanousd`: what the adapter says it costs, which goes before any price list.
        """
        admitted, facts = attempt.admitted, attempt.facts
        booked: int | None = None
        if attempt.call.operation in FREE_OPERATIONS:
            usage, cost = Usage(input_tokens=0, output_tokens=0), 0
        else:
            if usage is not None and not _is_believed(usage):
                usage = None
            guessed = usage is None or outcome != "ok"
            usage = self._used(attempt, usage, produced, complete=outcome == "ok")
            cost = _cost(admitted, usage) if told_nanousd is None else told_nanousd
            if not UNPRICED <= cost <= AMOUNT_MAX:
                guessed, cost = True, admitted.charge.expected_nanousd
                usage = msgspec.structs.replace(usage, estimated=True)
            if guessed and told_nanousd is None and admitted.bounded:
                cost, booked = admitted.charge.expected_nanousd, AS_HELD
        if admitted.bounded and cost > admitted.charge.bound_nanousd:
            self._tell_above(admitted, cost)
        self._learn(admitted, usage)
        latency_us = self._clock(attempt)
        latency_us = attempt.first_us or latency_us
        attempt.let_go()
        if not failed and attempt.timed:
            admitted.option.seen.answered(latency_us, stream=attempt.call.stream, now=time.perf_counter())
        self._books.hand_in(
            Settlement(
                rid=admitted.request.rid, input_tokens=min(_metered(attempt, usage), TOKENS_MAX),
                output_tokens=min(usage.output_tokens, TOKENS_MAX), cost_nanousd=cost if booked is None else booked,
                outcome=Outcome.FAILURE if failed else Outcome.SUCCESS,
                failed_lanes=1 << (len(admitted.option.lanes) - 1) if failed else 0, latency_us=latency_us,
                estimated=usage.estimated,
            )
        )  # fmt: skip
        facts.usage = usage
        facts.outcome = outcome
        if admitted.session is not None and outcome == "ok" and not usage.estimated:
            admitted.session.served(admitted.option, usage, time.perf_counter())
        if self.watch.wanted and attempt.call.stream and outcome == "ok":
            self.watch.stream(attempt, produced)
        _note_cost(attempt, cost, estimated=usage.estimated)

    def _used(self, attempt: Attempt, told: Usage | None, produced: int, *, complete: bool) -> Usage:
        """What was used, as far as anybody can say."""
        admitted = attempt.admitted
        place = (admitted.option.provider.id, admitted.option.model)
        if told is None:
            return estimated_usage(admitted, self._outputs.tokens(place, produced))
        if not complete:
            return partial_usage(told, self._outputs.tokens(place, produced))
        if attempt.call.stream and not told.estimated:
            self._outputs.learn(
                place, output_tokens=told.output_tokens, reasoning_tokens=told.reasoning_tokens, produced=produced
            )
        return told

    def _tell_above(self, admitted: Admitted, cost: int) -> None:
        """More was told than hard budgets held for it. It is booked as told; once a minute and provider it is said."""
        provider_id, now = admitted.option.provider.id, time.monotonic()
        if now < self._above_told.get(provider_id, -ABOVE_EVERY_SECONDS) + ABOVE_EVERY_SECONDS:
            return
        self._above_told[provider_id] = now
        _log.warning(
            "budget.bound_exceeded", provider_id=provider_id, key_id=admitted.option.key.id,
            model=admitted.option.model, held_nanousd=admitted.charge.bound_nanousd, cost_nanousd=cost,
        )  # fmt: skip

    def broke(self, attempt: Attempt, failure: Failure) -> None:
        """An answer that had begun broke: what that says of key, group and provider is acted on."""
        attempt.own.failure, attempt.own.meaning = failure.category.value, failure.meaning
        with working_for(attempt.call.request_id):
            self._broken(failure, attempt.admitted.option)

    def failed(self, attempt: Attempt, failure: Failure) -> None:
        """Nothing reached the caller. What may have been billed is charged as expected."""
        latency_us = self._clock(attempt)
        attempt.own.failure, attempt.own.meaning = failure.category.value, failure.meaning
        bits = failed_lanes(attempt.admitted, failure)
        if failure.billed is False:
            sent = failure.status > 0 or failure.scope is not FailureScope.PROVIDER
            self._release(attempt, sent=sent and attempt.sent, bits=bits, latency_us=latency_us)
        else:
            self._charge_expected(attempt, Outcome.FAILURE if bits else Outcome.NEUTRAL, bits, latency_us)

    def abandoned(self, attempt: Attempt, *, why: str = "cancelled") -> None:
        """Cancelled, or our own bug. Once sent, the provider may have billed: the estimate is charged and marked."""
        latency_us = self._clock(attempt)
        attempt.own.failure = attempt.own.failure or why
        if attempt.sent:
            self._charge_expected(attempt, Outcome.NEUTRAL, 0, latency_us)
        else:
            self._release(attempt, sent=False, bits=0, latency_us=0)

    def finish(self, attempt: Attempt) -> None:
        """The call has ended."""
        self._finished(attempt.call, attempt.facts)

    def _learn(self, admitted: Admitted, usage: Usage) -> None:
        if admitted.parsed is None:
            return
        self._estimator.learn(
            admitted.option.provider.id, admitted.option.model, shape=admitted.estimate.shape,
            choices=admitted.parsed.choices, usage=usage,
        )  # fmt: skip

    def _clock(self, attempt: Attempt) -> int:
        latency_us = int((time.perf_counter() - attempt.started) * 1e6)
        attempt.own.upstream_us = latency_us
        attempt.facts.upstream_us += latency_us
        return latency_us if attempt.timed else 0

    def _release(self, attempt: Attempt, *, sent: bool, bits: int, latency_us: int) -> None:
        attempt.let_go()
        self._books.hand_in(
            Release(rid=attempt.admitted.request.rid, sent=sent, failed_lanes=bits, latency_us=latency_us)
        )

    def _charge_expected(self, attempt: Attempt, outcome: Outcome, bits: int, latency_us: int) -> None:
        charge = attempt.admitted.charge
        booked = AS_HELD if attempt.admitted.bounded else charge.expected_nanousd
        attempt.let_go()
        self._books.hand_in(
            Settlement(
                rid=attempt.admitted.request.rid, input_tokens=min(charge.input_tokens, TOKENS_MAX),
                output_tokens=min(charge.output_tokens, TOKENS_MAX), cost_nanousd=booked,
                outcome=outcome, failed_lanes=bits, latency_us=latency_us, estimated=True,
            )
        )  # fmt: skip
        _note_cost(attempt, charge.expected_nanousd, estimated=True)


def _note_cost(attempt: Attempt, cost: int, *, estimated: bool) -> None:
    """What was booked for an attempt; what all of them cost is not known where one of them has no price."""
    own, facts = attempt.own, attempt.facts
    own.cost_nanousd, own.cost_estimated = None if cost == UNPRICED else cost, estimated
    facts.cost_nanousd = own.cost_nanousd
    facts.cost_estimated |= estimated
    if len(facts.attempts) > 1:
        known = [one.cost_nanousd for one in facts.attempts if one.cost_nanousd is not None]
        facts.cost_nanousd = sum(known) if len(known) == len(facts.attempts) else None


def _cost(admitted: Admitted, usage: Usage) -> int:
    """What the provider says it charges; else by the price list; else what the adapter expected."""
    if usage.cost_nanousd is not None:
        return usage.cost_nanousd
    price = admitted.option.price
    return admitted.charge.expected_nanousd if price is None else price.cost(usage)


def _metered(attempt: Attempt, usage: Usage) -> int:
    """Input tokens as the provider's limits count them."""
    free = usage.cache_read_tokens if getattr(attempt.wire, "cache_reads_are_free", False) else 0
    return max(0, usage.input_tokens - free)


def _is_believed(usage: Usage) -> bool:
    """Whether any provider tells such counts."""
    return 0 <= usage.input_tokens <= TOKENS_MAX and 0 <= usage.output_tokens <= TOKENS_MAX
