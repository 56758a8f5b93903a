"""What runs a script. Two engines do: a pipelined Redis connection, and Lua in this process."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

Argument = str | bytes | int
Reply = list[Any]


def encoded(args: Sequence[Argument]) -> list[bytes]:
    """Every word of a call, as the scripts see it."""
    return [arg if isinstance(arg, bytes) else str(arg).encode() for arg in args]


class Engine(Protocol):
    """Runs scripts of one cell, each atomically, in the order they were given."""

    async def open(self) -> None:
        """Connect and load the scripts.

        Raises:
            LedgerUnavailableError: the server cannot be reached, or evicts.
        """
        ...

    async def close(self) -> None:
        """Let go of the connection; calls under way end with LedgerUnavailableError."""
        ...

    async def run(self, name: str, args: Sequence[Argument], *, pool: str = "") -> Reply:
        """Run one script; `pool` names the fairness counters it may touch.

        Raises:
            LedgerUnavailableError: no answer within the deadline. The script may or may not have run.
            LedgerProtocolError: the script failed; nothing was written.
        """
        ...


@runtime_checkable
class Replaceable(Protocol):
    """An engine whose server may be replaced by another one while it is in use."""

    on_another_server: Callable[[], None] | None
    """Called when another server took over, which may lack writes that the one before had acknowledged."""


def cell_keys(namespace: str, cell: str, names: Sequence[str], *, pool: str) -> list[str]:
    """Full key names of a cell's structures; all share one hash tag, so that a cell is one Cluster slot."""
    prefix = f"{namespace}:{{c:{cell}}}:"
    return [f"{prefix}F:{pool}" if name == "F" else prefix + name for name in names]
