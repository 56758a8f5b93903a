"""The pages: each asks for what it needs, has it shown, and takes actions. What is shown is made in `shown`."""

from apikeyrouter_dashboard.pages.frame import Page
from apikeyrouter_dashboard.pages.headroom import HeadroomPage
from apikeyrouter_dashboard.pages.money import MoneyPage
from apikeyrouter_dashboard.pages.pool import PoolPage

__all__ = ["PAGES"]

PAGES: tuple[type[Page], ...] = (PoolPage, HeadroomPage, MoneyPage)
"""In the order of the navigation."""
