"""Which options of a pool may serve: those whose keys are not out. Kept up key by key, whatever the number of keys."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from apikeyrouter.domain.components.pool import Option

__all__ = ["Members"]


class Members:
    """The options of one pool by key and by quota group. `always`: those count whose keys are out, too."""

    __slots__ = ("_by_key", "by_group", "eligible")

    def __init__(self, options: "Iterable[Option]", *, always: bool = False) -> None:
        self.eligible: dict[Option, None] = {}
        self._by_key: dict[str, list[Option]] = {}
        self.by_group: dict[str, dict[Option, None]] = {}
        """The eligible options of each quota group that has any."""
        for option in options:
            self._by_key.setdefault(option.key.id, []).append(option)
            if always or option.key.state.eligible:
                self._enter(option)

    def in_group(self, group: str, count: int) -> "list[Option]":
        """At most `count` eligible options of a quota group."""
        return [option for option, _ in zip(self.by_group.get(group, ()), range(count), strict=False)]

    def moved(self, key_id: str) -> "Sequence[Option]":
        """The state of a key is another: the options that have come or gone by that."""
        found = []
        for option in self._by_key.get(key_id, ()):
            if option.key.state.eligible is not (option in self.eligible):
                (self._leave if option in self.eligible else self._enter)(option)
                found.append(option)
        return found

    def _enter(self, option: "Option") -> None:
        self.eligible[option] = None
        self.by_group.setdefault(option.key.quota_group, {})[option] = None

    def _leave(self, option: "Option") -> None:
        del self.eligible[option]
        group = self.by_group[option.key.quota_group]
        del group[option]
        if not group:
            del self.by_group[option.key.quota_group]
