"""Errors that say why nothing was eligible and when it is again, and the deployment in a few numbers."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime

from apikeyrouter.domain.components.capacity import Level
from apikeyrouter.domain.components.catalogue import Catalogue, Key
from apikeyrouter.domain.components.explaining import told, told_exclusion
from apikeyrouter.domain.components.pool import Option
from apikeyrouter.domain.models.accounting import Loss, Reason, RetryKind, ScopeConfig, ScopeState
from apikeyrouter.domain.models.api_key import KeyState
from apikeyrouter.domain.models.cost_estimate import dollars
from apikeyrouter.domain.models.ranking import Barred, Exclusion
from apikeyrouter.domain.models.state_summary import CostSummary, KeySummary, QuotaSummary, SlabSummary, StateSummary
from apikeyrouter.domain.models.system_error import BudgetExceededError, ClockSuspectError, NoEligibleKeysError
from apikeyrouter.serving.slabs import Slabs

_YEAR_US = 366 * 86_400 * 1_000_000


def retry_after_us(loss: Loss, now_us: int) -> int | None:
    """Microseconds from the ledger's now until the loss ends; None: never, or not within a year."""
    if loss.retry_kind is RetryKind.NEVER or loss.retry_at_us - now_us > _YEAR_US:
        return None
    return max(0, loss.retry_at_us - now_us)


def comes_back(losses: Iterable[Loss]) -> bool:
    """Whether something lacks that requests give back when they end: room among those in flight, a probe, money."""
    return any(
        loss.reason in (Reason.BUDGET, Reason.PROBE_IN_FLIGHT)
        or (loss.reason is Reason.LIMIT and loss.retry_kind is RetryKind.ESTIMATED)
        for loss in losses
    )


def no_eligible_keys(
    losses: Sequence[tuple[Option, Loss]],
    binding: Loss | None,
    *,
    out: Sequence[Option],
    skipped: Mapping[Option, str],
    excluded: Sequence[Exclusion],
    barred: Sequence[Barred] = (),
    now_us: int,
) -> NoEligibleKeysError:
    """The error for a final denial: every key that was seen, why not, and when the first is back.

    `out`: options whose keys are out by their state. `skipped`: what the request did not try, or not again, with why
    not. `excluded`: what the objective's constraints exclude. `barred`: what policies refuse.
    """
    reasons = {one.key_id: one.why for one in reversed(barred)}
    reasons |= {exclusion.key_id: told_exclusion(exclusion) for exclusion in excluded}
    reasons |= {option.key.id: why for option, why in skipped.items()}
    reasons.update((option.key.id, told(loss)) for option, loss in losses)
    reasons.update((option.key.id, told_state(option.key)) for option in out)
    returns_us = [int(key.state_until.timestamp() * 1e6) for key in (option.key for option in out) if key.state_until]
    if binding is not None and binding.retry_kind is not RetryKind.NEVER:
        returns_us.append(binding.retry_at_us)
    first_us = min(returns_us, default=None)
    wait_us = None if first_us is None or first_us - now_us > _YEAR_US else max(0, first_us - now_us)
    never_fits = bool(losses) and not out and all(loss.reason is Reason.NEVER_FITS for _, loss in losses)
    message = "the request is larger than any limit could ever admit" if never_fits else "no eligible key"
    if excluded and not losses:
        message = "no eligible key: none keeps within the objective's constraints"
    return NoEligibleKeysError(
        message,
        reasons=reasons, first_back_at=None if wait_us is None else datetime.fromtimestamp((first_us or 0) / 1e6, UTC),
        retry_after=None if wait_us is None else -(-wait_us // 1_000_000),
        retry_after_us=wait_us, never_fits=never_fits, binding=binding,
    )  # fmt: skip


def told_state(key: Key) -> str:
    """Why a key is out by its state."""
    text = f"the key is {key.state.value}"
    if key.state_reason:
        text += f" ({key.state_reason})"
    return text if key.state_until is None else f"{text} until {key.state_until.isoformat()}"


def budget_exceeded(
    binding: Loss,
    budget: ScopeConfig,
    state: ScopeState | None,
    needed: int,
    *,
    ends_at_us: int | None,
    now_us: int,
    unpriced: Sequence[str] = (),
    doubts: Sequence[str] = (),
) -> BudgetExceededError:
    """The error for a hard budget without room. `state` None: nothing was ever held in it. `ends_at_us`: when its
    present period ends; None: never. `unpriced`: the models that it refused because nobody knows their price; `doubts`:
    what was wrong with what adapters told of it."""
    wait_us = retry_after_us(binding, now_us)
    resets = None if ends_at_us is None else datetime.fromtimestamp(ends_at_us / 1e6, UTC)
    return BudgetExceededError(
        scope=budget.id, limit=dollars(budget.limit_nanousd), settled=dollars(state.settled if state else 0),
        held=dollars(state.held + state.suspense if state else 0), needed=None if needed < 0 else dollars(needed),
        resets_at=resets, retry_after=None if wait_us is None else -(-wait_us // 1_000_000),
        unpriced=unpriced, doubts=doubts,
    )  # fmt: skip


def clock_suspected(binding: Loss, now_us: int) -> ClockSuspectError:
    """The error for a hard budget that cannot trust the time."""
    return ClockSuspectError(binding.where, retry_after=-(-(retry_after_us(binding, now_us) or 1) // 1_000_000))


def summarise(
    catalogue: Catalogue,
    scopes: Sequence[ScopeState],
    capacity: Mapping[str, Level],
    *,
    spent: int,
    unpriced: int,
    slabs: SlabSummary,
) -> StateSummary:
    """The deployment in a few numbers. `capacity`: lanes with less than an abundance left."""
    states = [key.state for key in catalogue.keys.values()]
    counts = {state.value: states.count(state) for state in KeyState}
    levels = catalogue.levels(capacity)
    quotas = Counter(
        Level.EXHAUSTED if key.state is KeyState.Exhausted else levels.get(key.id, Level.ABUNDANT)
        for key in catalogue.keys.values()
    )
    return StateSummary(
        keys=KeySummary(total=len(states), **counts),
        quotas=QuotaSummary(**{f"{level.name.lower()}_keys": quotas[level] for level in Level}),
        costs=CostSummary(
            total_spent=dollars(spent), unpriced_requests=unpriced,
            held=dollars(_together({scope.id: scope.held for scope in scopes})),
            suspense=dollars(_together({scope.id: scope.suspense for scope in scopes})),
        ),
        slabs=slabs,
        providers=len(catalogue.providers),
        as_of=datetime.now(UTC),
    )  # fmt: skip


def slab_summary(slabs: Slabs) -> SlabSummary:
    """What this process holds for many calls."""
    calls, money = slabs.stranded
    return SlabSummary(held=slabs.held, admitted=slabs.admitted, stranded_calls=calls, stranded=dollars(money))


def _together(amounts: Mapping[str, int]) -> int:
    """What budgets (by id: kind, whose, name) hold together. A request holds in several; none is counted twice."""
    whose: dict[str, int] = {}
    for scope_id, amount in amounts.items():
        target = scope_id.rpartition(":")[0]
        whose[target] = max(amount, whose.get(target, 0))
    kinds: Counter[str] = Counter()
    for target, amount in whose.items():
        kinds[target.partition(":")[0]] += amount
    return max(kinds.values(), default=0)
