"""What is shipped: the wheel built from the sdist works where the source tree is not."""

import os
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

from apikeyrouter import __version__
from tests.house.tree import ROOT, tracked

ROUTE = """
import asyncio, sys
import apikeyrouter
from apikeyrouter import ApiKeyRouter
from apikeyrouter.infrastructure.adapters.openai_adapter import OpenAIAdapter
from apikeyrouter.simulator import SimulatorProcess

CONFIG = {"organisations": [{"id": "org-a", "keys": ["sk-sim-key-number-1"]}]}

async def main():
    async with SimulatorProcess(CONFIG) as simulator, ApiKeyRouter() as router:
        await router.register_provider("openai", OpenAIAdapter(base_url=simulator.openai_url))
        key = await router.register_key("sk-sim-key-number-1", "openai")
        request = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hello there"}]}
        response = await router.route(request)
        assert response.content.startswith("You said: hello there"), response.content
        assert response.key_used == key.id and response.cost.amount > 0
        assert (await simulator.report())["organisations"]["org-a"]["admitted"] == 1

asyncio.run(main())
print(apikeyrouter.__file__)
"""
SERVE = "import apikeyrouter_proxy.main as main; print(type(main.app).__name__)"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the sdist, with the build backend that is installed."""
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=out)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel, and the dependencies of this one. Its `bin` folder.

    A path line in a `.pth` file adds the folder but not the `.pth` files in it: an editable install stays invisible.
    """
    home = tmp_path_factory.mktemp("clean")
    run(sys.executable, "-m", "venv", "--without-pip", str(home / "env"), cwd=home)
    scheme = sysconfig.get_path("purelib", vars={"base": str(home / "env")})
    Path(scheme, "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python = str(home / "env" / "bin" / "python")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python]
    run(*pip, "install", "--quiet", "--no-deps", "--no-index", "--ignore-installed", str(wheel), cwd=home)
    return home / "env" / "bin"


def run(*command: str, cwd: Path) -> str:
    """The output of a command that must succeed, in an environment without hints to the source tree."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "APIKEYROUTER"))}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, env=environ, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


def test_the_wheel_holds_scripts_prices_and_type_markers_and_no_tests(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    scripts = {name.replace("lua/", "apikeyrouter/_lua/", 1) for name in tracked() if name.endswith(".lua")}
    assert scripts - names == set()
    assert {"apikeyrouter/_data/prices.json", "apikeyrouter/py.typed", "apikeyrouter_proxy/py.typed"} <= names
    tops = {name.partition("/")[0] for name in names}
    assert tops == {
        "apikeyrouter",
        "apikeyrouter_proxy",
        "apikeyrouter_dashboard",
        f"apikeyrouter-{__version__}.dist-info",
    }


def test_the_installed_wheel_routes_a_request_in_memory(installed: Path, tmp_path: Path) -> None:
    where = run(str(installed / "python"), "-c", ROUTE, cwd=tmp_path)
    assert Path(where).is_relative_to(installed.parent)


def test_the_installed_service_can_be_imported(installed: Path, tmp_path: Path) -> None:
    assert run(str(installed / "python"), "-c", SERVE, cwd=tmp_path)


def test_the_installed_command_knows_its_version(installed: Path, tmp_path: Path) -> None:
    assert __version__ in run(str(installed / "apikeyrouter"), "--version", cwd=tmp_path)


def test_poetry_finds_the_packages_that_the_wheel_has() -> None:
    told = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = {f"{each['from']}/{each['include']}" for each in told["tool"]["poetry"]["packages"]}
    assert packages == set(told["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"])
    assert "<4" in told["project"]["requires-python"], "poetry asks for a Python that all dependencies allow"
