"""The program of a worker process: `python -m apikeyrouter_proxy.worker_process`."""

import sys

UNUSED = ("rich", "watchfiles", "greenlet", "orjson")
"""What structlog (tracebacks in colour, threads of its own kind), uvicorn (reloading) and FastAPI (another JSON) load
where it happens to be installed: 9 MB of which no worker ever uses anything."""

if __name__ == "__main__":
    for name in UNUSED:
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]
    from apikeyrouter_proxy.worker import main

    sys.exit(main())
