"""How cells are written: in a configuration file, in code, in an environment variable."""

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from pydantic import Field, ValidationError

from apikeyrouter.domain.components.cells import CELLS_MAX, Cell, CellLayout
from apikeyrouter.domain.models.edge import complaints
from apikeyrouter.domain.models.system_error import InvalidRequestError
from apikeyrouter.infrastructure.config.fields import Entry, Name

__all__ = ["AccountingEntry", "CellEntry", "layout_of", "read_cells"]


class CellEntry(Entry):
    """A cell: the quota groups whose keys are metered in it, and the teams and clients that it alone serves."""

    name: str
    quota_groups: list[Name] = Field(default_factory=list)
    teams: list[Name] = Field(default_factory=list)
    clients: list[Name] = Field(default_factory=list)

    def compiled(self) -> Cell:
        """The record of it."""
        return Cell(
            name=self.name, quota_groups=tuple(self.quota_groups), teams=tuple(self.teams), clients=tuple(self.clients)
        )


class AccountingEntry(Entry):
    """How the accounting is divided. Without cells there is one, `main`."""

    cells: list[CellEntry] = Field(default_factory=list, max_length=CELLS_MAX)

    def compiled(self) -> CellLayout:
        """The layout of it. Raises InvalidRequestError naming the field."""
        return CellLayout.of(entry.compiled() for entry in self.cells)


def read_cells(told: object) -> CellLayout:
    """A layout from what code gives (a list of mappings) or an environment variable (the same as JSON).

    Raises:
        InvalidRequestError: with the first complaint.
    """
    if isinstance(told, CellLayout):
        return told
    if isinstance(told, str):
        try:
            told = json.loads(told)
        except ValueError as exc:
            raise InvalidRequestError("must be a JSON list of cells") from exc
    if isinstance(told, Mapping) and told.keys() == {"cells"}:
        told = told["cells"]  # as settings are dumped
    if isinstance(told, Mapping) or not isinstance(told, Iterable):
        raise InvalidRequestError("must be a list of cells")
    entries: list[Any] = list(told)
    try:
        return AccountingEntry(cells=entries).compiled()
    except ValidationError as exc:
        path, reason = next(iter(complaints(exc)))
        raise InvalidRequestError(f"{path}: {reason}") from exc
    except InvalidRequestError as exc:
        raise InvalidRequestError(f"{exc.field}: {exc.reason}") from None


class _Client(Protocol):
    """What of a client says where its requests may be accounted."""

    @property
    def name(self) -> str: ...

    @property
    def team(self) -> str | None: ...

    @property
    def lane(self) -> str | None: ...


def layout_of(
    entry: AccountingEntry | None, clients: Iterable[_Client], refuse: Callable[[str, str], None]
) -> CellLayout | None:
    """What a file says, complaints told to `refuse` with their paths; None: it says nothing."""
    if entry is None:
        return None
    try:
        layout = entry.compiled()
    except InvalidRequestError as exc:
        refuse(f"accounting.{exc.field}", exc.reason)
        return None
    for index, client in enumerate(clients if layout.text else ()):
        if client.lane is not None and layout.of_client(client.name) is None:
            refuse(
                f"clients[{index}]",
                "has limits of its own, which are counted in one cell: name it among the clients of one",
            )
        try:
            layout.of_call(client.team, client.name)
        except InvalidRequestError as exc:
            refuse(f"clients[{index}].team", exc.reason)
    return layout
