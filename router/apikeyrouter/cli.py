"""The `apikeyrouter` command's entry. Arguments are in `commands/app.py`, the work in the files beside it."""

import sys
from typing import NoReturn

__all__ = ["EXIT_ERROR", "main"]

EXIT_ERROR = 2
"""Wrong arguments or configuration, a taken port; 1 is left to commands that found something wrong."""
EXIT_INTERRUPTED = 130


def main() -> None:
    """The console script. Ends the process: 0, 1 (a check failed), 2 (usage or configuration), 3 (did not start)."""
    try:
        from apikeyrouter.commands.app import app
    except ModuleNotFoundError as exc:
        _die(f"the command line needs the proxy extra ({exc.name} is missing): pip install 'apikeyrouter[proxy]'")
    from apikeyrouter.domain.models.system_error import ApiKeyRouterError

    try:
        app()
    except ApiKeyRouterError as exc:
        _die(str(exc))
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)


def _die(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(EXIT_ERROR)


if __name__ == "__main__":
    main()
