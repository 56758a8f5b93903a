"""Ends of tasks, and cancellations that libraries swallow.

What waits with `asyncio.wait_for` may, up to Python 3.11, lose a cancellation that comes with the result. An endless
loop must then notice by itself, or the program never ends.
"""

import asyncio
import contextlib

__all__ = ["end_task", "stop_if_cancelled"]


async def end_task(task: "asyncio.Task[None] | None") -> None:
    """Cancel a task of one's own, if there is one, and wait until it has ended. Raises what it ended with otherwise."""
    if task is not None:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def stop_if_cancelled() -> None:
    """To be called in every round of an endless loop. Raises CancelledError where one was asked for and got lost."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
