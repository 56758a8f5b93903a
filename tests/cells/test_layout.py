"""How cells are written, and what is refused."""

from typing import Any

import pytest

from apikeyrouter.domain.models.system_error import ConfigurationError, InvalidRequestError
from apikeyrouter.infrastructure.config.cell_entries import read_cells
from apikeyrouter.infrastructure.config.compile import compile_config
from apikeyrouter.infrastructure.config.config_file import read_config
from apikeyrouter.infrastructure.config.settings import RouterSettings

NORTH = {"name": "north", "quota_groups": ["org-a"], "teams": ["n"], "clients": ["app-n"]}
SOUTH = {"name": "south", "quota_groups": ["org-b"], "teams": ["s"]}
CELLS: dict[str, Any] = {"cells": [NORTH, SOUTH]}


@pytest.mark.parametrize(
    ("cells", "says"),
    [
        ([NORTH, {**SOUTH, "quota_groups": ["org-a"]}], "quota_groups: quota group 'org-a' is in cell 'north' already"),
        ([NORTH, {**SOUTH, "teams": ["n"]}], "teams: team 'n' is in cell 'north' already"),
        ([NORTH, {**SOUTH, "name": "north"}], "is there twice"),
        ([{**NORTH, "name": "No rth"}], "small letters"),
        ([{"name": "north", "teams": ["n"]}], "needs a quota group"),
        ([{**NORTH, "quota_groups": ["a:b"]}], "no colon"),
        ([{"name": f"c{at}", "quota_groups": [f"g{at}"]} for at in range(16)], "at most 16"),
        ([{**NORTH, "keys": ["k"]}], "keys"),
        ("not json", "JSON"),
        ({"north": NORTH}, "list"),
    ],
)
def test_cells_that_make_no_sense_are_refused(cells: object, says: str) -> None:
    with pytest.raises(InvalidRequestError, match=says):
        read_cells(cells)
    if isinstance(cells, list):
        with pytest.raises(ConfigurationError, match="cells"):
            compile_config(read_config({"accounting": {"cells": cells}}), environ={})


def test_a_file_says_what_of_a_client_does_not_go_with_cells() -> None:
    token = "0123456789abcdef0123"
    clients = [
        {"name": "loose", "token": token, "rpm": 5},
        {"name": "app-n", "token": token + "4", "rpm": 5, "team": "s"},
    ]
    with pytest.raises(ConfigurationError) as refused:
        compile_config(read_config({"accounting": CELLS, "clients": clients}), environ={})
    assert "clients[0]: has limits of its own" in str(refused.value)
    assert "clients[1].team: team 's' is accounted in cell south" in str(refused.value)


def test_the_environment_says_cells_as_json() -> None:
    told = '[{"name": "north", "quota_groups": ["org-a"]}]'
    settings = RouterSettings.from_environment({"APIKEYROUTER_CELLS": told})
    assert [cell.name for cell in settings.cells.cells] == ["main", "north"]
    with pytest.raises(ConfigurationError, match="APIKEYROUTER_CELLS"):
        RouterSettings.from_environment({"APIKEYROUTER_CELLS": "[{}]"})
