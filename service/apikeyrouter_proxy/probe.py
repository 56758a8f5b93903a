"""`python -m apikeyrouter_proxy.probe [live|ready] [host:port]`: asks a service how it is, for health checks.

Without an address: the service in this container. Needs nothing but the standard library, so that asking every few
seconds costs little. Exit code 0: yes; 1: no.
"""

import http.client
import os
import sys
from collections.abc import Mapping, Sequence

__all__ = ["QUESTIONS", "ask", "main", "own_address"]

QUESTIONS = ("live", "ready")
SECONDS_MAX = 2.0
PORT_DEFAULT = "8000"
BODY_BYTES_MAX = 1000


def main(argv: Sequence[str] | None = None) -> int:
    """Ask what was named (default: ready) where it was named, and say the answer in one line. Returns the exit code."""
    question, address, *more = [*(sys.argv[1:] if argv is None else argv), "", ""]
    if question not in ("", *QUESTIONS) or any(more):
        sys.stderr.write(f"usage: probe [{'|'.join(QUESTIONS)}] [host:port]\n")
        return 2
    status, told = ask(question or "ready", address or own_address(os.environ))
    sys.stdout.write(f"{status or 'no answer'} {told}\n")
    return 0 if status == 200 else 1


def own_address(environ: Mapping[str, str]) -> str:
    """Where the service of this environment listens."""
    port = environ.get("APIKEYROUTER_PROXY_PORT") or environ.get("PROXY_PORT") or PORT_DEFAULT
    return f"127.0.0.1:{port}"


def ask(question: str, address: str) -> tuple[int, str]:
    """Status and body of `/health/<question>` at `host:port`; status 0 for no answer."""
    try:
        connection = http.client.HTTPConnection(address, timeout=SECONDS_MAX)
        try:
            connection.request("GET", f"/health/{question}", headers={"connection": "close"})
            answer = connection.getresponse()
            return answer.status, answer.read(BODY_BYTES_MAX).decode("utf-8", "replace")
        finally:
            connection.close()
    except (OSError, http.client.HTTPException) as exc:
        return 0, str(exc)


if __name__ == "__main__":
    sys.exit(main())
