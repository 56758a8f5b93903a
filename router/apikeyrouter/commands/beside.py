"""Our own programs as processes beside this one, which end with it."""

import contextlib
import os
import select
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence

from apikeyrouter.domain.models.system_error import ConfigurationError

__all__ = ["running_beside"]

START_SECONDS_MAX = 30.0
STOP_SECONDS_MAX = 8.0


@contextlib.contextmanager
def running_beside(
    arguments: Sequence[str], *, says: str, what: str, environ: Mapping[str, str] | None = None
) -> Iterator[str]:
    """A module of ours (`-m`, its name, its arguments), stopped at exit, and when this process dies.

    It says one line once it is ready, which begins with the word `says`; yields the rest of that line. `what` it is, in
    a sentence; `environ` comes on top of this process's. Errors: ConfigurationError when it does not start.
    """
    process = subprocess.Popen(  # noqa: S603 (our own module)
        [sys.executable, *arguments, "--watch-stdin"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env={**os.environ, **(environ or {})}, start_new_session=True,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        if not select.select([process.stdout], [], [], START_SECONDS_MAX)[0]:
            raise ConfigurationError(f"{what} did not start in time")
        line = process.stdout.readline().decode()
        if not line.startswith(f"{says} "):
            raise ConfigurationError(f"{what} did not start; what is wrong is said above")
        yield line.removeprefix(f"{says} ").strip()
    finally:
        process.stdin.close()
        process.terminate()
        try:
            process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
