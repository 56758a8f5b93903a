"""Evaluates policies: which apply to whom, what they demand together, what a new one would change."""

import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from copy import deepcopy
from typing import Any, Protocol

from apikeyrouter.domain.components.arguments import checking
from apikeyrouter.domain.components.budgets import policy_budgets
from apikeyrouter.domain.components.catalogue import BudgetRule, Catalogue
from apikeyrouter.domain.components.declared import Declared
from apikeyrouter.domain.components.policy_checks import check_policy, evaluated
from apikeyrouter.domain.components.policy_conflicts import conflicts_among, resolved
from apikeyrouter.domain.components.policy_constraints import Constraints, compile_constraints
from apikeyrouter.domain.components.policy_impact import Choose, impact_of
from apikeyrouter.domain.components.policy_rules import read_policy
from apikeyrouter.domain.components.policy_statements import OPTION_SCOPES, Statement, made_of
from apikeyrouter.domain.components.policy_windows import NEVER
from apikeyrouter.domain.components.shared_counts import SharedCounts
from apikeyrouter.domain.interfaces.state_store import StateQuery, StateStore
from apikeyrouter.domain.models.accounting import Period
from apikeyrouter.domain.models.call import Facts
from apikeyrouter.domain.models.policy import (
    Policy,
    PolicyConflict,
    PolicyCounts,
    PolicyImpact,
    PolicyResult,
    PolicyScope,
    PolicyType,
    ValidationResult,
)
from apikeyrouter.domain.models.system_error import InvalidRequestError

__all__ = ["PolicyBudgets", "PolicyEngine"]

KIND = "policy"
COUNTS = "policy_counts"
"""Counters: what a policy did, by its id, a colon and a field of `PolicyCounts`."""
KNOWN_MAX = 4096
"""Kinds of requests whose constraints are remembered; beyond it the memory starts afresh."""
OWN_MAX = 256
"""Policies of requests' own that are remembered as compiled."""
OWN_BUDGETS_MAX = 1000
"""Budgets that requests' own policies may make, in one process."""
_DAY = 86_400.0
_LONGEST_SECONDS = {
    Period.HOURLY: 3600.0, Period.DAILY: _DAY, Period.WEEKLY: 7 * _DAY, Period.MONTHLY: 31 * _DAY,
}  # fmt: skip
"""Of a request's own budget, how long what was spent may count. A total counts for ever."""
_WIDE = (PolicyScope.Default, PolicyScope.Global)
_TARGETED = (PolicyScope.Client, PolicyScope.Team, PolicyScope.Provider, PolicyScope.Model)
"""Scopes whose policies apply to some requests and not to others."""


class PolicyBudgets(Protocol):
    """Puts the budgets of policies into force."""

    async def take_policies(self, rules: Iterable[BudgetRule]) -> None:
        """Replace them. Raises InvalidRequestError for more than a request can be held in."""
        ...


@checking(
    "delete_policy", "get_policy", "get_counts", "evaluate_policy", "resolve_policy_conflicts",
    "find_policy_conflicts", "dry_run_policy",
)  # fmt: skip
class PolicyEngine:
    """The policies of this deployment: of the configuration file, made in code, and brought along by requests.

    `active`: whether there are any; a request without one of its own asks nothing further when there are none.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        store: StateStore,
        budgets: PolicyBudgets,
        *,
        choose: Choose,
        recent: Callable[[], Awaitable[tuple[list[Facts], bool]]],
        started: Callable[[], Awaitable[None]],
        now: Callable[[], float] = time.time,
    ) -> None:
        self._catalogue, self._store, self._budgets = catalogue, store, budgets
        self._choose, self._recent, self._started, self._now = choose, recent, started, now
        self.active = False
        self._file: dict[str, Policy] = {}
        self._code: dict[str, Policy] = {}
        self._unsaved: set[str] = set()
        self._declared = Declared(store, KIND)
        self._statements: list[Statement] = []
        self._targets: tuple[frozenset[str], ...] = (frozenset(),) * len(_TARGETED)
        self._known: dict[tuple[object, ...], Constraints] = {}
        self._shared: dict[tuple[tuple[Statement, ...], tuple[Statement, ...]], Constraints] = {}
        self._own: dict[int, tuple[Policy, Any, tuple[Statement, ...]]] = {}
        self._texts: dict[str, Policy] = {}
        self._own_budgets: dict[str, BudgetRule] = {}
        self._own_used: dict[str, float] = {}
        """When a request last brought a budget along (Unix seconds)."""
        self._leaving: Collection[str] = ()
        self._configured: frozenset[str] = frozenset()
        self._counts = SharedCounts(store, COUNTS)
        self.flush_counts, self.abandon_counts = self._counts.flush, self._counts.abandon

    # --- configuring ---------------------------------------------------------------------------------------------

    async def configure(self, policy: Policy | Mapping[str, Any]) -> Policy:
        """Put a policy into force: here at once, elsewhere within a second. The same id replaces what had it.

        Raises:
            InvalidRequestError: it is not valid, or its id is that of a policy of the configuration file.
        """
        await self._started()
        made = _parsed(policy)
        errors, _ = check_policy(made, providers=self._catalogue.providers, keys=self._catalogue.keys)
        if errors:
            field, _, reason = errors[0].partition(": ")
            raise InvalidRequestError(reason, field=field)
        if made.id in self._file:
            raise InvalidRequestError(f"policy {made.id!r} is declared in the configuration file", field="id")
        kept = made.model_copy(deep=True)
        async with self._declared.turn():
            await self._adopt({**self._code, kept.id: kept})
            try:
                await self._store.save_policy(kept)
                await self._declared.mark()
            except NotImplementedError:  # a user's own store may keep none; then it is this process's alone
                self._unsaved.add(kept.id)
        return made

    async def delete_policy(self, policy_id: str) -> None:
        """Take a policy out of force. Its budgets stay in the books, and bind nobody any more.

        Raises:
            InvalidRequestError: there is none with that id, or it is one of the configuration file.
        """
        await self._started()
        if policy_id in self._file:
            raise InvalidRequestError(f"policy {policy_id!r} is declared in the configuration file", field="policy_id")
        async with self._declared.turn():
            known = policy_id in self._code
            await self._adopt({id_: policy for id_, policy in self._code.items() if id_ != policy_id})
            self._unsaved.discard(policy_id)
            if not await self._store.delete_policy(policy_id) and not known:
                raise InvalidRequestError(f"no policy {policy_id!r}", field="policy_id")
        await self._counts.forget(f"{policy_id}:{field}" for field in PolicyCounts.model_fields)

    async def take_file(self, policies: Iterable[Policy]) -> bool:
        """The policies of a configuration file, instead of those of before; whether that changed anything.

        Their ids win over those of policies that were made in code.
        """
        found = {policy.id: policy for policy in policies}
        if found == self._file:
            return False
        async with self._declared.turn():
            before, self._file = self._file, {id_: policy.model_copy(deep=True) for id_, policy in found.items()}
            try:
                await self._adopt(self._code)
            except BaseException:
                self._file = before
                raise
            return True

    async def refresh(self) -> bool:
        """Take over what other processes have configured; whether there was anything."""
        async with self._declared.turn():
            found = {policy.id: policy for policy in await self._store.query_state(StateQuery("Policy"))}
            found.update((id_, self._code[id_]) for id_ in self._unsaved)
            same = found == self._code or (len(found) == len(self._unsaved) and await self._declared.was_emptied())
            if same and not any(map(self._is_over, self._own_budgets.values())):
                return False
            await self._adopt_with({}, self._code if same else found)
            return True

    def _is_over(self, rule: BudgetRule) -> bool:
        """Whether the period of a request's own budget has ended since a request brought it along: nothing counts."""
        seconds = _LONGEST_SECONDS.get(rule.scope.period)
        return seconds is not None and self._now() - self._own_used.get(rule.scope.id, 0.0) > seconds

    async def restore(self) -> None:
        """Save again what an emptied store has forgotten."""
        async with self._declared.turn():
            kept = self._code.keys() - self._unsaved
            if kept and await self._declared.was_emptied():
                for id_ in kept:
                    await self._store.save_policy(self._code[id_])
                await self._declared.mark()

    async def _adopt(self, code: Mapping[str, Policy]) -> None:
        """Decide under these policies from now on. Their budgets are in force before anybody is held in them."""
        everything = {**code, **self._file}
        statements: list[Statement] = []
        budgets: dict[str, BudgetRule] = {}
        for policy in sorted(everything.values(), key=lambda policy: policy.id):
            if policy.enabled:
                rules = read_policy(policy)
                statements.extend(made_of(policy, rules))
                budgets.update((rule.scope.id, rule) for rule in policy_budgets(policy, rules))
        await self._budgets.take_policies([*({**self._own_budgets, **budgets}).values()])
        self._code = dict(code)
        self._configured = frozenset(everything)
        self._statements = statements
        self._targets = tuple(
            frozenset(str(one.policy.scope_id) for one in statements if one.policy.scope is scope)
            for scope in _TARGETED
        )
        self.active = bool(statements)
        self._known.clear()
        self._shared.clear()
        self._catalogue.changed()

    # --- one request ---------------------------------------------------------------------------------------------

    async def own(self, policy: Policy | Mapping[str, Any]) -> Policy:
        """A request's own policy, ready to be decided under, its budgets in force.

        Raises:
            InvalidRequestError: it is not valid.
        """
        made = self._interned(policy)
        asked = policy_budgets(made, [one.rules for one in self._statements_of(made)])
        known = self._catalogue.budget_rules() if asked else {}
        wanted = {rule.scope.id: rule for rule in asked if rule.scope.id not in known or rule.scope.id in self._leaving}
        if wanted:
            async with self._declared.turn():
                await self._adopt_with(wanted, self._code)
                self._own_used.update((rule.scope.id, self._now()) for rule in asked)
        elif asked:
            self._own_used.update((rule.scope.id, self._now()) for rule in asked)
        return made

    async def _adopt_with(self, wanted: Mapping[str, BudgetRule], code: Mapping[str, Policy]) -> None:
        """Decide under these policies, with these budgets besides those that requests brought along and that still
        count; all as it was where that fails."""
        before = self._own_budgets
        over = self._leaving = [id_ for id_, rule in before.items() if self._is_over(rule)]
        self._own_budgets = {**{id_: rule for id_, rule in before.items() if id_ not in over}, **wanted}
        try:
            if len(self._own_budgets) > OWN_BUDGETS_MAX:
                raise InvalidRequestError(f"policies of requests may make at most {OWN_BUDGETS_MAX} budgets")
            for id_ in over:
                self._own_used.pop(id_, None)
            await self._adopt(code)
        except BaseException:
            self._own_budgets = before
            raise
        finally:
            self._leaving = ()

    def constraints(
        self, *, client: str | None, team: str | None, provider_id: str | None, model: str, own: Policy | None
    ) -> Constraints | None:
        """All that applies to a request, compiled; None when nothing does. The same object for the same policies."""
        clients, teams, providers, models = self._targets
        mine = _NONE if own is None else self._statements_of(own)
        key = (
            client if client in clients else None,
            team if team in teams else None,
            provider_id if provider_id in providers else None,
            model if model in models else None,
            mine,
        )
        known = self._known.get(key)
        if known is not None and (known.until == NEVER or known.until > self._now()):
            return known if known is not _NOTHING else None
        made = self._compiled(mine, client=client, team=team, provider_id=provider_id, model=model)
        if len(self._known) >= KNOWN_MAX:
            self._known.clear()
        self._known[key] = _NOTHING if made is None else made
        return made

    def _compiled(
        self, mine: tuple[Statement, ...], *, client: str | None, team: str | None, provider_id: str | None, model: str
    ) -> Constraints | None:
        asking = {PolicyScope.Team: team, PolicyScope.Client: client}
        pinned = {PolicyScope.Provider: provider_id, PolicyScope.Model: model}
        found = (*(one for one in self._statements if _applies(one, asking)), *mine)
        wishing = tuple(one for one in found if not one.of_options or _is_pinned(one, pinned))
        return self._same(found, wishing) if found else None

    def _same(self, found: tuple[Statement, ...], wishing: tuple[Statement, ...]) -> Constraints:
        """The constraints of these statements: one object for all who share them, for pools are kept by it."""
        now = self._now()
        known = self._shared.get((found, wishing))
        if known is None or known.until <= now:
            if len(self._shared) >= KNOWN_MAX:
                self._shared.clear()
            known = self._shared[found, wishing] = compile_constraints(found, preferring=wishing, now=now)
        return known

    def _statements_of(self, policy: Policy) -> tuple[Statement, ...]:
        """The statements of a request's own policy, compiled once while it stays as it was."""
        known = self._own.get(id(policy))
        if known is not None and known[0] is policy and known[1] == policy.rules:
            return known[2]
        errors, _ = check_policy(policy)
        if errors:
            field, _, reason = errors[0].partition(": ")
            raise InvalidRequestError(reason, field=f"policy.{field}")
        statements = tuple(made_of(policy, read_policy(policy), of_request=True)) if policy.enabled else _NONE
        if len(self._own) >= OWN_MAX:
            self._own.clear()
        self._own[id(policy)] = (policy, deepcopy(policy.rules), statements)
        return statements

    def _interned(self, policy: Policy | Mapping[str, Any]) -> Policy:
        """One object for equal policies, so that what is compiled of it serves all requests that bring it along."""
        made = _parsed(policy)
        text = made.model_dump_json()
        if len(self._texts) >= OWN_MAX:
            self._texts.clear()
        return self._texts.setdefault(text, made.model_copy(deep=True))

    def held_in(
        self, *, client: str | None, team: str | None, provider_id: str | None, key_id: str | None, model: str
    ) -> list[str]:
        """The policies of which such a request is in the budgets."""
        found = self.constraints(client=client, team=team, provider_id=provider_id, model=model, own=None)
        return [] if found is None else found.held_in(provider_id=provider_id, key_id=key_id, model=model)

    def count(self, policy_ids: Iterable[str], what: str) -> None:
        """Note that policies did something to a request; see `PolicyCounts`. Those that requests bring along are not
        counted: nobody could ask for them."""
        for policy_id in policy_ids:
            if policy_id in self._configured:
                self._counts.add(f"{policy_id}:{what}")

    # --- asking --------------------------------------------------------------------------------------------------

    async def list_policies(self) -> list[Policy]:
        """Every policy, by id, those that are switched off included."""
        await self._started()
        await self.refresh()
        everything = {**self._code, **self._file}
        return [everything[id_].model_copy(deep=True) for id_ in sorted(everything)]

    async def get_policy(self, policy_id: str) -> Policy | None:
        """A policy, or None."""
        return next((policy for policy in await self.list_policies() if policy.id == policy_id), None)

    async def get_counts(self, policy_id: str) -> PolicyCounts:
        """What a policy has done in the whole fleet since it was first configured, or would have done. What another
        process has counted is told within a second."""
        await self._started()
        names = {field: f"{policy_id}:{field}" for field in PolicyCounts.model_fields}
        totals = await self._counts.totals([*names.values()])
        return PolicyCounts(**{field: totals[name] for field, name in names.items()})

    async def evaluate_policy(self, policy: Policy | Mapping[str, Any], context: Mapping[str, Any]) -> PolicyResult:
        """What one policy says to a context: team, client, provider_id, model, key_id, region, tier, cost (dollars),
        success_rate, at (an aware datetime; default now). What the context leaves out is not judged.

        Raises:
            InvalidRequestError: the policy or the context makes no sense.
        """
        await self._started()
        return evaluated(_parsed(policy), context, self._catalogue, self._now())

    async def get_applicable_policies(
        self, scope: PolicyScope | str, type: PolicyType | str | None = None, scope_id: str | None = None
    ) -> list[Policy]:
        """The policies in force for whoever is in a scope, the one that prevails first: the scope's own (of `scope_id`
        if given), the global ones and the defaults. `type`: of that kind only.
        """
        await self._started()
        of = PolicyScope.lookup(str(scope))
        kind = None if type is None else PolicyType.lookup(str(type))
        if of is None or (type is not None and kind is None):
            known, field = (PolicyScope, "scope") if of is None else (PolicyType, "type")
            raise InvalidRequestError(f"must be one of {', '.join(known)}", field=field)
        wide = (PolicyScope.Default,) if of is PolicyScope.Default else _WIDE
        chosen: dict[str, Policy] = {}
        for one in sorted(self._statements, key=lambda one: one.order):
            policy = one.policy
            mine = policy.scope is of and (scope_id is None or policy.scope_id in (None, scope_id))
            if (mine or policy.scope in wide) and kind in (None, policy.type):
                chosen[policy.id] = policy.model_copy(deep=True)
        return list(chosen.values())

    async def resolve_policy_conflicts(self, policies: Collection[Policy]) -> Policy:
        """One policy that says what these say together. Raises InvalidRequestError for none, or an invalid one."""
        return resolved(policies)

    async def find_policy_conflicts(self, policies: Collection[Policy] | None = None) -> list[PolicyConflict]:
        """Where policies contradict each other, which one holds, and why. Default: those that are configured."""
        found = policies if policies is not None else await self.list_policies()
        return conflicts_among(found)

    async def validate_policy(self, policy: Policy | Mapping[str, Any]) -> ValidationResult:
        """Whether a policy is sound. Unknown rules and wrong values are errors; names that nobody has heard of, and
        contradictions with the policies that are configured, are warnings."""
        await self._started()
        try:
            made = _parsed(policy)
        except InvalidRequestError as exc:
            return ValidationResult(valid=False, errors=[str(exc)])
        errors, warnings = check_policy(made, providers=self._catalogue.providers, keys=self._catalogue.keys)
        if not errors:
            others = [known for known in await self.list_policies() if known.id != made.id]
            found = [one for one in conflicts_among([*others, made]) if made.id in one.policy_ids]
            warnings += [conflict.explanation for conflict in found]
        return ValidationResult(valid=not errors, errors=errors, warnings=warnings)

    async def dry_run_policy(
        self, policy: Policy | Mapping[str, Any], context: Mapping[str, Any] | None = None
    ) -> PolicyImpact:
        """What a policy would change if it were configured (instead of what has its id now): for a request of the
        context (model, provider_id, team, client), and for the recent requests of every process on the store
        (`all_processes` says whether the store tells them; else of this one); and what has its id now did until now,
        in the whole fleet. Changes nothing.

        Raises:
            InvalidRequestError: the policy is not valid, or the context names a model that nobody serves.
        """
        await self._started()
        made = _parsed(policy)
        errors, _ = check_policy(made, providers=self._catalogue.providers, keys=self._catalogue.keys)
        if errors:
            field, _, reason = errors[0].partition(": ")
            raise InvalidRequestError(reason, field=field)
        others = [one for one in self._statements if one.policy.id != made.id]
        new = made_of(made, read_policy(made)) if made.enabled else []

        def after(*, client: str | None, team: str | None, provider_id: str | None, model: str) -> Constraints | None:
            asking = {PolicyScope.Team: team, PolicyScope.Client: client}
            pinned = {PolicyScope.Provider: provider_id, PolicyScope.Model: model}
            found = [one for one in [*others, *new] if _applies(one, asking)]
            wishing = [one for one in found if not one.of_options or _is_pinned(one, pinned)]
            return compile_constraints(found, preferring=wishing, now=self._now()) if found else None

        def before(*, client: str | None, team: str | None, provider_id: str | None, model: str) -> Constraints | None:
            return self.constraints(client=client, team=team, provider_id=provider_id, model=model, own=None)

        recent, everywhere = await self._recent()
        impact = impact_of(self._catalogue, self._choose, before, after, context or {}, recent)
        counts = await self.get_counts(made.id)
        return impact.model_copy(update={"counts": counts, "all_processes": everywhere})


_NONE: tuple[Statement, ...] = ()
_NOTHING = Constraints([], preferring=[], until=NEVER)
"""What applies to requests that no policy speaks of."""


def _parsed(policy: Policy | Mapping[str, Any]) -> Policy:
    """A policy, checked: a copy that was made with changes may hold anything. Errors: InvalidRequestError."""
    return Policy(**dict(policy)) if isinstance(policy, Policy) else Policy.parse(policy)


def _applies(statement: Statement, asking: Mapping[PolicyScope, str | None]) -> bool:
    policy = statement.policy
    return policy.scope in _WIDE or policy.scope in OPTION_SCOPES or asking[policy.scope] == policy.scope_id


def _is_pinned(statement: Statement, pinned: Mapping[PolicyScope, str | None]) -> bool:
    return pinned.get(statement.policy.scope) == statement.policy.scope_id
