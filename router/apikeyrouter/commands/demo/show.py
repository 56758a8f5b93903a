"""The demo from beginning to end: set the stage, let the load run, kill a worker, close the books."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import typer

from apikeyrouter.commands.demo import stage
from apikeyrouter.commands.demo.figures import (
    Figures,
    Offered,
    close_figures,
    read_books,
    wait_for_expired_leases,
)
from apikeyrouter.commands.demo.plan import CONTROL_KEY, router_config, simulator_config
from apikeyrouter.commands.demo.table import View, draw, last_words
from apikeyrouter.infrastructure.config.compile import compile_config
from apikeyrouter.infrastructure.config.config_file import read_config
from apikeyrouter.infrastructure.embedded_valkey import EmbeddedServer
from apikeyrouter.infrastructure.ledger.ledger import ScriptLedger
from apikeyrouter.infrastructure.ledger.redis_engine import RedisEngine
from apikeyrouter.simulator import SimulatorProcess

__all__ = ["run"]

CONNECTIONS = 40
CONTROL_REQUESTS = 160
CONTROL_SECONDS = 2.0
LOOK_SECONDS = 0.5
LEDGER_TIMEOUT_S = 2.0
"""A table may wait longer than a request."""
Show = Callable[[View], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    seconds: float
    workers: int
    kill: bool


def run(*, seconds: float, workers: int, kill: bool, json: bool) -> int:
    """The whole demo; the exit code: 0, or 1 when a limit was exceeded or the books differ."""
    plan = _Plan(seconds=seconds, workers=workers, kill=kill and workers > 1)
    if json:
        figures = asyncio.run(_perform(plan, lambda view: None))
        typer.echo(msgspec.json.encode(figures.as_dict() | {"exit_code": figures.exit_code}).decode())
    else:
        figures = _run_on_a_screen(plan)
        typer.echo("\n" + last_words(figures))
    return figures.exit_code


def _run_on_a_screen(plan: _Plan) -> Figures:
    from rich.console import Console
    from rich.live import Live

    with Live(draw(View()), console=Console(), refresh_per_second=4) as live:
        return asyncio.run(_perform(plan, lambda view: live.update(draw(view))))


async def _perform(plan: _Plan, show: Show) -> Figures:
    view = View(headline="starting an embedded Valkey, simulated providers and the service …")
    show(view)
    async with (
        stage.embedded_server() as embedded,
        SimulatorProcess(simulator_config()) as simulator,
        _open_ledger(embedded) as ledger,
    ):
        async with stage.running_service(embedded, router_config(simulator.url), workers=plan.workers) as (
            service,
            listening,
        ):
            performance = _Performance(plan, show, view, simulator, ledger, service, listening)
            clients, offered = await performance.run()
        view.headline = "the service has ended; now the same kind of load straight at a provider …"
        show(view)
        control = await _control_load(simulator)
        budget = await wait_for_expired_leases(ledger)
        return close_figures(
            seconds=plan.seconds,
            workers=plan.workers,
            killed=performance.killed,
            clients=clients,
            control=control,
            offered=offered,
            report=await simulator.report(),
            budget=budget,
        )


class _Performance:
    """The load over the router, watched."""

    def __init__(
        self,
        plan: _Plan,
        show: Show,
        view: View,
        simulator: SimulatorProcess,
        ledger: ScriptLedger,
        service: stage.Child,
        listening: dict[str, Any],
    ) -> None:
        self._plan = plan
        self._show = show
        self._view = view
        self._simulator = simulator
        self._ledger = ledger
        self._service = service
        self._listening = listening
        self._lane_ids = _lane_ids(simulator.url)
        self.killed: int | None = None

    async def run(self) -> tuple[dict[str, Any], Offered]:
        """The clients' totals, and what the providers had allowed when the load was over."""
        arguments = ["--url", self._listening["url"], "--seconds", str(self._plan.seconds)]
        async with stage.running_traffic([*arguments, "--connections", str(CONNECTIONS)]) as traffic:
            self._view.headline = (
                f"{self._plan.seconds:g} s of load on {self._listening['url']}, {self._plan.workers} workers"
            )
            await self._simulator.reset()
            traffic.go()
            background = [asyncio.create_task(work) for work in (self._watch(), self._kill_half_way(), self._listen())]
            try:
                return await self._follow(traffic)
            finally:
                await _end(background)

    async def _follow(self, traffic: stage.Child) -> tuple[dict[str, Any], Offered]:
        offered: Offered | None = None
        while True:
            told = await traffic.hear("progress", "offered", "done")
            self._view.clients = told
            if told["event"] == "offered":
                offered = Offered.of(await self._simulator.report())
            elif told["event"] == "done":
                return told, offered or Offered.of(await self._simulator.report())

    async def _watch(self) -> None:
        while True:
            self._view.report = await self._simulator.report()
            self._view.lanes, self._view.budget = await read_books(self._ledger, self._lane_ids)
            self._view.now_us = int(time.time() * 1_000_000)
            self._show(self._view)
            await asyncio.sleep(LOOK_SECONDS)

    async def _kill_half_way(self) -> None:
        """End a worker as the kernel would when memory runs out: no goodbye, requests in flight, things unsettled."""
        if not self._plan.kill:
            return
        await asyncio.sleep(self._plan.seconds / 2)
        pid = int(self._listening["workers"][-1])
        os.kill(pid, signal.SIGKILL)
        self.killed = pid

    async def _listen(self) -> None:
        while True:
            told = await self._service.hear("worker_restarted")
            self._view.headline += f"; worker {told['pid']} was killed, another one takes its place"


async def _end(tasks: list[asyncio.Task[None]]) -> None:
    """Cancel them. Errors: the first that one of them had failed with before."""
    for task in tasks:
        task.cancel()
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(outcome, Exception):
            raise outcome


@contextlib.asynccontextmanager
async def _open_ledger(embedded: EmbeddedServer) -> AsyncIterator[ScriptLedger]:
    ledger = ScriptLedger(RedisEngine(embedded.url, timeout_s=LEDGER_TIMEOUT_S))
    await ledger.open()
    try:
        yield ledger
    finally:
        await ledger.close()


def _lane_ids(simulator_url: str) -> list[str]:
    compiled = compile_config(read_config(router_config(simulator_url)), environ={})
    return [lane.id for lane in compiled.lanes]


async def _control_load(simulator: SimulatorProcess) -> dict[str, Any]:
    """The same clients without a router between: a load far above its limit, straight at an organisation of its own."""
    arguments = ["--url", simulator.url, "--key", CONTROL_KEY, "--anthropic-share", "0", "--connections", "20"]
    arguments += ["--seconds", str(CONTROL_SECONDS), "--requests-max", str(CONTROL_REQUESTS)]
    async with stage.running_traffic(arguments) as traffic:
        traffic.go()
        return await traffic.hear("done")
