"""What the simulator reports: every arrival is in exactly one place, and the bill is the sum of the bills."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from openai import AsyncOpenAI, RateLimitError

from apikeyrouter.simulator import SimulatorError, SimulatorProcess

pytestmark = pytest.mark.asyncio(loop_scope="package")

HELLO: list[Any] = [{"role": "user", "content": "hello there"}]


async def chat(client: AsyncOpenAI, **options: Any) -> bool:
    """One chat; whether it was admitted."""
    try:
        await client.chat.completions.create(**{"model": "gpt-4o", "messages": HELLO, "max_tokens": 4, **options})
    except RateLimitError:
        return False
    return True


async def wait_until_idle(simulator: SimulatorProcess) -> dict[str, Any]:
    """The report once nothing is in flight (a client's disconnect takes a moment to arrive)."""
    for _ in range(500):
        report = await simulator.report()
        if report["total"]["in_flight"] == 0:
            return report
        await asyncio.sleep(0.01)
    raise AssertionError("requests stayed in flight")


def assert_adds_up(report: dict[str, Any], journal: list[dict[str, Any]]) -> None:
    """The laws of the counters, per key, organisation and in all."""
    organisations = report["organisations"].values()
    for tally in [report["total"], *organisations, *(key for org in organisations for key in org["keys"].values())]:
        assert tally["arrived"] == tally["admitted"] + sum(tally["rejected"].values())
        ended = tally["completed"] + tally["failed"] + tally["cut"] + tally["disconnected"]
        assert tally["admitted"] == ended + tally["in_flight"]
    for name in ("arrived", "admitted", "over_limit", "cost_nanousd", "input_tokens", "output_tokens"):
        assert report["total"][name] == sum(org[name] for org in organisations)
        assert report["total"][name] == sum(key[name] for org in organisations for key in org["keys"].values())
    assert report["total"]["cost_nanousd"] == sum(entry["cost_nanousd"] for entry in journal)
    assert report["total"]["arrived"] == len(journal)


async def test_the_numbers_add_up_under_concurrency(simulator: SimulatorProcess) -> None:
    await simulator.control(organisation="org-a", limits=[{"rpm": 40, "kind": "sliding", "period_seconds": 3_600}])
    await simulator.control(settings={"latency_ms": 5})
    first, second = (
        AsyncOpenAI(api_key=f"sk-sim-key-number-{number}", base_url=simulator.openai_url, max_retries=0)
        for number in (1, 2)
    )
    admitted = sum(await asyncio.gather(*(chat(client) for client in (first, second) for _ in range(50))))
    report = await simulator.report()
    org = report["organisations"]["org-a"]
    assert admitted == 40
    assert (org["arrived"], org["admitted"], org["over_limit"], org["completed"]) == (100, 40, 60, 40)
    assert org["rejected"] == {"rpm": 60}
    assert org["keys"]["org-a/1"]["arrived"] == org["keys"]["second"]["arrived"] == 50
    assert org["cost_nanousd"] == 40 * (10 * 2_500 + 4 * 10_000)
    assert 1 < org["peak_concurrency"] <= 40
    assert org["request_capacity"] == 40
    assert_adds_up(report, await simulator.journal())
    await first.close()
    await second.close()


async def test_concurrency_is_limited_and_its_peak_is_the_limit(simulator: SimulatorProcess) -> None:
    await simulator.control(organisation="org-a", limits=[{"concurrency": 3}], settings={"latency_ms": 1500})
    async with AsyncOpenAI(api_key="sk-sim-key-number-1", base_url=simulator.openai_url, max_retries=0) as client:
        admitted = sum(await asyncio.gather(*(chat(client) for _ in range(12))))
    report = await simulator.report()
    assert (admitted, report["total"]["peak_concurrency"]) == (3, 3)
    assert report["total"]["rejected"] == {"concurrency": 9}


async def test_a_client_that_leaves_a_stream_pays_for_what_was_generated(
    simulator: SimulatorProcess, openai: AsyncOpenAI
) -> None:
    await simulator.control(settings={"tokens_per_second": 200})
    stream = await openai.chat.completions.create(
        model="gpt-4o", messages=[{"role": "user", "content": "[[tokens:1000]]"}], stream=True
    )
    seen = 0
    async for chunk in stream:
        seen += bool(chunk.choices[0].delta.content)
        if seen == 5:
            break
    await stream.close()
    report = await wait_until_idle(simulator)
    total = report["total"]
    assert (total["disconnected"], total["completed"], total["streams"]) == (1, 0, 1)
    assert 5 <= total["output_tokens"] < 1_000
    assert total["cost_nanousd"] == total["input_tokens"] * 2_500 + total["output_tokens"] * 10_000
    assert (await simulator.journal())[0]["verdict"] == "disconnected"
    assert_adds_up(report, await simulator.journal())


async def test_a_client_that_leaves_before_a_whole_answer_pays_by_time(simulator: SimulatorProcess) -> None:
    await simulator.control(settings={"tokens_per_second": 10})
    client = AsyncOpenAI(api_key="sk-sim-key-number-1", base_url=simulator.openai_url, max_retries=0)
    leaving = asyncio.create_task(chat(client, max_tokens=500, messages=[*HELLO]))
    while not (await simulator.report())["total"]["in_flight"]:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.3)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    await client.close()
    report = await wait_until_idle(simulator)
    assert report["total"]["disconnected"] == 1
    assert 0 < report["total"]["output_tokens"] < 250, "a whole answer is 500"


async def test_the_journal_knows_a_request_by_the_id_it_was_sent_with(
    simulator: SimulatorProcess, openai: AsyncOpenAI
) -> None:
    await chat(openai, extra_headers={"x-client-request-id": "mine-1"})
    await chat(openai, extra_headers={"x-request-id": "mine-2"})
    entries = await simulator.journal()
    assert [entry["client_request_id"] for entry in entries] == ["mine-1", "mine-2"]
    assert {(entry["key"], entry["model"], entry["verdict"]) for entry in entries} == {
        ("org-a/1", "gpt-4o", "completed")
    }


async def test_a_jump_of_the_providers_clock_opens_the_next_window(
    simulator: SimulatorProcess, openai: AsyncOpenAI
) -> None:
    await simulator.control(organisation="org-a", limits=[{"rpm": 1, "kind": "sliding"}])
    assert [await chat(openai), await chat(openai)] == [True, False]
    await simulator.control(clock_advance_seconds=60)
    assert await chat(openai)


async def test_a_disabled_key_is_refused_until_it_is_enabled(simulator: SimulatorProcess, openai: AsyncOpenAI) -> None:
    from openai import AuthenticationError

    await simulator.control(disable_keys=["org-a/1"])
    with pytest.raises(AuthenticationError):
        await chat(openai)
    await simulator.control(enable_keys=["sk-sim-key-number-1"])
    assert await chat(openai)


@pytest.mark.parametrize(
    "command",
    [
        {"organisation": "nobody"},
        {"failures": [{"name": "no_such_failure"}]},
        {"failures": [{"name": "stall_mid_stream", "probability": 1.5}]},
        {"settings": {"latency_ms": -1}},
        {"settings": {"keys": []}},
        {"limits": [{"rpm": 1}]},
        {"organisation": "org-a", "limits": [{"rpm": 0}]},
        {"disable_keys": ["nobody"]},
        {"clock_advance_seconds": -1},
        {"typo": 1},
    ],
)
async def test_a_wrong_command_is_refused_and_changes_nothing(
    simulator: SimulatorProcess, command: dict[str, Any]
) -> None:
    with pytest.raises(SimulatorError, match="POST control"):
        await simulator.control(**command)


async def test_a_wrong_configuration_does_not_start() -> None:
    with pytest.raises(SimulatorError):
        await SimulatorProcess({"organisations": [{"id": "a", "keys": ["x", "x"]}]}).start()
