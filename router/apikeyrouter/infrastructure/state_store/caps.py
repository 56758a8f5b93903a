"""How many decisions and transitions a store keeps."""

from dataclasses import dataclass

from apikeyrouter.domain.models.system_error import InvalidRequestError

KEPT_DEFAULT = 1000
KEPT_MAX = 1_000_000


@dataclass(slots=True)
class Caps:
    """What was given explicitly stays; what was not follows the router's settings."""

    max_decisions: int | None
    max_transitions: int | None
    _followed: tuple[int, int] = (KEPT_DEFAULT, KEPT_DEFAULT)

    def __post_init__(self) -> None:
        _check(self.max_decisions, "max_decisions")
        _check(self.max_transitions, "max_transitions")

    @property
    def decisions(self) -> int:
        """How many decisions to keep."""
        return self._followed[0] if self.max_decisions is None else self.max_decisions

    @property
    def transitions(self) -> int:
        """How many transitions to keep."""
        return self._followed[1] if self.max_transitions is None else self.max_transitions

    def follow(self, *, max_decisions: int, max_transitions: int) -> None:
        """Take the settings' numbers where none were given. Errors: InvalidRequestError."""
        _check(max_decisions, "max_decisions")
        _check(max_transitions, "max_transitions")
        self._followed = (max_decisions, max_transitions)


def _check(number: int | None, field: str) -> None:
    if number is not None and (isinstance(number, bool) or not 1 <= number <= KEPT_MAX):
        raise InvalidRequestError(f"must be between 1 and {KEPT_MAX}", field=field)
