"""The application, imported in half of the time: without clients that NiceGUI carries for what is not done here."""

import gc
import importlib
import sys
from types import ModuleType

__all__ = ["load"]

UNUSED = ("aiohttp", "redis", "requests", "valkey", "websocket")
"""What `socketio` and `engineio` import where it is installed, for clients of theirs and for several servers behind one
queue. They do without where it is not."""


def load() -> ModuleType:
    """The module `main`. What is hidden from NiceGUI meanwhile can be imported as ever afterwards."""
    hidden = [name for name in UNUSED if name not in sys.modules]
    collected = gc.isenabled()
    gc.disable()
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None: there is no such module
    try:
        return importlib.import_module("apikeyrouter_dashboard.main")
    finally:
        for name in hidden:
            sys.modules.pop(name, None)
        if collected:
            gc.freeze()
            gc.enable()
