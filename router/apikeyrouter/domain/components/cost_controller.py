"""Estimates costs and keeps budgets."""

from apikeyrouter.domain.models.system_error import BudgetExceededError

__all__ = ["BudgetExceededError"]
