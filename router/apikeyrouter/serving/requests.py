"""A Python caller's intent as a call, and a call as what an option's provider takes."""

import inspect
import time
import uuid
from collections.abc import Mapping
from types import MappingProxyType

import msgspec

from apikeyrouter.domain.components.entries import Provider
from apikeyrouter.domain.components.fitness import unable
from apikeyrouter.domain.components.pool import Option, Pool
from apikeyrouter.domain.components.wait_lines import PRIORITIES, read_priority
from apikeyrouter.domain.interfaces.wire import ParsedRequest
from apikeyrouter.domain.models.accounting import UNPRICED
from apikeyrouter.domain.models.call import Call
from apikeyrouter.domain.models.cost_estimate import CostEstimate
from apikeyrouter.domain.models.request_intent import RequestIntent
from apikeyrouter.domain.models.routing_decision import RoutingObjective
from apikeyrouter.domain.models.system_error import InvalidRequestError, ProviderError
from apikeyrouter.serving.admission import ParsedFor
from apikeyrouter.serving.foreign_code import called, finish_within, misbehaved
from apikeyrouter.serving.outcomes import bookable_nanousd, cost_nanousd

ESTIMATE_SECONDS_MAX = 5.0
TIMEOUT_SECONDS_MAX = 30 * 86_400.0
WAIT_MS_MAX = 600_000
Tried = dict[tuple[str, str], str]
"""What one request does not try again, (key, model), and why not."""
_NOTHING: Mapping[Option, str] = MappingProxyType({})
_CAPS = ("max_completion_tokens", "max_tokens", "max_output_tokens")


def call_of(
    intent: RequestIntent, objective: RoutingObjective | str | None, *, stream: bool, timeout: float | None = None,
    wait_max_ms: int | None = None, priority: str = PRIORITIES[0],
) -> Call:  # fmt: skip
    """A call for `serve`. Its principal is the client that the intent names; without one it is gated with nobody.

    `timeout`: seconds for all of it. `wait_max_ms`, `priority`: of waiting for room. Raises InvalidRequestError.
    """
    started = time.perf_counter()
    return Call(
        request_id=f"req_{uuid.uuid4().hex}", operation=intent.operation.value, model=intent.model, stream=stream,
        started=started, deadline=deadline_of(started, timeout), intent=intent, provider_id=intent.provider_id,
        team=intent.team, client=intent.client, principal=intent.client or "", session=intent.tags.get("session"),
        objective=None if objective is None else RoutingObjective.read(objective),
        wait_ms=None if wait_max_ms is None else check_wait(wait_max_ms), priority=read_priority(priority),
    )  # fmt: skip


def check_wait(wait_max_ms: int) -> int:
    """Milliseconds that a call may wait. Raises InvalidRequestError."""
    if isinstance(wait_max_ms, bool) or not isinstance(wait_max_ms, int) or not 0 <= wait_max_ms <= WAIT_MS_MAX:
        raise InvalidRequestError(f"must be a whole number between 0 and {WAIT_MS_MAX}", field="wait_max_ms")
    return wait_max_ms


def deadline_of(started: float, timeout: float | None) -> float | None:
    """When a call that may take so many seconds is over. Raises InvalidRequestError for what is no time."""
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout <= TIMEOUT_SECONDS_MAX:
        raise InvalidRequestError(f"must be above 0 and at most {TIMEOUT_SECONDS_MAX:g} seconds", field="timeout")
    return started + timeout


def parsed_for(call: Call) -> ParsedFor:
    """The request in an option's dialect: the client's own body, or the intent put into that dialect, once each."""
    if call.intent is None:
        own = (call.operation, call.parsed)
        return lambda _: own
    known: dict[tuple[str, str], tuple[str, ParsedRequest | None]] = {}

    def parsed(option: Option) -> tuple[str, ParsedRequest | None]:
        place = (option.provider.id, option.model)
        found = known.get(place)
        if found is None:
            found = known[place] = _parsed(call, option)
        return found

    return parsed


def unfit(call: Call, pool: Pool, parsed: ParsedFor) -> frozenset[str]:
    """Providers of the pool whose dialect cannot say this request.

    Raises:
        InvalidRequestError: none of them can.
        ProviderError: nor can be asked whether it can.
    """
    if call.intent is None or len(pool.samples) == 1:
        return frozenset()
    refused: dict[str, InvalidRequestError | ProviderError] = {}
    for sample in pool.samples:
        try:
            parsed(sample)
        except (InvalidRequestError, ProviderError) as exc:
            refused[sample.provider.id] = exc
    if len(refused) == len(pool.samples):
        raise next(iter(refused.values()))
    return frozenset(refused)


def left_out(call: Call, pool: Pool, parsed: ParsedFor, tried: Tried) -> Mapping[Option, str]:
    """The options of a pool that this request does not try, with why not: `tried` says it of what failed already.

    Raises:
        InvalidRequestError: no option can serve the request, whoever has room.
    """
    mute = unfit(call, pool, parsed)
    if not (tried or mute or pool.uneven):
        return _NOTHING
    found: dict[Option, str] = {}
    for option in pool.options:
        why = tried.get((option.key.id, option.model))
        if why is None and option.provider.id in mute:
            why = "its provider cannot be asked this"
        if why is not None:
            found[option] = why
    if pool.uneven:
        others = [option for option in pool.options if option.provider.id not in mute]
        found.update(unable(call, others, parsed(others[0])[1]))
    return found


async def ask_costs(call: Call, pool: Pool) -> None:
    """What adapters of one's own expect the request to cost, where no price list knows it; noted in the call.

    An adapter that fails, or takes too long, has said nothing; that is noted in the call as well.
    """
    for sample in pool.samples:
        provider = sample.provider
        if provider.wire is not None or sample.price is not None:
            continue
        if call.told_costs is None:
            call.told_costs = {}
        if provider.id in call.told_costs:
            continue
        told: object = None
        try:
            asked: object = called(provider.adapter.estimate_cost, call.intent)
            if inspect.isawaitable(asked):
                asked = await finish_within(asked, ESTIMATE_SECONDS_MAX, provider_id=provider.id)
            told = asked
        except Exception as exc:
            _doubt(call, provider, misbehaved(provider.id, provider.adapter, "estimate_cost", exc).message)
        call.told_costs[provider.id] = expected, bound = _nanousd_of(told)
        if told is not None and expected == UNPRICED:
            _doubt(call, provider, misbehaved(provider.id, provider.adapter, "estimate_cost", told).message)
        elif expected != UNPRICED and bound == UNPRICED:
            _doubt(call, provider, f"estimate_cost of provider {provider.id!r} told no `bound` that can be held")


def _doubt(call: Call, provider: Provider, what: str) -> None:
    call.cost_doubts = {**(call.cost_doubts or {}), provider.id: what}


def _nanousd_of(told: object) -> tuple[int, int]:
    """(expected, bound) of an estimate in dollars; UNPRICED for what is none, as a bound below what is expected."""
    expected = cost_nanousd(told)
    if expected is None or not isinstance(told, CostEstimate):
        return UNPRICED, UNPRICED
    bound = bookable_nanousd(told.bound)
    return expected, UNPRICED if bound is None or bound < expected else bound


def _parsed(call: Call, option: Option) -> tuple[str, ParsedRequest | None]:
    provider, intent = option.provider, call.intent
    assert intent is not None
    if call.parsed is not None and provider.speaks(call.dialect, call.operation):
        return call.operation, call.parsed
    if intent.model != option.model:
        intent = intent.model_copy(update={"model": option.model})
    try:
        if provider.wire is None:
            _check(option, intent)
            return call.operation, _plain(intent, stream=call.stream)
        operation, body = provider.adapter.encode_intent(intent, stream=call.stream)
    except InvalidRequestError as exc:
        if call.parsed is None or provider.wire is None:
            raise
        raise InvalidRequestError(exc.reason, field=exc.field.removeprefix("parameters.")) from exc
    except (TypeError, ValueError, OverflowError, RecursionError):
        intent.refuse_unwritable()
        raise
    return operation, provider.wire.parse(body, operation=operation, model=intent.model)


def _check(option: Option, intent: RequestIntent) -> None:
    """Whether an adapter of one's own takes an intent.

    Raises:
        InvalidRequestError: it does not.
        ProviderError: it failed, or returned something.
    """
    provider = option.provider
    try:
        told: object = called(provider.adapter.check_intent, intent)
    except InvalidRequestError:
        raise
    except Exception as exc:
        raise misbehaved(provider.id, provider.adapter, "check_intent", exc) from exc
    if told is not None:
        raise misbehaved(provider.id, provider.adapter, "check_intent", told)


def _plain(intent: RequestIntent, *, stream: bool) -> ParsedRequest:
    """What routing needs to know of an intent whose adapter has no dialect of ours: its size, and its caps."""
    told = {"messages": intent.to_wire_messages(), **(intent.payload or {})}
    body = msgspec.json.encode(told)
    if intent.parameters:
        msgspec.json.encode(intent.parameters)  # what JSON cannot hold is refused, whoever would take it
    size = len(body)
    cap = next((intent.parameters[name] for name in _CAPS if isinstance(intent.parameters.get(name), int)), None)
    choices = intent.parameters.get("n")
    return ParsedRequest(
        model=intent.model, stream=stream, choices=choices if isinstance(choices, int) and choices > 0 else 1,
        max_output_tokens=cap, input_bytes=size, messages=len(intent.messages), extra_tokens=0, unbounded=False,
        include_usage=True, fields={}, text_bytes=size, body=body,
    )  # fmt: skip
