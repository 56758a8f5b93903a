"""The program of a worker process: `python -m apikeyrouter_proxy.worker_process`."""

import sys

if __name__ == "__main__":
    # structlog loads rich, where it is, for tracebacks in colour: 4 MB that no worker ever shows.
    sys.modules.setdefault("rich", None)  # type: ignore[arg-type]
    from apikeyrouter_proxy.worker import main

    sys.exit(main())
