"""A clock that steps: hard budgets refuse while it is in doubt, the rest is served, and agreement ends the doubt."""

import time

import pytest

from apikeyrouter import ApiKeyRouter
from apikeyrouter.domain.models.system_error import ClockSuspectError
from apikeyrouter.infrastructure.adapters.openai_adapter import OpenAIAdapter
from apikeyrouter.infrastructure.ledger.local_engine import LocalEngine
from apikeyrouter.infrastructure.surface.problems import problem_of
from apikeyrouter.serving import housekeeping
from apikeyrouter.simulator import SimulatorProcess
from tests.router.house import MASTER_KEY, intent, until

pytestmark = pytest.mark.asyncio(loop_scope="package")
SECOND = 1_000_000


async def test_an_answer_that_waited_while_its_process_was_stopped_is_no_proof_against_the_clock() -> None:
    watch = housekeeping.ClockWatch()
    now = 1_800_000_000 * SECOND
    told = [
        watch.compare(now + cell * SECOND, 1 + own * SECOND) for cell, own in ((0, 0), (1, 1), (2, 6), (7, 7), (8, 8))
    ]
    assert told == [None, None, None, False, None]


async def test_two_answers_that_disagree_are_proof_and_five_seconds_of_agreement_end_it() -> None:
    watch = housekeeping.ClockWatch()
    now = 1_800_000_000 * SECOND
    steps = [(0, 0), (100, 1), (100, 1), (101, 2), (102, 3), (106, 7), (107, 8), (108, 9)]
    told = [watch.compare(now + cell * SECOND, 1 + own * SECOND) for cell, own in steps]
    assert told == [None, None, None, True, None, None, False, None]


@pytest.mark.parametrize("step_seconds", [3600, -3])
async def test_a_clock_that_steps_is_noticed_and_opens_no_hard_budget(
    simulator: SimulatorProcess, monkeypatch: pytest.MonkeyPatch, step_seconds: int
) -> None:
    monkeypatch.setattr(housekeeping, "CLOCK_AGREES_AGAIN_SECONDS", 0.5)
    offset_us = [0]
    router = ApiKeyRouter(config={"encryption_key": MASTER_KEY})
    router.ledger.cells[0].engine = LocalEngine(clock_us=lambda: time.time_ns() // 1000 + offset_us[0])
    refused: list[ClockSuspectError] = []

    async def is_served(team: str) -> bool:
        try:
            return bool((await router.route(intent(team=team))).content)
        except ClockSuspectError as exc:
            refused.append(exc)
            return False

    async def is_refused() -> bool:
        assert await is_served("free"), "who is in no hard budget is served all the while"
        return not await is_served("bound")

    async def is_served_again() -> bool:
        return await is_served("bound")

    async with router:
        await router.register_provider("openai", OpenAIAdapter(simulator.openai_url))
        await router.register_key("sk-sim-house-a-number-1", "openai")
        await router.cost_controller.create_budget("team", 100, "hourly", "hard", scope_id="bound")
        assert await is_served("bound")
        before = (await router.cost_controller.get_budget_status("team", "bound")).settled
        offset_us[0] = step_seconds * 1_000_000
        await until(is_refused)
        assert "team:bound:hourly" in str(refused[0])
        assert refused[0].retry_after == 1
        problem = problem_of(refused[0], "openai")
        assert (problem.status, problem.code, problem.retry) == (503, "clock_suspect", True)
        await until(is_served_again)
        assert await router.drain(10)
        status = await router.cost_controller.get_budget_status("team", "bound")
        assert status.held == 0
        assert status.settled > 0
        assert step_seconds > 0 or status.settled > before, "a step back begins no period anew"
        assert router.books.open == {}
