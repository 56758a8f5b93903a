"""Budgets in force: those of the file, those made in code, those of policies; in the catalogue, the ledger, the store.

A budget is put into the ledger before anybody names it, then kept as a document, so that every process on the store
holds in it within a second.
"""

import contextlib
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from apikeyrouter.domain.components.budgets import refuse_crowds
from apikeyrouter.domain.components.catalogue import BudgetRule, Catalogue
from apikeyrouter.domain.components.declared import Declared
from apikeyrouter.domain.interfaces.state_store import StateStore
from apikeyrouter.domain.models.accounting import ScopeConfig
from apikeyrouter.domain.models.system_error import InvalidRequestError, LedgerConfigError, StateStoreError
from apikeyrouter.infrastructure.ledger.calendars import boundaries, calendar_number
from apikeyrouter.infrastructure.ledger.encoding import scope_entry
from apikeyrouter.infrastructure.ledger.spread_ledger import AnyLedger
from apikeyrouter.infrastructure.observability.events import EventLog

KIND = "budget"
_log = EventLog("apikeyrouter")


class DeclaredBudgets:
    """Every budget, by who declared it. One event loop owns it."""

    def __init__(self, catalogue: Catalogue, ledger: AnyLedger, store: StateStore) -> None:
        self._catalogue, self._ledger, self._store = catalogue, ledger, store
        self._file: tuple[BudgetRule, ...] = ()
        self._policies: tuple[BudgetRule, ...] = ()
        self._code: dict[str, BudgetRule] = {}
        self._declared = Declared(store, KIND)

    def check_file(self, rules: Iterable[BudgetRule]) -> None:
        """Raises InvalidRequestError when these and the budgets made otherwise are more than can be held at once."""
        self._refuse_crowds(file=tuple(rules))

    def take_file(self, rules: Iterable[BudgetRule]) -> None:
        """The budgets of a file, whose scopes the ledger has already."""
        self._file = tuple(rules)
        self._index()

    async def take_policies(self, rules: Iterable[BudgetRule]) -> None:
        """The budgets that policies ask for. Raises as `declare`."""
        found = tuple(rules)
        if found == self._policies:
            return
        for rule in found:
            _refuse_uncountable(rule.scope)
        async with self._declared.turn():
            self._refuse_crowds(policies=found)
            await self._ledger.put(scopes=[rule.scope for rule in found])
            self._policies = found
            self._index()

    async def declare(self, rule: BudgetRule) -> None:
        """Add or change a budget made in code; in force here at once, elsewhere within a second.

        Raises:
            InvalidRequestError: its time zone is unknown, or a request would be in more budgets than can be held at
                once.
        """
        _refuse_uncountable(rule.scope)
        async with self._declared.turn():
            self._refuse_crowds(code={**self._code, rule.scope.id: rule})
            await self._ledger.put(scopes=[rule.scope])
            self._code[rule.scope.id] = rule
            self._index()
            try:
                await self._store.save_document(KIND, rule.scope.id, msgspec.to_builtins(rule))
                await self._declared.mark()
            except NotImplementedError as exc:
                _log.warning("budget.not_shared", budget_id=rule.scope.id, error=str(exc))

    async def withdraw(self, budget_id: str) -> bool:
        """Forget a budget made in code; whether there was one. What is held in it ends as it does."""
        async with self._declared.turn():
            known = self._code.pop(budget_id, None) is not None
            self._index()
            return await self._store.delete_document(KIND, budget_id) or known

    async def refresh(self) -> bool:
        """Take over what other processes have made, changed and forgotten; whether there was anything."""
        async with self._declared.turn():
            told = await self._store.list_documents(KIND)
            if not told and (not self._code or await self._declared.was_emptied()):
                return False
            try:
                found = {id_: msgspec.convert(document, BudgetRule, strict=False) for id_, document in told.items()}
            except msgspec.ValidationError as exc:
                raise StateStoreError(f"a shared budget cannot be read: {exc}") from exc
            if found == self._code:
                return False
            self._code = found
            self._index()
            return True

    async def restore(self) -> None:
        """Put every budget back into a ledger and a store that forgot them."""
        async with self._declared.turn():
            await self._ledger.put(scopes=[rule.scope for rule in (*self._policies, *self._code.values())])
            if not self._code or not await self._declared.was_emptied():
                return
            with contextlib.suppress(NotImplementedError):
                for id_, rule in self._code.items():
                    await self._store.save_document(KIND, id_, msgspec.to_builtins(rule))
                await self._declared.mark()

    def period(self, scope: ScopeConfig, now_us: int) -> tuple[int, int | None]:
        """Start and end of the period that contains `now_us`, in microseconds; the end None: never."""
        number = calendar_number(scope.period, scope.timezone)
        if number == 0:
            return 0, None
        start, end = boundaries(number, now_us)[:2]
        return start, end

    def _refuse_crowds(
        self,
        *,
        file: Sequence[BudgetRule] | None = None,
        policies: Sequence[BudgetRule] | None = None,
        code: Mapping[str, BudgetRule] | None = None,
    ) -> None:
        """Check what would be in force with these instead of those that are."""
        made = self._code if code is None else code
        refuse_crowds(
            (
                *(self._file if file is None else file),
                *(self._policies if policies is None else policies),
                *made.values(),
            )
        )

    def _index(self) -> None:
        everything: Sequence[BudgetRule] = (*self._code.values(), *self._policies, *self._file)
        self._catalogue.set_budgets(everything)


def _refuse_uncountable(scope: ScopeConfig) -> None:
    try:
        scope_entry(scope)
    except LedgerConfigError as exc:
        raise InvalidRequestError(str(exc), field="budget") from exc
