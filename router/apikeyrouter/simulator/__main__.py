"""``python -m apikeyrouter.simulator``."""

import sys

from apikeyrouter.simulator.server import run

if __name__ == "__main__":
    sys.exit(run())
