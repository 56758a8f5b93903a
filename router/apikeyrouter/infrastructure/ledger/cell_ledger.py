"""The ledger of one cell among several: what `ScriptLedger` does, and both sides of escrow."""

from collections.abc import Sequence

from apikeyrouter.domain.models.accounting import ScopeConfig, Stamp
from apikeyrouter.domain.models.escrow import ChildBooks, HomeBooks
from apikeyrouter.domain.models.system_error import LedgerConfigError
from apikeyrouter.infrastructure.ledger.codes import Code
from apikeyrouter.infrastructure.ledger.encoding import scope_entry, scope_field
from apikeyrouter.infrastructure.ledger.engine import Argument
from apikeyrouter.infrastructure.ledger.ledger import ScriptLedger

__all__ = ["CellLedger"]


class CellLedger(ScriptLedger):
    """One cell. Sums of money only grow: a call that is repeated, late or overtaken changes nothing."""

    async def put_funded(self, scopes: Sequence[ScopeConfig]) -> Stamp:
        """Add or change scopes of which another cell is the home. Their limit is what they are funded with."""
        return await self._put([scope_entry(scope, funded=True) for scope in scopes])

    async def grant(self, scope: str, cell: int, told: ChildBooks, *, asked: int = 0, least: int = 0) -> HomeBooks:
        """Home side: take in what another cell told of a scope, and grant it `asked`, or as much as is free if that is
        `least` at least. Raises LedgerConfigError: the scope is not configured, or not at home here.
        """
        words: list[Argument] = [scope_field(scope), cell, told.start_us, told.funded, told.returned, asked, least]
        reply = await self._run("grant", words)
        self._stamp(reply)
        self._refuse_unknown(reply)
        if reply[0] == Code.CONFLICT:
            raise LedgerConfigError(f"scope {scope} is funded by another cell")
        start, end, limit, settled, held, suspense, *sums = reply[5:]
        pairs = tuple(zip(sums[::2], sums[1::2], strict=True))
        return HomeBooks(start, end, limit, settled, held, suspense, pairs)

    async def fund(
        self, scope: str, *, start_us: int = 0, granted: int = 0, returned: int = 0, recall: int = 0
    ) -> ChildBooks:
        """The other side: credit a scope with what its home granted to this cell, and return what is free, up to the
        sum `recall`. Raises LedgerConfigError: no other cell funds it, or it is not configured.
        """
        reply = await self._run("fund", [scope_field(scope), start_us, granted, returned, recall])
        self._stamp(reply)
        self._refuse_unknown(reply)
        if reply[0] == Code.CONFLICT:
            raise LedgerConfigError(f"scope {scope} is funded by no other cell")
        return ChildBooks(*reply[5:])
