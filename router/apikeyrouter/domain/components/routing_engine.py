"""Chooses candidates by objective."""

from apikeyrouter.domain.models.system_error import NoEligibleKeysError

__all__ = ["NoEligibleKeysError"]
