"""What requests really cost, told from outside: booked once, in every budget they are in, and by what they are more."""

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any

import pytest

from apikeyrouter.domain.interfaces.state_store import StateStore
from apikeyrouter.domain.models.budget import BudgetScope
from apikeyrouter.domain.models.system_error import InvalidRequestError
from apikeyrouter.infrastructure.state_store.memory_store import InMemoryStateStore
from apikeyrouter.infrastructure.state_store.redis_store import RedisStateStore
from apikeyrouter.simulator import SimulatorProcess
from tests.router.house import house, until
from tests.router.naming import DECISIONS_MAX
from tests.router.telling import TOLD, totals
from tests.router.test_cost_controller import SCOPES, settled

pytestmark = pytest.mark.asyncio(loop_scope="package")
PROCESSES, REQUESTS = 2, 150


async def test_a_request_served_elsewhere_is_booked_in_every_budget_it_is_in(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    async with house(simulator, store, ["a1"]) as made:
        desk = made.router.cost_controller
        ours = [
            (await desk.create_budget(scope, 10, scope_id=scope_id)).id
            for scope, scope_id in (*SCOPES, (BudgetScope.Global, None))
        ]
        theirs = (await desk.create_budget("team", 10, scope_id="red")).id
        told = {"team": "blue", "client": "app-1", "key_id": "a1"}
        assert await desk.record_actual_cost("batch-7", Decimal("1.25"), **told) == Decimal("1.25")
        assert await desk.record_actual_cost("batch-7", Decimal("1.25"), **told) == 0
        spent = {budget.id: budget.current_spending for budget in await desk.list_budgets()}
        assert {spent[id_] for id_ in ours} == {Decimal("1.25")}
        assert spent[theirs] == 0


async def test_a_request_that_was_served_here_is_booked_already_and_only_the_rest_is_added(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    async with house(simulator, store, ["a1"]) as made:
        desk = made.router.cost_controller
        budget = await desk.create_budget("team", 1, scope_id="blue")
        answer = await made.route(team="blue")
        await settled(made)
        assert answer.cost is not None
        assert await desk.record_actual_cost(answer.request_id, answer.cost.amount) == 0
        with pytest.raises(InvalidRequestError, match=f"less than the {answer.cost.amount} dollars"):
            await desk.record_actual_cost(answer.request_id, answer.cost.amount / 2)
        assert (await desk.get_budget_status(budget.id)).settled == answer.cost.amount
        assert await desk.record_actual_cost(answer.request_id, Decimal("0.1")) == Decimal("0.1") - answer.cost.amount
        assert (await desk.get_budget_status(budget.id)).settled == Decimal("0.1")


async def test_a_total_that_is_told_again_books_what_it_is_more(simulator: SimulatorProcess, store: StateStore) -> None:
    async with house(simulator, store, ["a1"]) as made:
        desk = made.router.cost_controller
        budget = await desk.create_budget("team", 10, scope_id="blue")
        told = [await desk.record_actual_cost("batch-7", cost, team="blue") for cost in ("1", "1.5", "1.5", "4")]
        assert told == [Decimal(1), Decimal("0.5"), 0, Decimal("2.5")]
        with pytest.raises(InvalidRequestError, match="less than the 4 dollars that are booked for batch-7"):
            await desk.record_actual_cost("batch-7", "3.99", team="blue")
        assert (await desk.get_budget_status(budget.id)).settled == 4
        together = await asyncio.gather(
            *(desk.record_actual_cost("batch-8", "1", team="blue") for _ in range(5)),
            *(desk.record_actual_cost("batch-9", str(cost), team="blue") for cost in range(1, 6)),
            return_exceptions=True,
        )  # fmt: skip
        assert sum(one for one in together if isinstance(one, Decimal)) == 6
        assert (await desk.get_budget_status(budget.id)).settled == 10
        await made.at_rest()


async def test_a_total_that_was_noted_and_not_booked_is_booked_with_the_next(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    async with house(simulator, store, ["a1"]) as made:
        desk = made.router.cost_controller
        budget = await desk.create_budget("team", 10, scope_id="blue")
        await store.save_note("recorded-cost", "batch-7", {"booked": 0, "booking": 10**9}, seconds=60)
        assert await desk.record_actual_cost("batch-7", 3, team="blue") == 2  # the other dollar is the noted one's
        assert (await desk.get_budget_status(budget.id)).settled == 3


async def test_what_another_process_has_served_and_told_is_known(simulator: SimulatorProcess, redis_url: str) -> None:
    async with (
        house(simulator, RedisStateStore(redis_url), ["a1"]) as made,
        house(simulator, RedisStateStore(redis_url), ["a1"]) as other,
    ):
        budget = await made.router.cost_controller.create_budget("team", 1, scope_id="blue")

        async def known() -> bool:
            return budget.id in [each.id for each in await other.router.cost_controller.list_budgets()]

        await until(known)
        answer = await made.route(team="blue")
        await settled(made)
        assert answer.cost is not None
        await made.router.state_store.flush()
        rest = await other.router.cost_controller.record_actual_cost(answer.request_id, "0.1")
        assert rest == Decimal("0.1") - answer.cost.amount
        assert await made.router.cost_controller.record_actual_cost(answer.request_id, "0.25") == Decimal("0.15")

        async def booked() -> bool:
            return (await other.router.cost_controller.get_budget_status(budget.id)).settled == Decimal("0.25")

        await until(booked)


async def telling(redis_url: str, seed: int) -> asyncio.subprocess.Process:
    """A process that tells totals as soon as it is given a line."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.router.telling", redis_url, str(seed), str(REQUESTS),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert await process.stdout.readline() == b"ready\n"
    return process


async def test_processes_that_tell_different_totals_at_once_book_the_highest_of_each(
    simulator: SimulatorProcess, redis_url: str
) -> None:
    async with house(simulator, RedisStateStore(redis_url), ["a1"]) as made:
        desk = made.router.cost_controller
        budget = await desk.create_budget("team", 10_000, "total", scope_id=TOLD)
        others = [await telling(redis_url, seed) for seed in range(PROCESSES)]
        told = await asyncio.gather(*(each.communicate(b"go\n") for each in others))
        assert [each.returncode for each in others] == [0] * PROCESSES
        highest = sum(map(max, *(totals(seed, REQUESTS) for seed in range(PROCESSES))))
        assert (await desk.get_budget_status(budget.id)).settled == highest
        assert sum(Decimal(text.decode()) for text, _ in told) == highest


async def test_what_a_killed_process_has_begun_is_booked_once_with_the_next_total(
    simulator: SimulatorProcess, redis_url: str
) -> None:
    async with house(simulator, RedisStateStore(redis_url), ["a1"]) as made:
        desk = made.router.cost_controller
        budget = await desk.create_budget("team", 10_000, "total", scope_id=TOLD)
        other = await telling(redis_url, 0)
        assert other.stdin is not None
        other.stdin.write(b"go\n")

        async def begun() -> bool:
            return (await desk.get_budget_status(budget.id)).settled > 20

        await until(begun)
        other.kill()
        await other.wait()
        for number in range(REQUESTS):
            await desk.record_actual_cost(f"r{number}", 10, team=TOLD)
        status = await desk.get_budget_status(budget.id)
        assert status.settled == 10 * REQUESTS
        assert status.held == status.suspense == 0


async def test_a_request_that_was_served_and_is_not_remembered_is_refused_and_not_booked_twice(
    simulator: SimulatorProcess, redis_url: str
) -> None:
    store = RedisStateStore(redis_url, max_decisions=2)
    async with house(simulator, store, ["a1"]) as made:
        desk = made.router.cost_controller
        made.router.settings = made.router.settings.model_copy(update={"max_decisions": 2})
        budget = await desk.create_budget("team", 10, "total", scope_id="blue")
        first = await made.route(team="blue")
        assert first.cost is not None
        assert await desk.record_actual_cost(first.request_id, 1) == 1 - first.cost.amount
    async with house(simulator, RedisStateStore(redis_url, max_decisions=2), ["a1"]) as other:
        desk = other.router.cost_controller
        asked = [(await other.route(team="blue")).request_id for _ in range(4)]
        await settled(other)
        before = (await desk.get_budget_status(budget.id)).settled
        assert await desk.record_actual_cost(first.request_id, 1) == 0, "as it was told"
        for request_id in (first.request_id, f"req_{'0' * 32}"):
            with pytest.raises(InvalidRequestError, match="what it booked is not known") as caught:
                await desk.record_actual_cost(request_id, 2, team="blue")
            assert caught.value.field == "request_id"
        assert (await desk.get_budget_status(budget.id)).settled == before
        assert await desk.record_actual_cost(asked[-1], 2) < 2


@asynccontextmanager
async def naming(redis_url: str, base_url: str) -> AsyncIterator[Callable[[str], Awaitable[Decimal]]]:
    """Another process, to be told the ids of requests that it serves."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.router.naming", redis_url, base_url,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    reads, writes = process.stdout, process.stdin
    assert reads is not None
    assert writes is not None
    assert await reads.readline() == b"ready\n"

    async def serve(request_id: str) -> Decimal:
        writes.write(f"{request_id}\n".encode())
        return Decimal((await reads.readline()).decode())

    try:
        yield serve
    finally:
        writes.close()
        await process.wait()


async def test_a_request_whose_id_its_client_chose_is_not_booked_twice_by_another_process(
    simulator: SimulatorProcess, redis_url: str
) -> None:
    async with (
        house(simulator, RedisStateStore(redis_url, max_decisions=DECISIONS_MAX), ["a1"]) as made,
        naming(redis_url, simulator.openai_url) as serve,
    ):
        desk = made.router.cost_controller
        budget = await desk.create_budget("global", 10_000, "total")

        async def settled_dollars() -> Decimal:
            return (await desk.get_budget_status(budget.id)).settled

        first = await serve("chosen-by-a-client")
        before = await settled_dollars()
        try:  # at once: the other process may or may not have said yet that it served it
            added = await desk.record_actual_cost("chosen-by-a-client", 5)
        except InvalidRequestError:
            added = Decimal(0)
        assert added in (0, 5 - first)
        assert await settled_dollars() - before == added
        for number in range(2 * DECISIONS_MAX):
            await serve(f"another-{number}")

        async def forgotten() -> bool:
            try:
                await desk.record_actual_cost("chosen-by-a-client", 7)
            except InvalidRequestError as exc:
                return "what it booked is not known" in str(exc)
            return False

        before = await settled_dollars()
        await until(forgotten)
        assert await settled_dollars() - before in (0, 7 - first - added)
        assert await desk.record_actual_cost("batch-1", 2, team="blue") == 2, "a team's, that no router served"


class OwnStore(InMemoryStateStore):
    """A user's own, that keeps no notes."""

    async def save_note(self, kind: str, note_id: str, note: Mapping[str, Any], *, seconds: int) -> None:
        """Refused, as the interface has it."""
        await StateStore.save_note(self, kind, note_id, note, seconds=seconds)

    async def get_note(self, kind: str, note_id: str) -> dict[str, Any] | None:
        """None, as the interface has it."""
        return await StateStore.get_note(self, kind, note_id)

    async def replace_note(
        self, kind: str, note_id: str, known: Mapping[str, Any] | None, note: Mapping[str, Any], *, seconds: int
    ) -> bool:
        """As the interface has it."""
        return await StateStore.replace_note(self, kind, note_id, known, note, seconds=seconds)


async def test_over_a_store_that_keeps_no_notes_one_process_is_exact(simulator: SimulatorProcess) -> None:
    async with house(simulator, OwnStore(), ["a1"]) as made:
        desk = made.router.cost_controller
        budget = await desk.create_budget("team", 10, scope_id="blue")
        await asyncio.gather(
            *(desk.record_actual_cost("batch-9", cost, team="blue") for cost in range(1, 6)), return_exceptions=True
        )
        assert (await desk.get_budget_status(budget.id)).settled == 5
        assert await desk.record_actual_cost("batch-9", 6, team="blue") == 1
        assert await desk.record_actual_cost("batch-9", 6, team="blue") == 0
        with pytest.raises(InvalidRequestError, match="less than the 6 dollars"):
            await desk.record_actual_cost("batch-9", 1, team="blue")
        assert (await desk.get_budget_status(budget.id)).settled == 6
