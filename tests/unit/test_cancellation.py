"""Tasks are ended, whatever a library makes of their cancellation."""

import asyncio

import pytest

from apikeyrouter.infrastructure import cancellation
from apikeyrouter.infrastructure.cancellation import end_task


async def swallowing(times: int) -> None:
    """An endless loop over something that loses its first cancellations."""
    while True:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            times -= 1
            if times < 0:
                raise


async def begun(times: int) -> "asyncio.Task[None]":
    task = asyncio.create_task(swallowing(times))
    await asyncio.sleep(0)
    return task


@pytest.mark.parametrize("times", [0, 1, 3])
async def test_a_loop_that_lost_its_cancellation_is_cancelled_again(
    times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cancellation, "AGAIN_SECONDS", 0.01)
    task = await begun(times)
    async with asyncio.timeout(20):
        await end_task(task)
    assert task.cancelled()


async def test_who_waits_for_an_end_can_be_cancelled_too() -> None:
    task = await begun(2)
    waiter = asyncio.create_task(end_task(task))
    await asyncio.sleep(0)
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    assert not task.done()
    while not task.done():
        task.cancel()
        await asyncio.sleep(0)


async def test_what_a_task_failed_with_is_raised_and_none_is_none() -> None:
    async def fails() -> None:
        raise ValueError("its own")

    failing = asyncio.create_task(fails())
    await asyncio.sleep(0)
    with pytest.raises(ValueError, match="its own"):
        await end_task(failing)
    await end_task(None)
