"""gunicorn's worker that speaks HTTP as our own workers do: `gunicorn -k apikeyrouter_proxy.gunicorn_worker.Worker`.

uvicorn alone takes the same by `--http apikeyrouter_proxy.http_protocol:ServiceProtocol`.
"""

from typing import Any, ClassVar

from uvicorn.workers import UvicornWorker

__all__ = ["Worker"]


class Worker(UvicornWorker):
    """uvicorn's worker with our protocol."""

    CONFIG_KWARGS: ClassVar[dict[str, Any]] = {  # type: ignore[misc]
        "loop": "uvloop",
        "http": "apikeyrouter_proxy.http_protocol:ServiceProtocol",
        "ws": "none",
        "server_header": False,
    }
