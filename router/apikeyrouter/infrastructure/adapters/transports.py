"""Which HTTP client talks to providers."""

from collections.abc import Callable
from importlib.util import find_spec

from apikeyrouter.domain.models.system_error import ConfigurationError
from apikeyrouter.infrastructure.adapters.transport import Transport

__all__ = ["make_transport"]


def make_transport(*, admits: Callable[[str], bool] | None = None, connections_max: int | None = None) -> Transport:
    """The lean transport where its parser is installed (extra `proxy`), else the one over aiohttp.

    Both do the same, to the errors they raise; the lean one costs a third of the CPU. `admits`: whether an address may
    be connected to; None: any. `connections_max`: most connections to one origin; None: as many as there are calls.

    Raises:
        ConfigurationError: `admits` is given, and the lean transport is not there.
    """
    if find_spec("httptools") is not None:
        from apikeyrouter.infrastructure.adapters.lean_transport import LeanTransport

        return LeanTransport(admits=admits, connections_max=connections_max)
    if admits is not None:
        raise ConfigurationError("addresses are guarded by the lean transport alone: install the extra `proxy`")
    from apikeyrouter.infrastructure.adapters.http_transport import AiohttpTransport

    return AiohttpTransport(connections_per_host_max=connections_max or 0)
