"""What a client's settings mean for the ledger and for routing. Pure."""

from collections.abc import Sequence

from apikeyrouter.domain.components.limits import LimitProfile, LimitRow, compile_limits
from apikeyrouter.domain.models.accounting import LaneConfig
from apikeyrouter.domain.models.policy import Policy, PolicyScope, PolicyType

__all__ = ["CLIENT", "client_lane", "client_policy"]

CLIENT = "c:"
"""What the ids of clients' own lanes begin with."""
_PROFILE = LimitProfile()


def client_lane(name: str, *, rpm: int | None, tpm: int | None, concurrency: int | None) -> LaneConfig:
    """The lane of our own limits on a client; without limits when there are none."""
    if not (rpm or tpm or concurrency):
        return LaneConfig(id=f"{CLIENT}{name}")
    headroom = 0.0 if rpm or tpm else None
    row = LimitRow(rpm=rpm, tpm=tpm, concurrency=concurrency, headroom=headroom)
    return LaneConfig(id=f"{CLIENT}{name}", limits=compile_limits(row, _PROFILE))


def client_policy(name: str, providers: Sequence[str]) -> Policy:
    """The policy that keeps a client to its providers."""
    return Policy(
        id=f"client.{name}.providers", name=f"providers of client {name}", type=PolicyType.Routing,
        scope=PolicyScope.Client, scope_id=name, rules={"allowed_providers": list(providers)},
    )  # fmt: skip
