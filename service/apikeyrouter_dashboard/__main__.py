"""`python -m apikeyrouter_dashboard`: the page alone, as `serve` and the demo start it beside them.

People use `apikeyrouter dashboard`, which takes a third of a second more to start.
"""

import argparse
import os
import sys

from apikeyrouter_dashboard.lean_start import load


def main() -> int:
    """Serve until stopped; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m apikeyrouter_dashboard", description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--key-variable", default="", help="the environment variable that has the admin key")
    parser.add_argument("--watch-stdin", action="store_true")
    told = parser.parse_args()
    page = load()
    options = page.DashboardOptions(
        url=told.url, host=told.host, port=told.port, admin_key=os.environ.get(told.key_variable) or None,
        watch_stdin=told.watch_stdin,
    )  # fmt: skip
    code: int = page.serve(options, tell=_tell)
    return code


def _tell(link: str) -> None:
    """Whoever started this reads it."""
    sys.stdout.write(f"dashboard {link}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
