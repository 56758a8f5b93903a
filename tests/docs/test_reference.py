"""The reference is made from the docstrings, and has what is public."""

import re
from pathlib import Path

from tools.reference import MODULES, build

from tests.house.test_contract import METHODS


def test_every_public_module_and_method_has_a_page_with_words(tmp_path: Path) -> None:
    assert build(tmp_path).is_file()
    pages = {module: tmp_path.joinpath(*module.split(".")).with_suffix(".html") for module in MODULES}
    assert [module for module, page in pages.items() if not page.is_file()] == []
    of_router = "".join(page.read_text("utf-8") for module, page in pages.items() if "serving" in module)
    of_router += pages["apikeyrouter"].read_text("utf-8")
    classes = "ApiKeyRouter|RouterRegistration|RouterWaysIn|RouterLife"
    assert [name for name in METHODS[""] if not re.search(f'id="({classes}).{name}"', of_router)] == []
    engine = pages["apikeyrouter.domain.components.routing_engine"].read_text("utf-8")
    assert [name for name in METHODS["routing_engine"] if f'id="RoutingEngine.{name}"' not in engine] == []
