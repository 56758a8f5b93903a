"""Failures: what one means, what follows from it for keys, lanes and providers, and whether another try is worth it."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Protocol

from apikeyrouter.domain.components.arguments import checking
from apikeyrouter.domain.components.avoidance import AVOIDED, Avoidance
from apikeyrouter.domain.components.catalogue import Catalogue, Key, key_lane, provider_lane
from apikeyrouter.domain.components.circuits import circuit_of
from apikeyrouter.domain.components.consequences import PUTS_OUT, Consequences, consequences, put_out, stated_seconds
from apikeyrouter.domain.components.failure_taxonomy import MEANINGS, TOO_LARGE_HERE
from apikeyrouter.domain.components.good_answers import ANSWERED
from apikeyrouter.domain.components.pool import Option, Snapshot
from apikeyrouter.domain.components.refusals import ACTOR, Refusals
from apikeyrouter.domain.components.retry_budget import RetryBudget
from apikeyrouter.domain.interfaces.ledger import Ledger
from apikeyrouter.domain.interfaces.provider_adapter import ProviderAdapter
from apikeyrouter.domain.interfaces.state_store import StateStore
from apikeyrouter.domain.models.api_key import KeyProbe, KeyState, StateTransition
from apikeyrouter.domain.models.call import AttemptFacts
from apikeyrouter.domain.models.failure import CircuitState, Failure, FailureAction, FailureInterpretation, FailureScope
from apikeyrouter.domain.models.system_error import ApiKeyRouterError, InvalidRequestError

__all__ = ["TOLD_KINDS", "FailureHandler", "KeyStates"]

TOLD_KINDS = frozenset({AVOIDED, ANSWERED})
"""Documents in which processes tell each other of failures."""

ATTEMPTS_MAX = 3
BACK_OFF_SECONDS = 5.0
REDUCED_SECONDS = 10.0
"""How long a load that is reduced for the first time stays away."""
REDUCED_SECONDS_MAX = 300.0
BRIDGE_SECONDS = 2.0
"""How long a key that was put out comes last even where the store still has its old state."""
RECOVERY_SECONDS = 1.0
RECOVERY_SECONDS_MAX = 60.0
_RECOVERS_TO = {
    KeyState.Throttled: KeyState.Available,
    KeyState.Exhausted: KeyState.Recovering,
    KeyState.Invalid: KeyState.Available,
}
Interpret = Callable[[Exception, ProviderAdapter | None, str], Failure]
Chore = Callable[[Coroutine[Any, Any, object]], "asyncio.Task[None]"]


class KeyStates(Protocol):
    """What is asked of whoever keeps the keys."""

    async def update_key_state(
        self,
        key_id: str,
        new_state: KeyState,
        reason: str = "",
        *,
        actor: str = "",
        for_seconds: float | None = None,
        generation: int | None = None,
    ) -> StateTransition:
        """Change a key's state. Raises InvalidRequestError when the key is gone or was rotated, or the change is not
        legal."""
        ...

    async def probe_key(self, key_id: str, *, actor: str = "") -> KeyProbe:
        """Ask the provider's free endpoint whether the key works, and act on the answer."""
        ...


@checking("update_key_health", "get_circuit_state", "reduce_load_on_failure", "monitor_recovery")
class FailureHandler:
    """Acts on failures, at the scope each speaks for.

    What concerns keys and lanes is the whole fleet's: key states, and what merely comes last, through the store, cooled
    lanes and circuit breakers through the ledger. The retry budget is this process's own.

    Errors of methods that take a `key_id`: InvalidRequestError when there is no such key.
    """

    def __init__(
        self,
        ledger: Ledger,
        catalogue: Catalogue,
        snapshot: Snapshot,
        store: StateStore,
        keys: KeyStates,
        *,
        interpret: Interpret,
        chore: Chore,
        emit: Callable[..., None],
        first_attempts: Callable[[], int],
        cooldown_seconds: float,
    ) -> None:
        """`first_attempts`: how many requests were attempted so far."""
        self._ledger, self._catalogue, self._snapshot = ledger, catalogue, snapshot
        self._keys, self._interpret, self._chore, self._emit = keys, interpret, chore, emit
        self._first_attempts, self.cooldown_seconds = first_attempts, cooldown_seconds
        self.refusals = Refusals(catalogue, snapshot, store, move=self._move, cool=self._cool)
        self.judge = self.refusals.judge
        self.avoidance = Avoidance(snapshot, store)
        self._reduced: dict[str, tuple[float, float]] = {}
        """Per provider: since when its load is reduced, and for how many seconds the last time."""
        self._monitored: dict[str, asyncio.Task[None]] = {}
        self.attempts_max = ATTEMPTS_MAX
        self.budget = RetryBudget()

    # --- the documented methods ----------------------------------------------------------------------------------

    def interpret_failure(self, error: Exception, context: Any = None) -> FailureInterpretation:
        """What an error means: its cause, the scope it speaks for, what to do. Total: never raises.

        `context` (a mapping, RequestIntent or anything with `provider_id` and `key_id`) says whose error it is: its
        adapter reads it, and the key's material is taken out of the message.
        """
        provider = self._catalogue.providers.get(str(_told(context, "provider_id")))
        key = self._catalogue.keys.get(str(_told(context, "key_id")))
        secret = "" if key is None else str.__str__(key.material)
        return self._interpret(error, None if provider is None else provider.adapter, secret)

    async def update_key_health(self, key_id: str, failure: FailureInterpretation) -> None:
        """Act on a failure of this key that the router did not see itself, e.g. of a leased key.

        A rate limit throttles the key, whatever the model; a failure that speaks for the provider reduces its load; one
        that speaks for a request or a model leaves the key as it is.
        """
        key, action = self._key(key_id), failure.action
        stated = stated_seconds(failure, self._wall_us())
        if failure.scope is FailureScope.PROVIDER:
            await self.reduce_load_on_failure(key_id, key.provider_id)
        elif action is FailureAction.COOL:
            await self._move(key, KeyState.Throttled, failure.message, stated or self.cooldown_seconds)
        elif action is FailureAction.BACK_OFF:
            await self._cool(key_lane(key_id), stated or BACK_OFF_SECONDS, failure.message)
        elif action in PUTS_OUT:
            found = put_out(failure, key, self._catalogue.keys.values(), now_us=self._wall_us())
            await asyncio.gather(*self._put_out(found, failure))

    def should_retry(self, failure: FailureInterpretation, attempt: int) -> bool:
        """Whether another try is worth it after `attempt` of them: elsewhere it may go better, attempts are left, and
        the retry budget has room."""
        if not isinstance(failure, FailureInterpretation):
            raise InvalidRequestError("must be what interpret_failure gave", field="failure")
        if not failure.retry_elsewhere or attempt >= self.attempts_max:
            return False
        allowed = self.budget.allows(self._first_attempts(), time.perf_counter())
        self.budget.refused += not allowed
        return allowed

    async def get_circuit_state(self, key_id: str) -> CircuitState:
        """The circuit that requests with this key pass, as the ledger has it now."""
        key = self._key(key_id)
        lanes = await self._ledger.lanes([key_lane(key_id), provider_lane(key.provider_id)])
        return circuit_of(key_id, lanes, now_us=self._snapshot.ledger_us(time.perf_counter()))

    async def reduce_load_on_failure(self, key_id: str, provider_id: str) -> None:
        """Let nobody in the fleet use this key, nor its provider, for a while: ten seconds, doubled at each call up
        to five minutes until the provider has answered well again.

        Raises:
            InvalidRequestError: no such key or provider.
        """
        key = self._key(key_id)
        if provider_id not in self._catalogue.providers or key.provider_id != provider_id:
            raise InvalidRequestError(f"key {key_id!r} is of no provider {provider_id!r}", field="provider_id")
        now = time.perf_counter()
        since, seconds = self._reduced.get(provider_id, (now, REDUCED_SECONDS / 2))
        if self._catalogue.providers[provider_id].answered_at > since:
            since, seconds = now, REDUCED_SECONDS / 2
        seconds = min(seconds * 2, REDUCED_SECONDS_MAX)
        self._reduced[provider_id] = (since, seconds)
        lanes = (key_lane(key_id), provider_lane(provider_id))
        await asyncio.gather(*(self._cool(lane, seconds, "its load is reduced") for lane in lanes))

    async def monitor_recovery(self, key_id: str) -> None:
        """Ask the provider's free endpoint, from now on and ever less often, whether the key works; when it does, put
        it back to work, and end what `reduce_load_on_failure` began. Returns at once.

        Circuits, and lanes that were cooled for another reason, recover by themselves.
        """
        self._key(key_id)
        task = self._monitored.get(key_id)
        if task is None or task.done():
            self._monitored[key_id] = self._chore(self._until_recovered(key_id))

    async def close(self) -> None:
        """Stop monitoring."""
        monitored, self._monitored = self._monitored, {}
        for task in monitored.values():
            task.cancel()
        if monitored:
            await asyncio.wait(monitored.values(), timeout=1.0)

    # --- what the way of a request asks --------------------------------------------------------------------------

    def learn(
        self, failure: Failure, option: Option, options: Sequence[Option], tried: dict[tuple[str, str], str]
    ) -> None:
        """Act on a failure; what this request need not try again goes to `tried`, with why not. Never waits."""
        found = consequences(
            failure, option, options, keys=self._catalogue.keys.values(), lanes=self._snapshot.lanes,
            now_us=self._wall_us(), default_seconds=self.cooldown_seconds,
        )  # fmt: skip
        known = MEANINGS.get(failure.meaning)
        why = failure.message if known is None else known.says
        for other in found.skip:
            what = "it" if other is option else "another that it speaks for"
            tried[other.key.id, other.model] = f"this request tried {what}: {why}"
        self._emit(
            "attempt.failed", key_id=option.key.id, provider_id=option.provider.id, model=option.model,
            category=failure.category.value, scope=failure.scope.value, action=failure.action.value,
            status=failure.status, reason=failure.message, retry_after_us=failure.retry_after_us,
        )  # fmt: skip
        for lane in found.cool:
            self._chore(self._cool(lane, found.seconds, failure.message))
        for place in found.cool:
            self._block(place, found.seconds)
        for place in found.avoid:
            if self.avoidance.avoid(place, found.seconds):
                self._chore(self.avoidance.tell(place, found.seconds))
        for work in self._put_out(found, failure):
            self._chore(work)

    def learn_broken(self, failure: Failure, option: Option) -> None:
        """Act on a failure in the middle of an answer: there is nobody to try elsewhere for."""
        if failure.scope is not FailureScope.REQUEST:
            self.learn(self.judge(failure, option), option, (), {})

    def learn_success(self, option: Option, sent_at: float) -> None:
        """A request that was sent at `sent_at` was answered well."""
        option.provider.answered_at = sent_at
        if option.key.state is KeyState.Recovering:  # it was given another chance, and has taken it
            option.key.state = KeyState.Available
            self._chore(self._move(option.key, KeyState.Available, "it serves again", None))

    def goes_on(self, failure: Failure, attempts: Sequence[AttemptFacts]) -> bool:
        """`should_retry` after these attempts of one request. A request too large for two groups is too large."""
        if failure.meaning == TOO_LARGE_HERE.name and sum(a.meaning == failure.meaning for a in attempts) > 1:
            return False
        if not self.should_retry(failure, len(attempts)):
            return False
        self.budget.spend()
        return True

    def note_time(self) -> None:
        """To be called a few times a second."""
        self.budget.note(self._first_attempts(), time.perf_counter())
        for provider_id in self.refusals.answers.due():
            self._chore(self.refusals.answers.tell(provider_id))

    async def hear(self, kind: str, changed_id: str) -> None:
        """Take over what another process told of failures. Errors: StateStoreUnavailableError."""
        if kind == AVOIDED:
            await self.avoidance.hear(changed_id)
        elif kind == ANSWERED:
            await self.refusals.answers.hear(changed_id)
        elif kind == "key":
            key = self._catalogue.keys.get(changed_id)
            if key is not None and self.refusals.heard(key):
                await self.refusals.answers.tell(key.provider_id)

    # --- keys ----------------------------------------------------------------------------------------------------

    def _key(self, key_id: str) -> Key:
        key = self._catalogue.keys.get(key_id)
        if key is None:
            raise InvalidRequestError(f"no key {key_id!r}", field="key_id")
        return key

    def _put_out(self, found: Consequences, failure: Failure) -> list[Coroutine[Any, Any, None]]:
        """Here at once, elsewhere as soon as the store has it: the work that sees to that."""
        state, works = found.key_state, []
        for failed in found.keys:
            key = self._catalogue.keys.get(failed.id)
            if state is None or key is None or key.state is state or key.generation != failed.generation:
                continue  # what is said of old material is no word on the new
            key.state, key.state_reason = state, failure.message
            self._catalogue.state_changed(key.id)
            self._block(key_lane(key.id), BRIDGE_SECONDS)
            if state is KeyState.Invalid and failure.scope is FailureScope.KEY:
                works.append(self.refusals.refuse(key, failure.message))
            else:
                works.append(self._move(key, state, failure.message, found.seconds or None))
        return works

    async def _move(self, key: Key, state: KeyState, reason: str, seconds: float | None) -> None:
        with contextlib.suppress(InvalidRequestError):  # another attempt was first, or the key is gone or rotated
            await self._keys.update_key_state(
                key.id, state, reason, actor=ACTOR, for_seconds=seconds, generation=key.generation
            )

    # --- lanes ---------------------------------------------------------------------------------------------------

    def _block(self, place: str, seconds: float) -> None:
        """A lane or place comes last in this process."""
        blocked = self._snapshot.blocked
        blocked[place] = max(time.perf_counter() + seconds, blocked.get(place, 0.0))

    async def _cool(self, lane: str, seconds: float, reason: str) -> None:
        """Nobody in the fleet may use a lane for a while."""
        self._emit("lane.cooled", lane=lane, seconds=seconds, reason=reason)
        await self._ledger.record(lane, blocked_for_us=int(seconds * 1e6))

    # --- recovery ------------------------------------------------------------------------------------------------

    async def _until_recovered(self, key_id: str) -> None:
        pause = RECOVERY_SECONDS
        while True:
            key = self._catalogue.keys.get(key_id)
            if key is None or (key.state not in _RECOVERS_TO and key.provider_id not in self._reduced):
                return
            with contextlib.suppress(ApiKeyRouterError):  # the store is away, or the key is gone: seen next time
                probe = await self._keys.probe_key(key_id, actor=ACTOR)
                if probe.works:
                    await self._restore_load(key)
                    if probe.state in _RECOVERS_TO:
                        await self._move(key, _RECOVERS_TO[probe.state], probe.message, None)
                    return
            await asyncio.sleep(pause)
            pause = min(pause * 2, RECOVERY_SECONDS_MAX)

    async def _restore_load(self, key: Key) -> None:
        if self._reduced.pop(key.provider_id, None) is not None:
            for lane in (key_lane(key.id), provider_lane(key.provider_id)):
                await self._ledger.restart(lane, cooling=True)

    @staticmethod
    def _wall_us() -> int:
        return time.time_ns() // 1000


def _told(context: Any, name: str) -> object:
    """A field of whatever a caller gives as context; "" when it has none."""
    if isinstance(context, Mapping):
        return context.get(name) or ""
    return getattr(context, name, None) or ""
