"""Registers keys and keeps their states."""

from apikeyrouter.domain.models.system_error import KeyRegistrationError

__all__ = ["KeyRegistrationError"]
