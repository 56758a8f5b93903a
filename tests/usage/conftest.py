"""One simulator for the folder, both kinds of store."""

from tests.router.conftest import shared_simulator, simulator, store

__all__ = ["shared_simulator", "simulator", "store"]
