"""How a namespace's accounting is divided into cells: which quota groups, teams and clients live in which. Pure.

Everything that a request holds is in one cell. Cell 0, `main`, is always there, and has what is named nowhere.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from apikeyrouter.domain.models.system_error import InvalidRequestError

__all__ = ["CELLS_MAX", "MAIN", "Cell", "CellLayout"]

MAIN = "main"
CELLS_MAX = 16
"""Cells of one namespace, `main` included."""
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
_EVERYWHERE = ("global", "provider", "policy")
_FIELDS = {"teams": "team", "clients": "client", "quota_groups": "quota group"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One cell: its name, and what lives in it. A key without a quota group of its own is a group by its id."""

    name: str
    quota_groups: tuple[str, ...] = ()
    teams: tuple[str, ...] = ()
    clients: tuple[str, ...] = ()


@dataclass(frozen=True)
class CellLayout:
    """The cells of a namespace, `main` first."""

    cells: tuple[Cell, ...] = (Cell(name=MAIN),)

    @classmethod
    def of(cls, cells: Iterable[Cell]) -> "CellLayout":
        """A layout of these cells, in their order; `main` first, whether it is named or not.

        Raises:
            InvalidRequestError: a name is none or is there twice, or something is in two cells; it names the field.
        """
        named = list(cells)
        _check_names([cell.name for cell in named])
        for field, what in _FIELDS.items():
            _check_once(field, what, named)
        for at, cell in enumerate(named):
            if cell.name != MAIN and not cell.quota_groups:
                raise InvalidRequestError(
                    "needs a quota group: whoever is bound to a cell is served by its keys",
                    field=f"cells[{at}].quota_groups",
                )
        for at, cell in enumerate(named):
            if any(":" in group for group in cell.quota_groups):
                raise InvalidRequestError("must have no colon in its name", field=f"cells[{at}].quota_groups")
        main = next((cell for cell in named if cell.name == MAIN), Cell(name=MAIN))
        return cls((main, *(cell for cell in named if cell.name != MAIN)))

    def __str__(self) -> str:
        return self.text

    @cached_property
    def text(self) -> str:
        """The layout as the ledger keeps it: equal for those that divide alike. Empty where there is one cell."""
        if len(self.cells) == 1:
            return ""
        parts = [
            [cell.name, sorted(cell.quota_groups), sorted(cell.teams), sorted(cell.clients)] for cell in self.cells
        ]
        return json.dumps(parts, separators=(",", ":"))

    @cached_property
    def groups(self) -> Mapping[str, int]:
        """The number of the cell of each quota group that is named."""
        return {group: number for number, cell in enumerate(self.cells) for group in cell.quota_groups}

    @cached_property
    def _teams(self) -> Mapping[str, int]:
        return {team: number for number, cell in enumerate(self.cells) for team in cell.teams}

    @cached_property
    def _clients(self) -> Mapping[str, int]:
        return {client: number for number, cell in enumerate(self.cells) for client in cell.clients}

    def of_group(self, group: str) -> int:
        """The cell of a quota group."""
        return self.groups.get(group, 0)

    def of_client(self, client: str) -> int | None:
        """The cell that a client is bound to; None: any."""
        return self._clients.get(client)

    def of_call(self, team: str | None, client: str | None) -> int | None:
        """The cell that may serve a team's, a client's request; None: any.

        Raises:
            InvalidRequestError: they are bound to different ones.
        """
        by_team = None if team is None else self._teams.get(team)
        by_client = None if client is None else self._clients.get(client)
        if by_team is None or by_client is None or by_team == by_client:
            return by_client if by_team is None else by_team
        raise InvalidRequestError(
            f"team {team!r} is accounted in cell {self.cells[by_team].name}, client {client!r} in"
            f" {self.cells[by_client].name}: no request can be of both"
        )

    def spans(self, scope_id: str) -> bool:
        """Whether more than one cell may spend a budget. Ids are `<kind>[:<of whom>]:<name>`, names have no colon."""
        kind, _, rest = scope_id.partition(":")
        whom = rest.rpartition(":")[0]
        if kind == "team":
            return whom not in self._teams
        if kind == "client":
            return whom not in self._clients
        return kind in _EVERYWHERE

    def of_scope(self, scope_id: str) -> int | None:
        """The one cell that spends a team's or client's budget; None: another kind's, or several cells."""
        kind, _, rest = scope_id.partition(":")
        whom = rest.rpartition(":")[0]
        return {"team": self._teams, "client": self._clients}.get(kind, {}).get(whom)


def _check_names(names: Sequence[str]) -> None:
    if len({*names, MAIN}) > CELLS_MAX:
        raise InvalidRequestError(f"there are at most {CELLS_MAX} cells, `{MAIN}` included", field="cells")
    for at, name in enumerate(names):
        if not _NAME.fullmatch(name):
            raise InvalidRequestError(
                "must be 1 to 32 small letters, digits and hyphens, a hyphen not first", field=f"cells[{at}].name"
            )
        if name in names[:at]:
            raise InvalidRequestError(f"{name!r} is there twice", field=f"cells[{at}].name")


def _check_once(field: str, what: str, cells: Sequence[Cell]) -> None:
    home: dict[str, str] = {}
    for at, cell in enumerate(cells):
        for one in getattr(cell, field):
            if one in home:
                raise InvalidRequestError(
                    f"{what} {one!r} is in cell {home[one]!r} already, and can be in one only: in two it would be"
                    " admitted twice over",
                    field=f"cells[{at}].{field}",
                )
            home[one] = cell.name
