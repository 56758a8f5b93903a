"""Ends of tasks, and cancellations that libraries swallow.

What waits with `asyncio.wait_for` may, up to Python 3.11, lose a cancellation that comes with the result. Who ends a
task asks again until it has ended; a loop that the end of a program cancels, once, must notice by itself.
"""

import asyncio

__all__ = ["end_task", "stop_if_cancelled"]

AGAIN_SECONDS = 1.0


async def end_task(task: "asyncio.Task[None] | None") -> None:
    """Cancel a task of one's own, if there is one, and wait until it has ended. Raises what it failed with."""
    if task is None:
        return
    while not task.done():
        task.cancel()
        await asyncio.wait((task,), timeout=AGAIN_SECONDS)
    if not task.cancelled():
        task.result()


def stop_if_cancelled() -> None:
    """To be called in every round of an endless loop. Raises CancelledError where one was asked for and got lost."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
