"""One simulator for the folder, both kinds of store."""

from tests.patience import patient
from tests.router.conftest import shared_simulator, simulator, store

__all__ = ["patient", "shared_simulator", "simulator", "store"]
