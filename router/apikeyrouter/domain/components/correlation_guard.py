"""The guard against correlated failures: when a provider refuses many keys alike, the keys are not at fault. Pure.

One key that is refused is a bad key. Several in a row, of several organisations, without one success in between, are a
provider in trouble: it is left alone for a while, and the keys are spared.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True, slots=True, kw_only=True)
class Guard:
    """The rules: `keys` that are refused alike, within how long.

    `suspect_seconds`: how long a provider stays under suspicion after the last refusal; until then its refusals say
    nothing of keys. `pause_seconds`: how long nobody asks a provider after it came under suspicion.
    """

    keys: int = 3
    within_seconds: float = 10.0
    suspect_seconds: float = 60.0
    pause_seconds: float = 15.0


class Refusal(NamedTuple):
    """A key that a provider refused, `at` seconds of the caller's clock."""

    key_id: str
    quota_group: str
    at: float


def alike(
    refusals: Sequence[Refusal], groups: Collection[str], guard: Guard, *, answered_at: float, now: float
) -> list[Refusal]:
    """The refusals that are the provider's fault, one for each key; empty: each speaks for its own key.

    `groups`: the quota groups of all keys of the provider; where there are several, one alone is no evidence against
    the provider. `answered_at`: when the latest request was sent that the provider has answered well.
    """
    recent: dict[str, Refusal] = {}
    for refusal in refusals:
        if refusal.at > max(answered_at, now - guard.within_seconds):
            recent.setdefault(refusal.key_id, refusal)
    found = list(recent.values())
    several = len({refusal.quota_group for refusal in found}) > 1 or len(groups) < 2
    return found if len(found) >= guard.keys and several else []


class Suspects:
    """The providers under suspicion in this process."""

    def __init__(self) -> None:
        self._since: dict[str, tuple[float, float]] = {}

    def add(self, provider_id: str, now: float, seconds: float) -> None:
        """Suspect a provider for so long, or go on doing so."""
        since, _ = self._since.get(provider_id, (now, now))
        self._since[provider_id] = (since, now + seconds)

    def has(self, provider_id: str, *, answered_at: float, now: float) -> bool:
        """Whether a provider is under suspicion. A good answer since it came under it clears it."""
        known = self._since.get(provider_id)
        if known is None:
            return False
        if answered_at > known[0] or now > known[1]:
            del self._since[provider_id]
            return False
        return True
