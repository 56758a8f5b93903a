"""The table of endpoints lists what there is, and what it says of translation is so."""

import re
from pathlib import Path

from apikeyrouter.infrastructure.surface.routes import ROUTES, ROUTES_WITH_NAMES
from apikeyrouter.infrastructure.surface.translating import TRANSLATED
from apikeyrouter_proxy.main import create_app

PAGE = (Path(__file__).parents[2] / "docs" / "dialects.md").read_text("utf-8")
_ROW = re.compile(r"^\| `(GET|POST|DELETE) (/[^`]+)` \| ([^|]*) \| ([^|]*)\| ([^|]*)\|", re.MULTILINE)
EVERY = [*ROUTES.values(), *ROUTES_WITH_NAMES]


def test_every_endpoint_is_in_the_table_and_no_other() -> None:
    told = [(method, path) for method, path, *_ in _ROW.findall(PAGE)]
    assert sorted(told) == sorted((route.method, route.path) for route in EVERY)


def test_the_table_tells_what_is_translated() -> None:
    told = {path for _, path, _, _, translated in _ROW.findall(PAGE) if translated.strip() not in ("no", "")}
    assert told == {route.path for route in EVERY if (route.wire.dialect, route.operation) in TRANSLATED}


def test_every_endpoint_is_in_the_description_of_the_service() -> None:
    paths = create_app({}).openapi()["paths"]
    for route in EVERY:
        assert route.method.lower() in paths[route.path], route.path
