"""The periods in which budgets and quotas are counted."""

from apikeyrouter.domain.models.accounting import Period
from apikeyrouter.domain.models.case_folding import CaseFolding

__all__ = ["TimeWindow"]


class TimeWindow(CaseFolding):
    """A calendar period in the time zone of whoever declares it; `Total` never ends."""

    Hourly = "hourly"
    Daily = "daily"
    Weekly = "weekly"
    Monthly = "monthly"
    Total = "total"

    @property
    def period(self) -> Period:
        """The same period in the ledger's words."""
        return Period(self.value)
