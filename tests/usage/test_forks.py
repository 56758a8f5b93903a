"""Forks: a child opens connections of its own, the parent's are never used, and one limit holds over all of them."""

import asyncio
import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import httpx
import pytest

from apikeyrouter.infrastructure.state_store.redis_store import RedisStateStore
from apikeyrouter.simulator import SimulatorProcess
from tests.cli.processes import clean_environ
from tests.router.house import MASTER_KEY, house
from tests.servers import free_port
from tests.usage.forking import CHILDREN, LIMIT, REQUESTS

pytestmark = [
    pytest.mark.asyncio(loop_scope="package"),
    pytest.mark.timeout(180),
    pytest.mark.skipif(sys.platform == "win32", reason="there is no fork"),
]


@pytest.fixture(params=["asyncio", "uvloop"])
def loop(request: pytest.FixtureRequest) -> str:
    """Whose event loops the program has, in parent and children."""
    name: str = request.param
    return name


async def verdict_of(plan: str, loop: str, redis_url: str, simulator: SimulatorProcess) -> dict[str, Any]:
    """What a forking program says."""
    arguments = [sys.executable, "-m", "tests.usage.forking", loop, plan, redis_url, simulator.openai_url]
    told = await asyncio.to_thread(subprocess.run, arguments, capture_output=True, text=True, timeout=120)
    assert told.returncode == 0, told.stderr
    verdict: dict[str, Any] = json.loads(told.stdout.splitlines()[-1])
    return verdict


async def settled_and_billed(redis_url: str, simulator: SimulatorProcess) -> tuple[int, int]:
    """Nano-dollars in the ledger, once nothing is held any more, and on the provider's bill."""
    async with house(simulator, RedisStateStore(redis_url), ["a1"]) as made:
        return await made.at_rest(), await made.billed()


async def test_a_facade_in_use_serves_children_and_the_parent(
    simulator: SimulatorProcess, redis_url: str, loop: str
) -> None:
    told = await verdict_of("sync", loop, redis_url, simulator)
    assert (told["before"]["served"], told["after"]["served"]) == (5, 5)
    assert [child["served"] for child in told["children"]] == [5] * CHILDREN
    assert all(child["settled"] <= 5 and child["spent"] > 0 for child in told["children"]), "the parent's are its own"
    assert told["heard"] == 10, "each process tells of its own requests"
    settled, billed = await settled_and_billed(redis_url, simulator)
    assert settled == billed > 0


async def test_a_fork_out_of_a_coroutine_leaves_the_parents_requests_alone(
    simulator: SimulatorProcess, redis_url: str, loop: str
) -> None:
    told = await verdict_of("async", loop, redis_url, simulator)
    assert "error" not in told["child"], told["child"]
    assert (told["child"]["in_flight"], told["child"]["holds"]) == (0, 0)
    assert told["child"]["served"] > 0
    assert (told["answers"], told["more"] > 0) == (10, True)
    assert told["loop"].partition(".")[0] == loop
    settled, billed = await settled_and_billed(redis_url, simulator)
    assert settled == billed > 0


async def test_what_the_parents_ledger_had_to_do_is_not_waited_for_in_a_child(
    simulator: SimulatorProcess, redis_url: str, loop: str
) -> None:
    told = await verdict_of("chores", loop, redis_url, simulator)
    assert "error" not in told["child"], told["child"]
    assert (told["chores"] > 0, told["child"]["served"] > 0, told["more"] > 0) == (True, True, True)
    assert told["child"]["inherited"] == 0


async def test_accounting_in_memory_is_refused_in_a_child(
    simulator: SimulatorProcess, redis_url: str, loop: str
) -> None:
    told = await verdict_of("memory", loop, redis_url, simulator)
    assert told["started"]["errors"] == ["ConfigurationError"]
    assert "RedisStateStore" in told["started"]["message"]
    assert told["fresh"]["served"] == 1
    assert told["parent"]["served"] == 1


async def test_multiprocessing_shares_one_limit_exactly(simulator: SimulatorProcess, redis_url: str, loop: str) -> None:
    told = await verdict_of("pool", loop, redis_url, simulator)
    shares = [told["parent"], *told["children"]]
    assert len({share["pid"] for share in shares}) > 1
    assert sum(share["served"] for share in shares) == LIMIT < REQUESTS * len(shares)
    assert {error for share in shares for error in share["errors"]} == {"NoEligibleKeysError"}
    seen = (await simulator.report())["organisations"]["org-a"]
    assert (seen["arrived"], seen["admitted"]) == (LIMIT, LIMIT)


APP = """
    from apikeyrouter import ApiKeyRouter
    from apikeyrouter.infrastructure.state_store.redis_store import RedisStateStore
    from tests.usage.forking import config_of, intent

    router = ApiKeyRouter(RedisStateStore("{redis_url}"), config={{"encryption_key": "{master_key}"}})
    router.sync.apply(config_of("{openai_url}"))
    first = router.sync.route(intent()).content  # in the master, before any worker is forked


    def application(environ, start_response):
        answer = router.sync.route(intent())
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [answer.content.encode()]
"""


async def test_gunicorn_preloads_a_router_that_was_used_already(
    simulator: SimulatorProcess, redis_url: str, tmp_path: Path
) -> None:
    source = textwrap.dedent(APP).format(redis_url=redis_url, master_key=MASTER_KEY, openai_url=simulator.openai_url)
    (tmp_path / "preloaded.py").write_text(source)
    port = free_port()
    arguments = ["--preload", "--workers", "3", "--threads", "2", "--bind", f"127.0.0.1:{port}"]
    command = [sys.executable, "-m", "gunicorn", *arguments, "--log-level", "error", "preloaded:application"]
    environ = clean_environ(PYTHONPATH=f"{tmp_path}:{Path(__file__).parents[2]}")
    process = await asyncio.create_subprocess_exec(*command, env=environ, cwd=tmp_path)
    try:
        async with httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(retries=0), timeout=60) as client:
            for _ in range(200):
                try:
                    await client.get(f"http://127.0.0.1:{port}/")
                    break
                except httpx.TransportError:
                    await asyncio.sleep(0.1)
            answers = await asyncio.gather(*(client.get(f"http://127.0.0.1:{port}/") for _ in range(20)))
        assert [answer.status_code for answer in answers] == [200] * 20
        assert all(answer.text.startswith("You said") for answer in answers)
    finally:
        process.terminate()
        await asyncio.wait_for(process.wait(), 60)
    settled, billed = await settled_and_billed(redis_url, simulator)
    assert settled == billed > 0
