"""A client: who may call, what it may ask for, and how much. Its token is kept as a hash only."""

import re
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AwareDatetime, Field

from apikeyrouter.domain.models.accounting import AMOUNT_MAX
from apikeyrouter.domain.models.edge import EdgeModel
from apikeyrouter.domain.models.names import addressable
from apikeyrouter.domain.models.system_error import InvalidRequestError

__all__ = ["Client", "ClientName", "NewName", "Priority"]

NAME_BYTES_MAX = 64
NAMES_MAX = 256
WEIGHT_MAX = 1_000_000
SHA256 = r"^[0-9a-f]{64}$"
_FORBIDDEN = re.compile(r"[\s:\x00-\x1f\x7f]")
Priority = Literal["interactive", "batch"]
"""Whose requests are served first where requests wait for room: a person's before a batch's."""


def _name(value: str) -> str:
    if not value.isprintable() or _FORBIDDEN.search(value) or len(value.encode()) > NAME_BYTES_MAX:
        raise InvalidRequestError(f"must have no blanks and no colons, and at most {NAME_BYTES_MAX} bytes")
    return value


def _now() -> datetime:
    return datetime.now(UTC)


ClientName = Annotated[str, Field(min_length=1, max_length=NAME_BYTES_MAX), AfterValidator(_name)]
NewName = Annotated[ClientName, AfterValidator(addressable)]
"""A name as it must be where it is given; one that was stored before is taken as it is."""
_Named = Annotated[str, Field(min_length=1, max_length=256)]
_Amount = Annotated[int, Field(ge=1, le=AMOUNT_MAX, strict=True)]


class Client(EdgeModel):
    """One client. `models` (aliases included) and `providers` None: all. Rates are our own limits on it.

    `weight`: its share where capacity is scarce. `enabled` False, or a time after `expires_at`: its requests are
    refused. The token before the last rotation is taken until `old_token_until`. Hashes are SHA-256, in hex.
    """

    name: ClientName
    team: _Named | None = None
    models: Annotated[list[_Named], Field(max_length=NAMES_MAX)] | None = None
    providers: Annotated[list[_Named], Field(min_length=1, max_length=NAMES_MAX)] | None = None
    rpm: _Amount | None = None
    tpm: _Amount | None = None
    concurrency: _Amount | None = None
    weight: Annotated[float, Field(gt=0, le=WEIGHT_MAX, allow_inf_nan=False)] = 1.0
    priority: Priority = "interactive"
    enabled: bool = True
    expires_at: AwareDatetime | None = None
    created_at: AwareDatetime = Field(default_factory=_now)
    rotated_at: AwareDatetime | None = None
    token_sha256: str = Field(repr=False, pattern=SHA256)
    old_token_sha256: str | None = Field(default=None, repr=False, pattern=SHA256)
    old_token_until: AwareDatetime | None = None

    def public(self) -> dict[str, Any]:
        """What may be shown: everything but the hashes, in JSON types."""
        return self.model_dump(mode="json", exclude={"token_sha256", "old_token_sha256"})
