"""Simulated providers that really enforce limits: for the demo, the tests and the benchmarks.

A process of its own, with its own clock and its own arithmetic, and nothing of the router's: what the router claims
to guarantee is checked against it. ``python -m apikeyrouter.simulator`` starts it, :class:`SimulatorProcess` starts
it from Python. Importing this package is cheap; it needs the ``proxy`` extra only when it serves.
"""

from __future__ import annotations

from collections.abc import Sequence

from apikeyrouter.simulator.process import SimulatorError, SimulatorProcess

__all__ = ["SimulatorError", "SimulatorProcess", "run"]


def run(argv: Sequence[str] | None = None) -> int:
    """Serve simulated providers in this process until stopped; see :func:`apikeyrouter.simulator.server.run`."""
    from apikeyrouter.simulator.server import run as run_server

    return run_server(argv)
