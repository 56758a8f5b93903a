"""The pages: each asks for what it needs, has it shown, and takes actions. What is shown is made in `shown`."""

from apikeyrouter_dashboard.pages.decisions import DecisionsPage
from apikeyrouter_dashboard.pages.fleet import FleetPage
from apikeyrouter_dashboard.pages.flight import FlightPage
from apikeyrouter_dashboard.pages.frame import Page
from apikeyrouter_dashboard.pages.headroom import HeadroomPage
from apikeyrouter_dashboard.pages.manage import ManagePage
from apikeyrouter_dashboard.pages.money import MoneyPage
from apikeyrouter_dashboard.pages.pool import PoolPage
from apikeyrouter_dashboard.pages.setup import SetupPage

__all__ = ["PAGES"]

PAGES: tuple[type[Page], ...] = (
    PoolPage, HeadroomPage, MoneyPage, FlightPage, DecisionsPage, FleetPage, ManagePage, SetupPage,
)  # fmt: skip
"""In the order of the navigation."""
