"""How exact is a gateway? `python -m benchmarks.exactness --url URL --token TOKEN`, or `--ours --litellm`.

For any OpenAI-compatible gateway by URL the simulated providers listen at `--port`. The gateway has
`http://127.0.0.1:PORT/v1` as its provider of `gpt-4o-mini`, with six keys, `sk-exactness-1` to `-6`, of six
organisations, each of which allows 200 requests in every minute of the clock (for the trial `kill`: 4 at once instead).
Several URLs are several processes of one gateway. `--ours` and `--litellm` start the gateway as well.
"""

import argparse
import asyncio
import contextlib
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from tests.servers import Server, running

from apikeyrouter.simulator import SimulatorProcess
from benchmarks.exactness.trials import (
    CLIENTS,
    KEY_RPM,
    KEYS,
    SLOTS_PER_KEY,
    Gateway,
    overload,
    process_killed,
    providers,
    redis_silent,
)  # fmt: skip
from benchmarks.gateways import PEERS, Started, running_litellm, running_ours_with
from benchmarks.payload import MODEL
from benchmarks.proof import ProofError
from benchmarks.report import Section, print_sections
from benchmarks.results import keep_peers

__all__ = ["main"]

PROCESSES = 4
LEASE_MS = 4_000
WEIGHTS = (1.0, 1.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0)
_TOKENS = tuple(f"akr-exactness-client-token-{number:04d}" for number in range(CLIENTS))
_TRIALS = ("overload", "weights", "kill", "silence")
_LITELLM_TOKEN = "sk-exactness-master"


def main() -> int:
    """Measure and show. Returns 1 when the counts do not agree: then there is no figure."""
    options = _parse()
    try:
        sections = asyncio.run(_measure(options))
    except ProofError as exc:
        print(f"no figure: the counts do not agree: {exc}", file=sys.stderr)
        return 1
    if options.write:
        keep_peers(sections)
    return 0


async def _measure(options: argparse.Namespace) -> list[Section]:
    sections: list[Section] = []
    for trial in options.trials:
        if options.url:
            async with SimulatorProcess(providers(by_slots=trial == "kill"), port=options.port) as simulator:
                gateway = Gateway(
                    name="the gateway", urls=options.url, tokens=options.token or ["none"],
                    weights=options.weights if trial == "weights" else (),
                    pids=options.pid, redis_pid=options.redis_pid,
                )  # fmt: skip
                sections.append(await _trial(trial, gateway, simulator))
                print_sections(sections[-1:])
            continue
        for name in ("ours",) * options.ours + ("litellm",) * options.litellm:
            if name == "litellm" and trial == "weights":
                continue  # without a database it has no clients of its own
            async with _started(name, trial) as (gateway, simulator):
                sections.append(await _trial(trial, gateway, simulator))
                print_sections(sections[-1:])
    return sections


async def _trial(trial: str, gateway: Gateway, simulator: SimulatorProcess) -> Section:
    if trial == "kill":
        return await process_killed(gateway, simulator)
    if trial == "silence":
        return await redis_silent(gateway, simulator)
    return await overload(gateway, simulator)


@contextlib.asynccontextmanager
async def _started(name: str, trial: str) -> AsyncIterator[tuple[Gateway, SimulatorProcess]]:
    """A gateway of PROCESSES processes over a Redis of its own, and the providers behind it."""
    by_slots = trial == "kill"
    with (
        tempfile.TemporaryDirectory(prefix="akr-bench-", ignore_cleanup_errors=True) as folder,
        running("redis") as redis,
    ):
        async with SimulatorProcess(providers(by_slots=by_slots)) as simulator:
            with _gateway(name, simulator.openai_url, redis, Path(folder), by_slots=by_slots, trial=trial) as started:
                yield (
                    Gateway(
                        name="ours" if name == "ours" else "LiteLLM",
                        urls=[one.url for one in started],
                        tokens=_TOKENS if name == "ours" else [_LITELLM_TOKEN],
                        weights=WEIGHTS if trial == "weights" else (),
                        pids=[one.pid for one in started],
                        redis_pid=redis.pid,
                    ),
                    simulator,
                )


def _gateway(
    name: str, upstream: str, redis: Server, folder: Path, *, by_slots: bool, trial: str
) -> contextlib.AbstractContextManager[list[Started]]:
    if name == "ours":
        config = _ours(upstream, by_slots=by_slots, weights=WEIGHTS if trial == "weights" else (1.0,) * CLIENTS)
        return running_ours_with(PROCESSES, config, redis, folder, namespace=f"exactness-{trial}")
    text = (PEERS / "litellm.yaml").read_text()
    if by_slots:  # it counts what is under way in each process for itself, so that each gets its part
        text = text.replace(f"rpm: {KEY_RPM}", f"max_parallel_requests: {SLOTS_PER_KEY // PROCESSES}")
    config_file = folder / "litellm.yaml"
    config_file.write_text(text)
    return running_litellm(PROCESSES, config_file, upstream, redis, folder, _LITELLM_TOKEN)


def _ours(upstream: str, *, by_slots: bool, weights: tuple[float, ...]) -> dict[str, object]:
    limit = {"concurrency": SLOTS_PER_KEY} if by_slots else {"rpm": KEY_RPM, "kind": "fixed"}
    return {
        "providers": {"openai": {"adapter": "openai", "base_url": upstream}},
        "keys": [
            {"id": f"k{number}", "provider": "openai", "key": key, "quota_group": f"org-{number}", "models": [MODEL]}
            for number, key in enumerate(KEYS, start=1)
        ],
        "limits": [{"quota_group": f"org-{number}", **limit} for number in range(1, len(KEYS) + 1)],
        "clients": [
            {"name": f"client-{number}", "token": token, "weight": weight}
            for number, (token, weight) in enumerate(zip(_TOKENS, weights, strict=True))
        ],
        "routing": {"lease_ms": LEASE_MS} if by_slots else {},
    }


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", action="append", default=[], help="a process of the gateway; may be repeated")
    parser.add_argument("--token", action="append", default=[], help="a client's token; may be repeated")
    parser.add_argument("--port", type=int, default=9901, help="where the simulated providers listen, with --url")
    parser.add_argument("--weights", type=float, nargs=CLIENTS, default=WEIGHTS, help="the clients' weights")
    parser.add_argument("--pid", type=int, action="append", default=[], help="of the process that may be killed")
    parser.add_argument("--redis-pid", type=int, default=0, help="of the Redis that may be stopped for a while")
    parser.add_argument("--ours", action="store_true", help="start and measure ours")
    parser.add_argument("--litellm", action="store_true", help="start and measure LiteLLM's proxy")
    parser.add_argument("--trials", nargs="+", choices=_TRIALS, default=None)
    parser.add_argument("--write", action="store_true", help="keep it in benchmarks/PEERS.md")
    options = parser.parse_args()
    if not (options.url or options.ours or options.litellm):
        parser.error("name a gateway: --url, --ours or --litellm")
    if options.trials is None:
        here = not options.url
        possible = {
            "overload": True,
            "weights": here,
            "kill": here or options.pid,
            "silence": here or options.redis_pid,
        }
        options.trials = [trial for trial in _TRIALS if possible[trial]]
    return options


if __name__ == "__main__":
    sys.exit(main())
