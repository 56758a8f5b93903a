"""`python -m apikeyrouter_proxy.probe [live|ready]`: asks the service in this container how it is, for a healthcheck.

Needs nothing but the standard library, so that asking every few seconds costs little. Exit code 0: yes; 1: no.
"""

import http.client
import os
import sys
from collections.abc import Mapping, Sequence

__all__ = ["QUESTIONS", "ask", "main"]

QUESTIONS = ("live", "ready")
SECONDS_MAX = 2.0
PORT_DEFAULT = "8000"


def main(argv: Sequence[str] | None = None) -> int:
    """Ask what was named (default: ready) and say the answer in one line. Returns the exit code."""
    given = list(sys.argv[1:] if argv is None else argv) or ["ready"]
    if len(given) != 1 or given[0] not in QUESTIONS:
        sys.stderr.write(f"usage: probe [{'|'.join(QUESTIONS)}]\n")
        return 2
    status, told = ask(given[0], os.environ)
    sys.stdout.write(f"{status or 'no answer'} {told}\n")
    return 0 if status == 200 else 1


def ask(question: str, environ: Mapping[str, str]) -> tuple[int, str]:
    """Status and body of `/health/<question>` on the port that the service of this environment has; 0 for no answer."""
    port = environ.get("APIKEYROUTER_PROXY_PORT") or environ.get("PROXY_PORT") or PORT_DEFAULT
    connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=SECONDS_MAX)
    try:
        connection.request("GET", f"/health/{question}", headers={"connection": "close"})
        answer = connection.getresponse()
        return answer.status, answer.read(1000).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException) as exc:
        return 0, str(exc)
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(main())
